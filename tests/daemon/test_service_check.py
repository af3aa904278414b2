"""Archives that the daemon reads back in turn while there is nothing else to do, and what it does about damage."""

import pytest

from ckzd.chains import is_sound
from ckzd.daemon.scrub import DAY_SECONDS, LOOK_SECONDS
from ckzd.errors import StoreLocked


@pytest.fixture
def daemon(make_daemon):
    daemon = make_daemon(trash_seconds=0, keep_raw=1, daemon={"check_percent_a_day": 50.0})
    daemon.service.start()
    return daemon


def rot(archive) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"first", b"fIrst"))
    assert not is_sound(archive)


def checks(daemon) -> list:
    return [job for job in daemon.executor.began if job.kind == "check"]


def go_on(daemon, seconds: float) -> None:
    daemon.clock.sleep(seconds)
    daemon.go(60)


def test_a_share_a_day_until_all_were_read_and_how_far_it_has_come_is_told(daemon):
    daemon.write(1, 2, 3, 4)
    daemon.go(120)
    go_on(daemon, LOOK_SECONDS)
    assert [job.percent for job in checks(daemon)] == [50.0]
    assert daemon.metric("ckzd_checked_archives_total", outcome="whole") == 2
    go_on(daemon, LOOK_SECONDS)
    assert len(checks(daemon)) == 1
    for _ in range(2):
        go_on(daemon, DAY_SECONDS)
    assert len(checks(daemon)) == 3
    assert daemon.metric("ckzd_checked_archives_total", outcome="whole") == 6
    daemon.status()
    assert daemon.metric("ckzd_check_pass_ratio") == 0.5  # of the second
    assert daemon.metric("ckzd_check_last_complete_pass_timestamp_seconds") > 0
    assert daemon.status()["stores"][0]["check"]["archives"] == 4


def test_nothing_is_checked_beside_other_work_nor_if_nobody_wants_it(make_daemon):
    daemon = make_daemon(slots=2, daemon={"check_percent_a_day": 100.0})
    daemon.service.start()
    daemon.write(1, 2)
    daemon.go(40)
    daemon.executor.held = True
    daemon.write(3)
    daemon.go(20)
    before = len(checks(daemon))
    go_on(daemon, DAY_SECONDS)
    assert len(checks(daemon)) == before
    assert [job.kind for job in daemon.executor._running] == ["replace"]


def test_zero_checks_nothing(make_daemon):
    daemon = make_daemon(daemon={"check_percent_a_day": 0.0})
    daemon.service.start()
    daemon.write(1, 2)
    daemon.go(60)
    go_on(daemon, 2 * DAY_SECONDS)
    assert checks(daemon) == []


def test_a_pass_that_does_not_wait_checks_nothing(make_daemon):
    daemon = make_daemon(once=True, daemon={"check_percent_a_day": 100.0})
    daemon.write(1, 2)
    assert daemon.service.run() == 0
    assert checks(daemon) == []


def test_damage_is_found_and_the_original_that_is_left_is_archived_anew(daemon):
    daemon.write(1, 2)
    daemon.go(90)
    archive = daemon.row("step_2").archive
    rot(archive)
    for _ in range(4):
        go_on(daemon, DAY_SECONDS)
    assert is_sound(archive)
    assert daemon.metric("ckzd_checked_archives_total", outcome="damaged") >= 1
    assert daemon.metric("ckzd_damaged_archives") == 0
    assert daemon.status()["ready"]


def test_what_is_lost_is_told_with_all_that_needs_it_and_after_a_restart(daemon, revive):
    daemon.write(1, 2, 3)
    daemon.go(120)
    lost = daemon.row("step_1").archive
    rot(lost)
    for _ in range(4):
        go_on(daemon, DAY_SECONDS)
    status = daemon.status()
    assert str(lost) in status["damaged_archives"]
    assert str(daemon.row("step_2").archive) in status["damaged_archives"]
    assert daemon.metric("ckzd_damaged_archives") == len(status["damaged_archives"])
    assert not status["ready"]
    assert "cannot be restored from" in status["reasons"][0]

    again = revive(daemon, trash_seconds=0, keep_raw=1)
    again.go(40)
    assert str(lost) in again.status()["damaged_archives"]
    assert len(checks(again)) == 1
    go_on(again, LOOK_SECONDS)
    assert len(checks(again)) == 1  # once a start; then in turn


def test_a_check_that_fails_is_tried_again(daemon):
    daemon.write(1, 2)
    daemon.executor.behave = lambda job: held_by_somebody(job) if job.kind == "check" else None
    daemon.go(90)
    go_on(daemon, LOOK_SECONDS)
    daemon.executor.behave = lambda _: None
    go_on(daemon, LOOK_SECONDS)
    assert len(checks(daemon)) >= 2
    assert daemon.metric("ckzd_checked_archives_total", outcome="whole") >= 1


def held_by_somebody(job) -> StoreLocked:
    return StoreLocked(job.store, "held by somebody")
