"""The service begins, ends, and begins again after a crash."""

import shutil
import signal
import subprocess
import sys

import pytest
from serving import Daemon, settings_for, write_checkpoint

from ckzd.daemon import filesystems
from ckzd.daemon.service import serve
from ckzd.daemon.states import State
from ckzd.errors import (
    ConfigError,
    StoreLocked,
)

# --- crashes ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("place", ["/proc/ckzd", "/proc", "/dev/null/state", "/sys/kernel"])
def test_a_state_directory_that_cannot_be_written_to_is_refused(tmp_path, place):
    with pytest.raises(ConfigError, match=r"daemon\.state_dir: expected a directory that ckzd may write to") as caught:
        serve(settings_for(tmp_path, daemon={"state_dir": place}), once=True)
    assert place in caught.value.problem


@pytest.mark.parametrize("device", ["cuda", "cuda:99"])
def test_a_configured_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch, device):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=rf"daemon\.devices: expected a device that is there, got '{device}'"):
        serve(settings_for(tmp_path, daemon={"devices": ("cpu", device)}), once=True)


def test_a_watched_directory_that_is_not_there_is_said_once_and_waited_for(make_daemon, caplog):
    daemon = make_daemon()
    shutil.rmtree(daemon.place / "runs")
    daemon.service.start()
    daemon.go()
    assert "watch[0].path: expected a directory" in daemon.status()["reasons"][0]
    said = [record for record in caplog.records if "watch[0].path" in getattr(record, "why", "")]
    assert [record.levelname for record in said] == ["WARNING"]
    daemon.write(1)
    daemon.go()
    assert daemon.status()["ready"]
    assert daemon.states() == {"step_1": "verified"}


def test_one_pass_over_a_directory_that_is_not_there_is_an_error(make_daemon):
    daemon = make_daemon(once=True)
    shutil.rmtree(daemon.place / "runs")
    with pytest.raises(ConfigError, match=r"watch\[0\]\.path"):
        daemon.service.start()


def test_the_last_success_is_known_after_a_restart(daemon, revive):
    daemon.write(1)
    daemon.go()
    (row,) = daemon.service.journal.rows()
    again = revive(daemon)
    assert again.metric("ckzd_last_success_timestamp_seconds") == row.archive.stat().st_mtime > 0


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


# --- the process --------------------------------------------------------------------------------------------


def test_the_service_never_loads_torch():
    script = f"import sys; sys.path[:0] = {sys.path!r}; import ckzd.daemon.service; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
