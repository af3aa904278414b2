"""The service from the first scan on, with a clock and an executor that the test holds in its hands."""

import os
import shutil
from pathlib import Path

import pytest
from serving import write_checkpoint

from ckzd.daemon.states import State
from ckzd.daemon.watch import Watcher
from ckzd.errors import (
    BadCheckpoint,
)
from ckzd.operations.replace import pointer_for
from ckzd.store import Store


class AnyParse:
    """Every checkpoint is whole."""

    def completeness(self, checkpoint: Path) -> str | None:
        return None

    def parse(self, checkpoint: Path) -> int | None:
        return None


# --- the main line ------------------------------------------------------------------------------------------


def test_every_checkpoint_is_archived_in_order_and_all_but_the_newest_are_replaced(daemon):
    daemon.write(1, 2, 10)
    daemon.go()

    assert daemon.executor.names("compress") == ["step_1.safetensors", "step_2.safetensors", "step_10.safetensors"]
    assert daemon.states() == {"step_1": "replaced", "step_2": "replaced", "step_10": "verified"}
    assert (daemon.raw(), daemon.pointers()) == (["step_10"], ["step_1", "step_2"])
    assert daemon.why("step_10") == "one of the newest 1"
    assert daemon.row("step_2").reference == daemon.row("step_1").archive


def test_a_checkpoint_that_comes_later_frees_the_one_before(daemon):
    daemon.write(1)
    daemon.go()
    assert daemon.raw() == ["step_1"]
    daemon.write(2)
    daemon.go()

    assert daemon.raw() == ["step_2"]


def test_numbers_for_prometheus_and_the_status_agree(daemon):
    daemon.write(1, 2)
    daemon.go()
    told = daemon.status()

    assert daemon.metric("ckzd_checkpoints_total", outcome="archived") == 2
    assert daemon.metric("ckzd_checkpoints_total", outcome="replaced") == 1
    assert daemon.metric("ckzd_reclaimed_bytes_total") == told["totals"]["reclaimed_bytes"] > 0
    assert daemon.metric("ckzd_stage_duration_seconds_count", stage="encode") == 2
    assert daemon.metric("ckzd_stage_duration_seconds_count", stage="replace") == 1
    assert daemon.metric("ckzd_weight_error_count", preset="resume") == 2
    assert daemon.metric("ckzd_worst_tensor_error_sum", preset="resume") == 0.8
    assert daemon.metric("ckzd_second_moment_ratio_sum", preset="resume") == pytest.approx(2.02)
    assert daemon.metric("ckzd_update_length_ratio_sum", preset="resume") == pytest.approx(2.2)
    assert daemon.metric("ckzd_archives_tightened_total", preset="resume") == 1
    assert told["totals"]["checkpoints"] == {"verified": 1, "replaced": 1}
    assert told["ready"]
    assert told["runs"][0]["run"] == str(daemon.run)
    assert told["stores"][0]["archive_bytes"] > 0


def test_space_is_free_when_the_trash_is_emptied_not_before(make_daemon):
    daemon = make_daemon(trash_seconds=600)
    daemon.service.start()
    daemon.write(1, 2)
    daemon.go()
    space, original = daemon.status()["space"], daemon.status()["totals"]["reclaimed_bytes"]
    assert space["replaced_bytes"] == original > 0
    assert space["trash_bytes"] >= original
    assert space["freed_bytes"] == original - space["trash_bytes"] - space["archive_bytes"] <= 0
    assert space["trash_until"] == pytest.approx(daemon.clock.time() + 600, abs=60)
    assert daemon.metric("ckzd_store_bytes", kind="trash") == space["trash_bytes"]
    assert daemon.metric("ckzd_net_freed_bytes") == space["freed_bytes"]

    daemon.clock.sleep(700)
    daemon.go()
    space = daemon.status()["space"]
    assert (space["trash_bytes"], space["trash_until"]) == (0, None)
    assert space["freed_bytes"] == original - space["archive_bytes"]


def test_without_replace_every_original_stays(make_daemon):
    daemon = make_daemon(replace=False)
    daemon.service.start()
    daemon.write(1, 2, 3)
    daemon.go()

    assert daemon.raw() == ["step_1", "step_2", "step_3"]
    assert set(daemon.states().values()) == {"verified"}
    assert daemon.why("step_1") == "replace = false"


def test_a_directory_is_replaced_as_a_whole(make_daemon):
    daemon = make_daemon(rule=AnyParse())
    daemon.service.start()
    for step in (5, 6):
        folder = daemon.run / f"checkpoint-{step}"
        write_checkpoint(folder / "model.safetensors", str(step))
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    daemon.go()

    assert daemon.states() == {"checkpoint-5": "replaced", "checkpoint-6": "verified"}
    assert sorted(path.name for path in (daemon.run / "checkpoint-5").iterdir()) == ["ckzd.json", "trainer_state.json"]


