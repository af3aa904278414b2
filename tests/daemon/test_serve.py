"""The daemon as a process: real workers, real signals, real crashes; only the codec is a stand-in."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import write_checkpoint

from ckzd.config import load
from ckzd.daemon import status

SCRIPT = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from ckzd.config import load
from ckzd.daemon.clock import SystemClock
from ckzd.daemon.service import serve
from ckzd.daemon.workers import LocalExecutor
from ckzd.errors import CkzdError
settings = load(Path(sys.argv[1]))
executor = LocalExecutor(settings.daemon, SystemClock(), operation="slow_operation:perform", places={places!r})
try:
    code = serve(settings, executor=executor, once="--once" in sys.argv)
except CkzdError as error:
    print(error, file=sys.stderr)
    code = error.exit_code
assert "torch" not in sys.modules
sys.exit(code)
"""
OPERATION = """
import time
from pathlib import Path
from serving import perform as at_once

def perform(job, device, on_stage):
    here = Path(__file__).parent
    if job.kind == "compress":
        (here / "began").open("a").write(job.checkpoint.stem + "\\n")
        while (here / "wait").exists():
            time.sleep(0.02)
    return at_once(job, device, on_stage)
"""


class Process:
    """A daemon in a process of its own, and the directory that it watches."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.run = place / "runs" / "gpt"
        self.config = place / "ckzd.toml"
        (place / "runs").mkdir()
        (place / "slow_operation.py").write_text(OPERATION)
        self.config.write_text(
            f'[[watch]]\npath = "{place}/runs"\nreplace = true\nkeep_raw = 1\nsettle_seconds = 0.1\n'
            f'[daemon]\nstate_dir = "{place}/state"\nport = 0\ndevices = ["cpu"]\nworkers = 1\nthreads = 1\nnice = 0\n'
        )
        self.process: subprocess.Popen | None = None

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        script = SCRIPT.format(path=sys.path, places=[str(self.place), str(Path(__file__).parent.parent)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(self.config), *arguments],
            env=os.environ | environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self.process

    def write(self, *steps: int) -> None:
        for step in steps:
            write_checkpoint(self.run / f"step_{step}.safetensors")

    def hold(self) -> None:
        (self.place / "wait").touch()

    def release(self) -> None:
        (self.place / "wait").unlink()

    def began(self) -> list[str]:
        file = self.place / "began"
        return file.read_text().split() if file.exists() else []

    def raw(self) -> list[str]:
        return sorted(path.stem for path in self.run.glob("*.safetensors"))

    def status(self) -> dict:
        return status.read_status(load(self.config))

    def states(self) -> dict[str, int]:
        return self.status()["totals"]["checkpoints"]

    def end(self) -> int:
        code = self.process.wait(20)
        self.process.stderr.close()
        return code

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def daemon(tmp_path):
    made = Process(tmp_path)
    yield made
    made.kill()


def test_a_running_daemon_archives_replaces_and_ends_well(daemon, wait_until):
    daemon.start()
    daemon.write(1, 2, 3)
    assert wait_until(lambda: daemon.raw() == ["step_3"], 30)
    assert wait_until(lambda: daemon.states() == {"replaced": 2, "verified": 1}, 10)
    assert daemon.status()["pid"] == daemon.process.pid
    daemon.process.send_signal(signal.SIGTERM)

    assert daemon.end() == 0
    assert daemon.status()["state"] == "stopped"
    assert daemon.states() == {"replaced": 2, "verified": 1}


def test_sigterm_lets_the_running_job_finish(daemon, wait_until):
    daemon.hold()
    daemon.write(1, 2)
    daemon.start()
    assert wait_until(lambda: daemon.began() == ["step_1"], 30)
    daemon.process.send_signal(signal.SIGTERM)
    assert wait_until(lambda: daemon.status()["state"] == "draining", 20)
    daemon.release()

    assert daemon.end() == 0
    assert daemon.began() == ["step_1"]
    assert daemon.states() == {"verified": 1, "settled": 1}


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_a_second_signal_does_not_wait_for_the_job(daemon, wait_until, numbers):
    daemon.hold()
    daemon.write(1)
    daemon.start()
    assert wait_until(lambda: daemon.began() == ["step_1"], 30)
    for number in numbers:
        daemon.process.send_signal(number)
        time.sleep(0.1)

    assert daemon.end() == 0
    assert daemon.states() == {"settled": 1}
    assert daemon.status()["checkpoints"][0]["attempts"] == 0


def test_sigkill_loses_nothing(daemon, wait_until):
    daemon.hold()
    daemon.write(1, 2, 3)
    daemon.start()
    assert wait_until(lambda: daemon.began() == ["step_1"], 30)
    daemon.process.send_signal(signal.SIGKILL)
    assert daemon.end() == -signal.SIGKILL
    assert daemon.raw() == ["step_1", "step_2", "step_3"]

    daemon.release()
    daemon.start()
    assert wait_until(lambda: daemon.raw() == ["step_3"], 30)
    assert wait_until(lambda: daemon.states() == {"replaced": 2, "verified": 1}, 10)


@pytest.mark.parametrize("shared", ["state_dir", "store"])
def test_a_second_daemon_is_refused(daemon, wait_until, tmp_path, shared):
    daemon.write(1)
    daemon.start()
    assert wait_until(lambda: daemon.states() == {"verified": 1}, 30)
    first = daemon.process
    if shared == "store":
        daemon.config.write_text(daemon.config.read_text().replace("/state", "/other-state"))
    second = daemon.start()
    said = second.communicate(timeout=20)[1]
    daemon.process = first

    assert second.returncode == 6
    assert "held by" in said


def test_one_pass_from_the_command_line(daemon):
    daemon.write(1, 2, 3)
    time.sleep(0.2)
    daemon.start("--once")

    assert daemon.end() == 0
    assert daemon.raw() == ["step_3"]


def test_systemd_hears_from_it(daemon, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        daemon.start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="300000")
        heard = []
        while heard.count("WATCHDOG=1") < 3:
            heard.append(listener.recv(200).decode())
        daemon.process.send_signal(signal.SIGTERM)
        while heard[-1] != "STOPPING=1":
            heard.append(listener.recv(200).decode())

    assert daemon.end() == 0
    assert heard[0] == "READY=1"
    assert "STATUS=nothing found yet" in heard


def test_settings_that_watch_nothing_are_refused(daemon):
    daemon.config.write_text("[daemon]\nport = 0\n" + f'state_dir = "{daemon.place}/state"\n')
    daemon.start()
    said = daemon.process.communicate(timeout=20)[1]

    assert daemon.process.returncode == 2
    assert "watch: expected at least one [[watch]]" in said


def test_the_endpoint_is_written_for_others_to_find(daemon, wait_until):
    daemon.start()
    file = daemon.place / "state" / status.ENDPOINT
    assert wait_until(file.exists, 20)

    assert json.loads(file.read_text())["pid"] == daemon.process.pid
