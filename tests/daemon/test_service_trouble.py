"""What goes wrong around the service: workers, archives, space, directories; all else goes on."""

import os
from pathlib import Path

import pytest
from serving import write_checkpoint

from ckzd.daemon.jobs import Died, NotStarted
from ckzd.daemon.states import State
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
    (reason,) = daemon.status()["reasons"]
    assert reason.startswith(f"watch[0].path: expected a directory, got {tmp_path / 'runs'}")
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


def test_a_run_whose_name_is_not_text_is_served_as_any_other(daemon):
    daemon.write(1, 2)
    run = daemon.place / "runs" / os.fsdecode(b"\xff")
    for step in (1, 2):
        write_checkpoint(run / f"step_{step}.safetensors")
    daemon.go()

    assert daemon.raw() == [path.stem for path in run.glob("*.safetensors")] == ["step_2"]
    assert daemon.status()["ready"]