def test_a_directory_that_is_saved_again_over_its_pointer_is_replaced_again(make_daemon):
    daemon = make_daemon(rule=AnyParse(), keep_raw=0)
    daemon.service.start()
    folder = daemon.run / "checkpoint-5"

    def save(content: str) -> None:
        write_checkpoint(folder / "model.safetensors", content)
        (folder / "trainer_state.json").write_text('{"global_step": 5}')

    save("first")
    daemon.go()
    assert daemon.states() == {"checkpoint-5": "replaced"}
    os.utime(folder / "ckzd.json", (1, 1))
    save("second")
    daemon.go()

    assert [row.state.value for row in daemon.service.journal.rows()] == ["rotated", "replaced"]
    assert sorted(path.name for path in folder.iterdir()) == ["ckzd.json", "trainer_state.json"]


def test_a_replaced_checkpoint_no_longer_says_why_it_stayed(make_daemon):
    daemon = make_daemon(keep_raw=1)
    daemon.service.start()
    daemon.write(1)
    daemon.go()
    assert daemon.why("step_1") == "one of the newest 1"
    daemon.write(2)
    daemon.go()
    assert (daemon.states()["step_1"], daemon.why("step_1")) == ("replaced", "")
    assert daemon.why("step_2") == "one of the newest 1"


def test_runs_take_turns_and_one_run_has_one_job_at_a_time(make_daemon):
    daemon = make_daemon(slots=3)
    daemon.service.start()
    daemon.executor.held = True
    for name in ("a", "b"):
        for step in (1, 2):
            write_checkpoint(daemon.place / "runs" / name / f"step_{step}.safetensors", name)
    daemon.go(20)

    assert [(job.checkpoint.parent.name, job.checkpoint.stem) for job in daemon.executor.began] == [
        ("a", "step_1"),
        ("b", "step_1"),
    ]


def test_a_watched_path_may_be_a_run_itself_and_hold_runs(make_daemon, tmp_path):
    daemon = make_daemon(path=tmp_path / "runs" / "gpt")
    daemon.write(1)
    deep = write_checkpoint(daemon.run / "version_0" / "checkpoints" / "step_7.safetensors")
    daemon.service.start()
    daemon.go()

    assert daemon.states() == {"step_1": "verified", "step_7": "verified"}
    assert daemon.row("step_7").run == deep.parent


def test_a_store_inside_the_watched_tree_is_not_taken_for_a_run(make_daemon, tmp_path):
    daemon = make_daemon(store=tmp_path / "runs" / "archives")
    daemon.service.start()
    daemon.write(1, 2, 3)
    daemon.go(120)

    assert {row.run for row in daemon.service.journal.rows()} == {daemon.run}
    assert daemon.raw() == ["step_3"]


def test_trash_is_emptied_in_its_time(make_daemon):
    daemon = make_daemon(trash_seconds=3600)
    daemon.service.start()
    daemon.write(1, 2)
    daemon.go()
    trash = Store.open(daemon.place / "runs" / ".ckzd").trash
    assert len(list(trash.iterdir())) == 1

    daemon.clock.sleep(3700)
    daemon.go()
    assert list(trash.iterdir()) == []
    assert daemon.metric("ckzd_trash_freed_bytes_total") > 0


def test_a_hint_brings_the_next_scan_forward(make_daemon):
    daemon = make_daemon(scan_seconds=10_000)
    daemon.service.start()
    daemon.go(5)
    daemon.write(1)
    daemon.go(20)
    assert daemon.states() == {}
    daemon.watcher.hinted = True
    daemon.go(20)

    assert daemon.states() == {"step_1": "verified"}


def test_real_events_bring_the_next_scan_forward(make_daemon, wait_until):
    daemon = make_daemon(scan_seconds=10_000, watcher=Watcher())
    daemon.service.start()

    def is_done() -> bool:
        daemon.go(5)
        return daemon.states() == {"step_1": "verified"}

    daemon.write(1)
    assert wait_until(is_done)


def test_events_that_the_kernel_dropped_are_counted_and_followed_by_a_scan(make_daemon):
    daemon = make_daemon(scan_seconds=10_000)
    daemon.service.start()
    daemon.write(1)
    daemon.watcher.overflows, daemon.watcher.hinted = 3, True
    daemon.go(20)

    assert daemon.metric("ckzd_watch_overflows_total") == 3
    assert daemon.states() == {"step_1": "verified"}


# --- what is left alone -------------------------------------------------------------------------------------


