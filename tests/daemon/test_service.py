"""The service from the first scan to the last signal, with a clock and an executor that the test holds in its hands."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from serving import FakeExecutor, FakeWatcher, settings_for, write_checkpoint

from ckzd.daemon import filesystems, status
from ckzd.daemon.jobs import Died, NotStarted
from ckzd.daemon.service import Service, serve
from ckzd.daemon.states import State
from ckzd.daemon.watch import Watcher
from ckzd.errors import (
    BadCheckpoint,
    ConfigError,
    CorruptArchive,
    MissingReference,
    NoSpace,
    NotAccepted,
    SourceChanged,
    StoreLocked,
    VerificationFailed,
)
from ckzd.operations.replace import pointer_for
from ckzd.store import Store


class AnyParse:
    """Every checkpoint is whole."""

    def completeness(self, checkpoint: Path) -> str | None:
        return None

    def parse(self, checkpoint: Path) -> int | None:
        return None


class Daemon:
    """A service and its surroundings."""

    def __init__(
        self, place: Path, clock, *, once=False, rule=None, slots=1, daemon=None, watcher=None, **watch
    ) -> None:
        self.place, self.clock = place, clock
        self.run = place / "runs" / "gpt"
        self.settings = settings_for(place, daemon=daemon, **watch)
        self.executor = FakeExecutor(clock, slots)
        self.watcher = watcher or FakeWatcher()
        self.service = Service(self.settings, self.executor, clock, once=once, rule=rule, watcher=self.watcher)

    def write(self, *steps: int, content: str = "") -> list[Path]:
        return [write_checkpoint(self.run / f"step_{step}.safetensors", content) for step in steps]

    def go(self, steps: int = 60) -> None:
        for _ in range(steps):
            self.service.step()

    def states(self) -> dict[str, str]:
        return {row.path.stem: row.state.value for row in self.service.journal.rows()}

    def row(self, name: str):
        (row,) = [row for row in self.service.journal.rows() if row.path.stem == name and row.state != "rotated"]
        return row

    def status(self) -> dict:
        self.service._next_tell = 0.0
        self.service._tell()
        return self.service.teller._status

    def why(self, name: str) -> str:
        return next(c["why"] for c in self.status()["checkpoints"] if Path(c["checkpoint"]).stem == name)

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels)

    def raw(self) -> list[str]:
        return sorted(path.stem for path in self.run.glob("*.safetensors"))

    def pointers(self) -> list[str]:
        return sorted(path.name.split(".")[0] for path in self.run.glob("*.ckz"))


@pytest.fixture
def make_daemon(tmp_path, clock):
    made = []

    def _make(**options) -> Daemon:
        made.append(Daemon(tmp_path, clock, **options))
        return made[-1]

    yield _make
    for daemon in made:
        daemon.service.__exit__()


@pytest.fixture
def daemon(make_daemon) -> Daemon:
    made = make_daemon()
    made.service.start()
    return made


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
    assert daemon.metric("ckzd_archives_tightened_total", preset="resume") == 1
    assert told["totals"]["checkpoints"] == {"verified": 1, "replaced": 1}
    assert told["ready"]
    assert told["runs"][0]["run"] == str(daemon.run)
    assert told["stores"][0]["archive_bytes"] > 0


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


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_a_checkpoint_that_kills_workers_is_quarantined_and_the_others_are_done(daemon):
    daemon.executor.behave = lambda job: (
        Died(job, "signal", "killed by SIGKILL") if job.checkpoint.stem == "step_2" else None
    )
    daemon.write(1, 2, 3)
    daemon.go(60)
    assert daemon.row("step_2").state is State.FAILED
    assert daemon.states()["step_3"] == "verified"
    daemon.go(400)

    assert daemon.row("step_2").state is State.QUARANTINED
    assert daemon.executor.names("compress").count("step_2.safetensors") == 3
    assert "killed by SIGKILL" in daemon.why("step_2")
    assert daemon.raw() == ["step_2", "step_3"]
    assert daemon.metric("ckzd_worker_restarts_total", reason="signal") == 3
    assert daemon.metric("ckzd_quarantined_checkpoints") == 1

    daemon.executor.behave = lambda job: None
    os.utime(daemon.run / "step_2.safetensors", ns=(0, 10**18))  # `touch`: tried again
    daemon.go()
    assert daemon.row("step_2").archive is not None


@pytest.mark.parametrize("error", [BadCheckpoint, MissingReference, SourceChanged, ConfigError])
def test_a_failed_job_is_tried_again_after_a_while(daemon, error):
    daemon.executor.behave = lambda job: error(job.checkpoint, "not now")
    daemon.write(1)
    daemon.go(20)
    assert daemon.row("step_1").state is State.FAILED
    assert daemon.executor.names("compress") == ["step_1.safetensors"]
    assert daemon.metric("ckzd_jobs_failed_total", reason=error.__name__) == 1
    daemon.executor.behave = lambda job: None
    daemon.go(90)

    assert daemon.states() == {"step_1": "verified"}


def test_what_the_accept_command_refuses_is_quarantined_at_once_and_stays(make_daemon):
    daemon = make_daemon(accept_command=("eval.py", "--strict"), accept_seconds=60)
    daemon.service.start()
    daemon.executor.behave = lambda job: (
        NotAccepted(job.checkpoint, "ended with exit code 3") if job.checkpoint.stem == "step_2" else None
    )
    daemon.write(1, 2, 3)
    daemon.go(400)

    job, *_ = daemon.executor.began
    assert (job.accept_command, job.accept_seconds) == (("eval.py", "--strict"), 60)
    assert daemon.executor.names("compress").count("step_2.safetensors") == 1
    assert daemon.states() == {"step_1": "replaced", "step_2": "quarantined", "step_3": "verified"}
    assert daemon.raw() == ["step_2", "step_3"]
    assert "ended with exit code 3" in daemon.why("step_2")
    assert daemon.metric("ckzd_jobs_failed_total", reason="NotAccepted") == 1
    assert daemon.metric("ckzd_checkpoints_total", outcome="quarantined") == 1
    assert daemon.metric("ckzd_stage_duration_seconds_count", stage="accept") == 2
    assert daemon.status()["replacing_stopped"] is None

    daemon.executor.behave = lambda job: None
    os.utime(daemon.run / "step_2.safetensors", ns=(0, 10**18))  # `touch`: asked again
    daemon.go()
    assert daemon.row("step_2").archive is not None


@pytest.mark.parametrize(("error", "reason"), [(VerificationFailed, "mismatch"), (CorruptArchive, "corrupt archive")])
def test_an_untrue_archive_stops_all_replacing_until_a_person_acknowledges(daemon, error, reason):
    daemon.executor.behave = lambda job: (
        error(job.checkpoint, "decodes to something else") if job.checkpoint.stem == "step_3" else None
    )
    daemon.write(3)
    daemon.go(20)
    daemon.write(1, 2)
    daemon.go()

    told = daemon.status()
    assert {"step_1", "step_2", "step_3"} == set(daemon.raw())
    assert daemon.states()["step_1"] == "verified"  # archiving goes on
    assert not told["ready"]
    assert "decodes to something else" in told["replacing_stopped"]["reason"]
    assert daemon.metric("ckzd_verify_failures_total", reason=reason) >= 1
    assert daemon.metric("ckzd_replacing_stopped") == 1
    assert daemon.why("step_1") == "replacing is stopped until a person acknowledges"

    command, file = told["replacing_stopped"]["acknowledge"].split()
    assert command == "rm"
    Path(file).unlink()
    daemon.go(20)
    assert "step_1" not in daemon.raw()


def test_a_full_file_system_pauses_the_queue_and_deletes_nothing(daemon):
    daemon.executor.behave = lambda job: NoSpace(job.store, "needs 9 bytes, 0 are free")
    daemon.write(1, 2)
    daemon.go(20)
    before = sorted(daemon.place.rglob("*.safetensors"))
    daemon.go(60)

    assert len(daemon.executor.names("compress")) == 1
    assert sorted(daemon.place.rglob("*.safetensors")) == before
    assert daemon.row("step_1").attempts == 0
    assert "waiting for space" in daemon.status()["reasons"][0]
    assert daemon.metric("ckzd_queue_paused") == 1

    daemon.executor.behave = lambda job: None
    daemon.go(200)
    assert daemon.raw() == ["step_2"]
    assert daemon.status()["ready"]


def test_a_locked_store_is_tried_again_and_costs_no_attempt(daemon):
    daemon.executor.behave = lambda job: StoreLocked(job.store, "held by gc")
    daemon.write(1)
    daemon.go(20)
    assert (daemon.row("step_1").attempts, len(daemon.executor.began)) == (0, 1)
    daemon.executor.behave = lambda job: None
    daemon.go(90)

    assert daemon.states() == {"step_1": "verified"}


def test_a_worker_that_does_not_start_costs_no_attempt_and_is_told(daemon):
    daemon.executor.behave = lambda job: NotStarted(job, "exit status 1 before it was ready")
    daemon.write(1)
    daemon.go(20)

    assert daemon.row("step_1").attempts == 0
    assert "does not start" in daemon.status()["reasons"][0]


def test_a_worker_that_dies_while_replacing_is_cleaned_up_after_before_anything_else(daemon):
    deaths = [1]

    def behave(job):
        return Died(job, "signal", "killed by SIGKILL") if job.kind == "replace" and deaths and deaths.pop() else None

    daemon.executor.behave = behave
    daemon.write(1, 2)
    daemon.go(30)
    kinds = [job.kind for job in daemon.executor.began]
    assert kinds[kinds.index("replace") + 1] == "clean"
    assert kinds.count("replace") == 1
    daemon.clock.sleep(700)
    daemon.go(30)

    assert daemon.raw() == ["step_2"]


def test_an_archive_that_is_gone_is_made_again(daemon):
    daemon.write(1)
    daemon.go()
    daemon.row("step_1").archive.unlink()
    daemon.write(2)
    daemon.go()

    assert daemon.executor.names("compress").count("step_1.safetensors") == 2
    assert daemon.states() == {"step_1": "replaced", "step_2": "verified"}


def test_a_missing_directory_is_told_and_used_when_it_comes(make_daemon, tmp_path):
    daemon = make_daemon()
    (tmp_path / "runs").rmdir()
    daemon.service.start()
    daemon.go(5)
    assert daemon.status()["reasons"] == [f"{tmp_path / 'runs'}: is not a directory, or not there"]
    daemon.write(1, 2)
    daemon.go()

    assert daemon.raw() == ["step_2"]
    assert daemon.status()["ready"]


def test_trouble_is_survived_told_and_ends_only_when_it_stays(daemon, monkeypatch):
    def fail():
        raise OSError(28, "No space left on device", "/state/journal")

    daemon.write(1)
    daemon.go(8)
    with monkeypatch.context() as patched:
        patched.setattr(daemon.service, "_plan", fail)
        daemon.go(10)
        assert any("No space left" in reason for reason in daemon.status()["reasons"])
    daemon.go()
    assert daemon.states() == {"step_1": "verified"}
    assert daemon.status()["ready"]

    monkeypatch.setattr(daemon.service, "_look", fail)
    monkeypatch.setattr(daemon.service, "_plan", fail)
    with pytest.raises(OSError, match="No space left"):
        daemon.go(500)


def test_a_job_whose_end_was_lost_in_trouble_is_done_again(daemon, monkeypatch):
    daemon.write(1)
    with monkeypatch.context() as patched:
        patched.setattr(daemon.service.journal, "verified", lambda *_, **__: 1 / 0)
        daemon.go(12)
    daemon.go()

    assert daemon.states() == {"step_1": "verified"}


def test_a_name_that_is_not_text_leaves_only_its_run_out(daemon):
    daemon.write(1, 2)
    write_checkpoint(daemon.place / "runs" / os.fsdecode(b"\xff") / "step_1.safetensors")
    daemon.go()

    assert daemon.raw() == ["step_2"]
    assert not daemon.status()["ready"]


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


# --- crashes ------------------------------------------------------------------------------------------------


def crash(daemon) -> None:
    """What SIGKILL leaves: no goodbye, only the kernel gives the locks back."""
    daemon.service._watcher.stop()
    daemon.service.teller.close()
    daemon.service._open.close()
    daemon.service.__exit__ = lambda *_: None


@pytest.fixture
def revive(make_daemon, monkeypatch):
    def _revive(daemon, **options) -> Daemon:
        monkeypatch.setattr(daemon.service.__class__, "__exit__", daemon.service.__class__.__exit__)
        crash(daemon)
        daemon.service = _Gone()
        made = make_daemon(**options)
        made.service.start()
        return made

    return _revive


class _Gone:
    def __exit__(self, *_):
        return None


def test_a_job_that_the_crash_interrupted_is_done_again(daemon, revive):
    daemon.executor.held = True
    daemon.write(1, 2)
    daemon.go(20)
    again = revive(daemon)
    assert again.row("step_1").crashes == 1
    again.go()

    assert again.raw() == ["step_2"]


def test_after_a_checkpoint_at_which_the_daemon_died_often_the_others_go_first(daemon, revive):
    daemon.write(1, 2)
    for _ in range(3):
        daemon.executor.held = True
        daemon.go(20)
        daemon = revive(daemon)
    daemon.go()
    assert daemon.states() == {"step_1": "failed", "step_2": "verified"}
    assert daemon.why("step_1") == "the daemon died 3 times at it"

    daemon.clock.sleep(3600)
    daemon.go()
    assert daemon.states() == {"step_1": "replaced", "step_2": "verified"}


def test_a_lost_journal_is_rebuilt_from_the_store(daemon, revive):
    (first, *_) = daemon.write(1, 2, 3)
    daemon.go()
    reclaimed = daemon.status()["totals"]["checkpoints"]
    content = "\n".join(sorted(daemon.raw()))
    for file in (daemon.place / "state").glob("journal*"):
        file.unlink()
    again = revive(daemon)
    again.go()

    assert again.status()["totals"]["checkpoints"] == reclaimed == {"replaced": 2, "verified": 1}
    assert "\n".join(sorted(again.raw())) == content
    write_checkpoint(first)
    again.go()
    assert again.row("step_1").state is State.RESTORED


def test_a_replacement_that_the_journal_missed_is_noticed(daemon, revive):
    daemon.write(1, 2)
    daemon.executor.behave = lambda job: None
    daemon.go()
    with daemon.service.journal._transaction():
        daemon.service.journal._database.execute("UPDATE checkpoints SET state = 'verified'")
    again = revive(daemon)
    again.go()

    assert again.states() == {"step_1": "replaced", "step_2": "verified"}


# --- starting and ending ------------------------------------------------------------------------------------


def test_a_second_daemon_on_one_store_is_refused(daemon, tmp_path, clock):
    daemon.write(1)
    daemon.go()
    other = Daemon(tmp_path, clock, daemon={"state_dir": tmp_path / "other-state"})
    with other.service, pytest.raises(StoreLocked):
        other.service.start()


def test_a_run_that_needs_an_explicit_store_ends_a_daemon_that_has_no_other(make_daemon, tmp_path):
    daemon = make_daemon()
    write_checkpoint(tmp_path / "runs" / "checkpoints" / "step_1.safetensors")
    (tmp_path / "runs" / "checkpoints" / "checkpoint_0").mkdir()
    with pytest.raises(ConfigError, match="set store"):
        daemon.service.start()


def test_a_run_that_needs_an_explicit_store_does_not_end_a_daemon_that_has_others(make_daemon, tmp_path):
    daemon = make_daemon()
    daemon.write(1, 2)
    write_checkpoint(tmp_path / "runs" / "checkpoints" / "step_1.safetensors")
    (tmp_path / "runs" / "checkpoints" / "checkpoint_0").mkdir()
    daemon.service.start()
    daemon.go()

    assert daemon.raw() == ["step_2"]
    assert "set store" in daemon.status()["reasons"][0]


def test_a_state_directory_on_a_file_server_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(filesystems, "kind", lambda _: "nfs4")
    with pytest.raises(ConfigError, match="expected a local disk, got nfs4"):
        serve(settings_for(tmp_path))


def test_an_accept_command_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="got 'no-such-program'"):
        serve(settings_for(tmp_path, accept_command="no-such-program --strict"))


def test_sigterm_lets_the_running_job_finish_and_begins_no_other(daemon):
    daemon.executor.held = True
    daemon.write(1, 2)
    daemon.go(20)
    daemon.service.terminate(signal.SIGTERM)
    daemon.go(5)
    assert not daemon.service._is_over()
    assert daemon.status()["state"] == "draining"
    daemon.executor.held = False
    daemon.go(5)

    assert daemon.service._is_over()
    assert daemon.executor.names("compress") == ["step_1.safetensors"]
    assert daemon.states() == {"step_1": "verified", "step_2": "settled"}


def test_draining_has_a_limit(daemon):
    daemon.executor.held = True
    daemon.write(1)
    daemon.go(20)
    daemon.service.terminate(signal.SIGTERM)
    daemon.clock.sleep(301)

    assert daemon.service._is_over()


@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]]
)
def test_a_second_signal_ends_at_once_and_the_job_counts_no_attempt(daemon, numbers, revive):
    daemon.executor.held = True
    daemon.write(1)
    daemon.go(20)
    for number in numbers:
        daemon.service.terminate(number)
    assert daemon.service._is_over()
    for event in daemon.executor.close():
        daemon.service._outcomes.apply(event)

    assert (daemon.row("step_1").state, daemon.row("step_1").attempts) == (State.SETTLED, 0)


# --- one pass -----------------------------------------------------------------------------------------------


def age(daemon, seconds: float = 100.0) -> None:
    for path in daemon.run.iterdir():
        then = daemon.clock.time() - seconds
        os.utime(path, (then, then))


def one_pass(make_daemon, *steps: int, prepare=lambda _: None, **options) -> tuple[Daemon, int]:
    daemon = make_daemon(once=True, settle_seconds=30, **options)
    daemon.write(*steps)
    age(daemon)
    prepare(daemon)
    with daemon.service as service:
        code = service.run()
    daemon.service = _Gone()
    return daemon, code


def test_one_pass_does_everything_and_ends(make_daemon):
    daemon, code = one_pass(make_daemon, 1, 2, 3, trash_seconds=0)

    assert code == 0
    assert daemon.raw() == ["step_3"]
    assert list((daemon.place / "runs" / ".ckzd" / "trash").iterdir()) == []
    assert not (daemon.place / "state" / status.ENDPOINT).exists()


def test_one_pass_leaves_what_was_just_written(make_daemon):
    def prepare(daemon):
        daemon.write(4)

    daemon, code = one_pass(make_daemon, 1, 2, 3, prepare=prepare)

    assert code == 0
    assert daemon.executor.names("compress") == [f"step_{step}.safetensors" for step in (1, 2, 3)]


def test_one_pass_tries_each_once_and_says_that_some_failed(make_daemon):
    def prepare(daemon):
        daemon.executor.behave = lambda job: (
            BadCheckpoint(job.checkpoint, "no") if job.checkpoint.stem == "step_2" else None
        )

    daemon, code = one_pass(make_daemon, 1, 2, 3, prepare=prepare)

    assert code == 3
    assert daemon.executor.names("compress").count("step_2.safetensors") == 1
    assert daemon.raw() == ["step_2", "step_3"]


def test_one_pass_without_space_says_so(make_daemon):
    def prepare(daemon):
        daemon.executor.behave = lambda job: NoSpace(job.store, "full")

    assert one_pass(make_daemon, 1, 2, prepare=prepare)[1] == 7


def test_one_pass_with_workers_that_do_not_start_gives_up(make_daemon):
    def prepare(daemon):
        daemon.executor.behave = lambda job: NotStarted(job, "no torch")

    daemon, code = one_pass(make_daemon, 1, prepare=prepare)

    assert code == 3
    assert len(daemon.executor.began) == 3


def test_one_pass_over_nothing_is_done(make_daemon):
    daemon = make_daemon(once=True)
    with daemon.service as service:
        assert service.run() == 0
    daemon.service = _Gone()


def test_one_pass_over_a_missing_directory_is_a_mistake(make_daemon, tmp_path):
    daemon = make_daemon(once=True)
    (tmp_path / "runs").rmdir()
    with daemon.service as service, pytest.raises(ConfigError, match="not a directory"):
        service.run()
    daemon.service = _Gone()


# --- the process --------------------------------------------------------------------------------------------


def test_the_service_never_loads_torch():
    script = f"import sys; sys.path[:0] = {sys.path!r}; import ckzd.daemon.service; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
