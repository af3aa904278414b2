"""Archives that rot under a running daemon: said, archived anew as far as originals remain, and archiving goes on."""

import pytest

from ckzd.chains import is_sound


@pytest.fixture
def daemon(make_daemon):
    daemon = make_daemon(trash_seconds=10**6, keep_raw=1)
    daemon.service.start()
    return daemon


def rot(archive) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"first", b"fIrst"))
    assert not is_sound(archive)


def test_originals_in_the_trash_and_raw_ones_are_archived_anew(daemon):
    daemon.write(1, 2, 3)
    daemon.go(90)
    assert daemon.pointers() == ["step_1", "step_2"]
    rot(daemon.row("step_1").archive)
    daemon.write(4)
    daemon.go(200)
    daemon.clock.sleep(700)
    daemon.go(100)

    assert [daemon.executor.names("compress").count(f"step_{n}.safetensors") for n in (1, 2, 3)] == [2, 2, 2]
    assert all(is_sound(row.archive) for row in daemon.service.journal.rows())
    assert daemon.metric("ckzd_damaged_archives") == 0
    assert daemon.status()["damaged_archives"] == []
    assert daemon.status()["replacing_stopped"] is None
    assert daemon.raw() == ["step_4"]  # proven anew, replaced anew


def test_what_is_lost_is_told_for_as_long_as_it_lies_there(make_daemon):
    daemon = make_daemon(trash_seconds=0, keep_raw=1)
    daemon.service.start()
    daemon.write(1, 2)
    daemon.go(90)
    lost = daemon.row("step_1").archive
    rot(lost)
    daemon.write(3, 4)
    daemon.go(200)
    daemon.clock.sleep(700)
    daemon.go(100)
    assert daemon.metric("ckzd_damaged_archives") == len(daemon.status()["damaged_archives"])
    assert str(lost) in daemon.status()["damaged_archives"]
    assert is_sound(daemon.row("step_3").archive)
    assert is_sound(daemon.row("step_4").archive)
    assert daemon.pointers() == ["step_1", "step_2", "step_3"]


def test_damage_that_a_replacement_finds_sends_the_checkpoint_back_to_be_archived(daemon):
    daemon.executor.behave = lambda job: rot(job.archive) if job.kind == "replace" and not healed else None
    healed = []
    daemon.write(1, 2)
    daemon.go(40)
    assert daemon.raw() == ["step_1", "step_2"]
    healed.append(True)
    daemon.clock.sleep(700)
    daemon.go(100)
    assert daemon.raw() == ["step_2"]
    assert is_sound(daemon.row("step_1").archive)
    assert daemon.status()["replacing_stopped"] is None