def test_what_a_marker_names_is_archived_and_stays(daemon):
    first, second, third, _ = daemon.write(1, 2, 3, 4)
    (daemon.run / "last.safetensors").symlink_to(first.name)
    os.link(second, daemon.place / "other-name")
    (daemon.run / "best.txt").write_text(third.name)
    daemon.go()

    assert daemon.raw() == ["last", "step_1", "step_2", "step_3", "step_4"]
    assert daemon.states() == dict.fromkeys(["step_1", "step_2", "step_3", "step_4"], "verified")
    assert daemon.why("step_1") == "a symlink points to it"
    assert daemon.why("step_2") == "it has another name (hard link)"
    assert daemon.why("step_3") == "a marker file names it"

    (daemon.run / "best.txt").write_text("step_9.safetensors")
    daemon.go()
    assert daemon.states()["step_3"] == "replaced"


def test_a_run_set_back_to_an_older_step_keeps_what_it_writes_now(daemon):
    for step in (100, 200):
        os.utime(daemon.write(step)[0], ns=(0, 10**18 + step))
    daemon.go()
    assert daemon.raw() == ["step_200"]
    os.utime(daemon.write(150)[0], ns=(0, 10**18 + 1000))
    daemon.go()

    assert daemon.raw() == ["step_150", "step_200"]  # newest by time, and newest by step


def test_an_incomplete_checkpoint_waits_and_does_not_hold_up_the_others(daemon):
    (half,) = daemon.write(3)
    half.write_bytes(half.read_bytes()[:-5])
    daemon.write(1, 2)
    daemon.go()

    assert daemon.states() == {"step_1": "replaced", "step_2": "verified", "step_3": "seen"}
    assert "step_3" in daemon.raw()
    assert daemon.why("step_3")


def test_a_restored_checkpoint_is_recognised_and_left_alone_for_a_day(daemon):
    (first, _) = daemon.write(1, 2)
    content = first.read_bytes()
    daemon.go()
    assert daemon.raw() == ["step_2"]

    first.write_bytes(content)  # what `ckzd restore` does in the end: bytes and times
    os.utime(first, ns=(0, 10**18))
    daemon.go()
    assert daemon.row("step_1").state is State.RESTORED
    assert daemon.why("step_1").startswith("it was restored")
    assert daemon.metric("ckzd_checkpoints_total", outcome="already") == 1
    assert daemon.raw() == ["step_1", "step_2"]

    daemon.clock.sleep(25 * 3600)
    daemon.go()
    assert daemon.raw() == ["step_2"]


def test_a_step_written_again_is_a_new_job(daemon):
    daemon.write(1, 2)
    daemon.go()
    daemon.write(2, content="another try")
    daemon.go()

    states = [(row.path.stem, row.state.value) for row in daemon.service.journal.rows()]
    assert states == [("step_1", "replaced"), ("step_2", "rotated"), ("step_2", "verified")]


def test_a_step_written_again_while_it_is_compressed_is_compressed_again(daemon):
    daemon.executor.held = True
    daemon.write(1)
    daemon.go(20)
    daemon.write(1, content="another try")
    daemon.go(20)
    daemon.executor.held = False
    daemon.go()

    assert daemon.executor.names("compress") == ["step_1.safetensors"] * 2
    assert daemon.states() == {"step_1": "verified"}


def test_what_the_framework_deletes_keeps_its_archive(daemon):
    daemon.write(1, 2)
    daemon.go()
    archive = daemon.row("step_2").archive
    (daemon.run / "step_2.safetensors").unlink()
    daemon.write(3)
    daemon.go()

    assert archive.exists()
    assert daemon.states()["step_2"] == "rotated"


def test_what_vanishes_before_it_is_archived_is_forgotten(daemon):
    daemon.executor.held = True
    daemon.write(1, 2)
    daemon.go(20)
    shutil.rmtree(daemon.run)
    daemon.executor.held = False
    daemon.executor.behave = lambda job: BadCheckpoint(job.checkpoint, "is gone")
    daemon.go()

    assert "step_2" not in daemon.states()


def test_a_run_that_is_out_of_sight_loses_nothing(daemon):
    """A file server that is away must not look like a deletion."""
    daemon.write(1, 2)
    daemon.go()
    daemon.settings.watch[0].path.rename(daemon.place / "away")
    daemon.go()
    assert daemon.states() == {"step_1": "replaced", "step_2": "verified"}
    assert not daemon.status()["ready"]

    (daemon.place / "away").rename(daemon.settings.watch[0].path)
    daemon.go()
    assert daemon.status()["ready"]
    assert daemon.raw() == ["step_2"]


# --- on_rotate ----------------------------------------------------------------------------------------------


def rotate(daemon, *steps: int) -> None:
    """As a framework does: it deletes what stands there, original or pointer."""
    for step in steps:
        checkpoint = daemon.run / f"step_{step}.safetensors"
        checkpoint.unlink(missing_ok=True)
        pointer_for(checkpoint).unlink(missing_ok=True)


def test_archives_that_others_need_are_never_dropped(make_daemon):
    daemon = make_daemon(on_rotate="drop")
    daemon.service.start()
    daemon.write(1, 2, 3, 4)
    daemon.go(90)
    archives = {row.path.stem: row.archive for row in daemon.service.journal.rows()}
    rotate(daemon, 1, 4)
    daemon.write(0)
    daemon.go()
    daemon.clock.sleep(1000)
    daemon.go()

    assert all(archive.exists() for archive in archives.values())  # 1 is the base, 4 the newest


def test_an_older_version_that_nothing_needs_is_dropped(make_daemon):
    daemon = make_daemon(on_rotate="drop")
    daemon.service.start()
    daemon.write(1, 2)
    daemon.go()
    older = daemon.row("step_2").archive
    daemon.write(2, content="the job was set back and wrote it again")
    daemon.write(3)
    daemon.go()
    assert older.exists()  # it may only be out of sight
    daemon.clock.sleep(1000)
    daemon.go()

    assert not older.exists()
    assert daemon.metric("ckzd_checkpoints_total", outcome="dropped") == 1
    assert daemon.states() == {"step_1": "replaced", "step_2": "replaced", "step_3": "verified"}
    assert daemon.row("step_2").archive.exists()


def test_nothing_is_dropped_unless_it_was_asked_for(daemon):
    daemon.write(1, 2)
    daemon.go()
    older = daemon.row("step_2").archive
    daemon.write(2, content="again")
    daemon.write(3)
    daemon.go()
    daemon.clock.sleep(1000)
    daemon.go()

    assert older.exists()


def test_the_archive_of_a_restored_checkpoint_is_never_dropped(make_daemon):
    daemon = make_daemon(on_rotate="drop")
    daemon.service.start()
    first, *_ = daemon.write(1, 2)
    content = first.read_bytes()
    daemon.go()
    archive = daemon.row("step_1").archive
    rotate(daemon, 2)
    first.write_bytes(content)
    daemon.write(3)
    daemon.go()
    daemon.clock.sleep(1000)
    daemon.go()

    assert archive.exists()


# --- behind the run -----------------------------------------------------------------------------------------


def test_behind_the_run_the_oldest_are_left_raw_counted_and_taken_up_when_there_is_time(make_daemon):
    daemon = make_daemon(max_lag=2, replace=False)
    daemon.service.start()
    daemon.executor.held = True
    daemon.write(0)
    daemon.go(20)
    daemon.write(1, 2, 3, 4)
    daemon.go(20)
    daemon.executor.held = False
    daemon.go(4)
    assert daemon.metric("ckzd_checkpoints_total", outcome="skipped") == 2
    daemon.go()

    assert daemon.executor.names("compress") == [f"step_{step}.safetensors" for step in (0, 3, 4, 1, 2)]
    assert set(daemon.states().values()) == {"verified"}


def later_with(daemon, *steps: int) -> None:
    """Other checkpoints come, and so much time passes that a rotation is believed."""
    daemon.write(*steps)
    daemon.go()
    daemon.clock.sleep(1000)
    daemon.go()


@pytest.mark.parametrize("place", ["kept.safetensors.ckz", "../best/step_2.safetensors.ckz"])
def test_an_archive_that_a_pointer_names_under_another_name_is_never_dropped(make_daemon, place):
    daemon = make_daemon(on_rotate="drop")
    daemon.service.start()
    daemon.write(1, 2, 3)
    daemon.go(90)
    archive, target = daemon.row("step_2").archive, daemon.run / place
    target.parent.resolve().mkdir(exist_ok=True)
    pointer_for(daemon.run / "step_2.safetensors").rename(target.parent.resolve() / target.name)
    (daemon.run / "step_3.safetensors").unlink()
    later_with(daemon, 4, 5)

    assert archive.exists()


@pytest.mark.parametrize("moved_to", ["runs/gpt_old", "elsewhere"])
def test_archives_of_a_run_that_was_moved_are_never_dropped(make_daemon, moved_to):
    """Another job writes at its old path; its pointers may be where we do not look."""
    daemon = make_daemon(on_rotate="drop")
    daemon.service.start()
    daemon.write(1, 2, 3)
    daemon.go(90)
    archives = [daemon.row(f"step_{step}").archive for step in (1, 2, 3)]
    daemon.run.rename(daemon.place / moved_to)
    daemon.write(1, 2, 3, 4, 5, content="another job")
    later_with(daemon, 6)

    assert all(archive.exists() for archive in archives)


def test_the_order_of_a_run_is_made_once_for_all_who_ask(daemon):
    """Of nine thousand checkpoints that came at once it was most of a minute of CPU."""
    daemon.executor.held = True
    daemon.write(1, 2, 3)
    daemon.go()
    (run,) = daemon.service._scan.runs
    assert [path.stem for path in run.order] == ["step_1", "step_2", "step_3"]
    assert run.order is run.order
