"""Workers are real processes here: they are killed, they hang, and only their own job suffers."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from priorities import priorities_of

from ckzd.config import DaemonSettings
from ckzd.daemon import workers as workers_module
from ckzd.daemon.clock import SystemClock
from ckzd.daemon.jobs import Cancelled, Compress, Died, Done, Failed, NotStarted, Progress, Replace
from ckzd.daemon.workers import LocalExecutor
from ckzd.errors import BadCheckpoint

OPERATION = """
import os, signal, subprocess, sys, time
from pathlib import Path
from ckzd.errors import BadCheckpoint
from ckzd.pace import pace

def perform(job, device, on_stage):
    what = job.checkpoint.name
    on_stage("read", 0.5)
    if what == "ckzd error":
        raise BadCheckpoint(job.checkpoint, "half-written", hint="wait")
    if what == "bug":
        raise TypeError("no such thing")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(3)
    if what in ("hang", "stubborn"):
        if what == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(job.store, "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    environment = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NOTIFY_SOCKET")}
    oom = Path("/proc/self/oom_score_adj").read_text().strip()
    return {"pid": os.getpid(), "pace": pace(), "device": device, "oom": oom, "torch": "torch" in sys.modules,
            "session": os.getsid(0), "path": sys.path, **environment}
"""
SETTINGS = DaemonSettings(devices=("cpu",), workers=2, threads=1, nice=0, state_dir=Path("/nowhere"))


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "fake_operation.py").write_text(OPERATION)
    return tmp_path


@pytest.fixture
def make_executor(place):
    made = []

    def _make(settings=SETTINGS, operation="fake_operation:perform") -> LocalExecutor:
        made.append(LocalExecutor(settings, SystemClock(), operation=operation, places=[str(place)]))
        return made[-1]

    yield _make
    for executor in made:
        executor.close()


@pytest.fixture
def job(place):
    numbers = iter(range(1, 100))
    return lambda what: Compress(place, Path("/run") / what, next(numbers))


def wait_for(executor, count=1, seconds=20.0):
    """The next `count` events that end a job."""
    found, deadline = [], time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        found += [event for event in executor.events(0.1) if not isinstance(event, Progress)]
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_job_is_done_by_a_polite_process_of_its_own(make_executor, job, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "@not-for-workers")
    executor = make_executor()
    executor.submit(first := job("ok"))
    (done,) = wait_for(executor)

    assert isinstance(done, Done)
    assert done.job == first
    assert done.report["pid"] not in (os.getpid(), None)
    assert done.report["device"] == "cpu"
    assert done.report["OMP_NUM_THREADS"] == "1"
    assert done.report["CUDA_VISIBLE_DEVICES"] == ""
    assert done.report["NOTIFY_SOCKET"] is None
    assert done.report["session"] == done.report["pid"]
    assert done.report["oom"] in ("500", "0")
    assert "" not in done.report["path"]


def test_a_worker_has_no_more_threads_than_there_are_idle_cores(make_executor, job):
    burn = "import time; time.sleep(0.2)\nwhile True: pass"
    hogs = [subprocess.Popen([sys.executable, "-c", burn], process_group=0) for _ in range(2 * os.cpu_count())]
    try:
        executor = make_executor(SETTINGS.model_copy(update={"threads": 7}))
        executor.submit(job("ok"))
        (done,) = wait_for(executor, seconds=60.0)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert done.report["OMP_NUM_THREADS"] == "1"


def test_a_worker_keeps_to_the_limit_of_the_disk_and_has_the_time_for_it(make_executor, job):
    executor = make_executor(SETTINGS.model_copy(update={"disk_bytes_per_second": 2e6}))
    executor.submit(job("ok"))
    (done,) = wait_for(executor)
    assert done.report["pace"] == 2e6
    large = replace(job("ok"), nbytes=2_000_000)
    assert executor._limit_seconds(large) == make_executor()._limit_seconds(large) + 10.0


def test_an_accept_command_has_its_own_time(make_executor, job):
    executor = make_executor()
    asking = replace(job("ok"), accept_command=("eval.py",), accept_seconds=600.0)
    assert executor._limit_seconds(asking) == executor._limit_seconds(job("ok")) + 600.0


def test_a_worker_is_used_again_and_told_stages(make_executor, job):
    executor = make_executor()
    events = []
    for _ in range(2):
        executor.submit(job("ok"))
        deadline = time.monotonic() + 20
        while not any(isinstance(event, Done) for event in events[-1:]) and time.monotonic() < deadline:
            events += executor.events(0.1)
        events.append(None)
    pids = {event.report["pid"] for event in events if isinstance(event, Done)}

    assert len(pids) == 1
    assert [event.stage for event in events if isinstance(event, Progress)] == ["read", "read"]


def test_errors_come_back_whole(make_executor, job):
    executor = make_executor()
    executor.submit(job("ckzd error"))
    executor.submit(job("bug"))
    events = {event.job.checkpoint.name: event for event in wait_for(executor, 2)}

    error = events["ckzd error"].error
    assert isinstance(error, BadCheckpoint)
    assert (error.problem, error.hint) == ("half-written", "wait")
    assert isinstance(events["bug"], Failed)
    assert "unexpected TypeError: no such thing" in events["bug"].error.problem
    assert "Traceback" in events["bug"].detail


def test_a_killed_worker_takes_only_its_own_job_with_it(make_executor, job):
    executor = make_executor()
    executor.submit(job("killed"))
    executor.submit(job("ok"))
    events = {event.job.checkpoint.name: event for event in wait_for(executor, 2)}
    executor.submit(job("ok"))
    (after,) = wait_for(executor)

    assert (events["killed"].reason, events["killed"].detail) == ("signal", "killed by SIGKILL")
    assert isinstance(events["ok"], Done)
    assert isinstance(after, Done)
    assert sum(worker.restarts for worker in executor.workers()) == 1


def test_a_worker_that_exits_is_a_death(make_executor, job):
    executor = make_executor()
    executor.submit(job("exit"))
    (died,) = wait_for(executor)

    assert (died.reason, died.detail) == ("exit", "exit status 3")


@pytest.fixture
def hanging(make_executor, job, place, wait_until, monkeypatch):
    """An executor with a job that hangs, and the ids of its process and of that one's child."""
    monkeypatch.setattr(workers_module, "TERM_GRACE_SECONDS", 0.3)

    def _start(what: str, **changes):
        executor = make_executor(SETTINGS.model_copy(update={"workers": 1, **changes}))
        executor.submit(job(what))
        pids = place / "pids"
        assert wait_until(lambda: executor.events(0.02) is None or (pids.exists() and pids.read_text()), 30.0)
        return executor, [int(pid) for pid in pids.read_text().split()]

    return _start


@pytest.mark.parametrize(("nice", "policy"), [(19, os.SCHED_IDLE), (7, os.SCHED_OTHER)])
def test_a_worker_and_all_that_it_starts_stand_back(hanging, nice, policy):
    _, pids = hanging("hang", nice=nice)
    assert len(pids) == 2
    for found in map(priorities_of, pids):
        assert (found.nice, found.policy) == (nice, policy)
        assert found.group_nice in (nice, None)
        assert found.idle_io == (nice == 19)


@pytest.mark.parametrize("what", ["hang", "stubborn"])
def test_a_job_over_its_time_is_ended_with_all_its_children(hanging, wait_until, what):
    executor, pids = hanging(what)
    executor._slots[0].clock._spent = 1800.0
    (died,) = wait_for(executor)

    assert isinstance(died, Died)
    assert (died.reason, died.detail) == ("time limit", "took longer than 1800 s")
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_the_time_limit_grows_with_the_checkpoint(make_executor, job):
    executor = make_executor(SETTINGS.model_copy(update={"job_seconds": 10.0, "job_bytes_per_second": 100.0}))

    assert executor._limit_seconds(replace(job("ok"), nbytes=1000)) == 20.0


def test_a_worker_that_cannot_load_is_not_the_job_s_fault(make_executor, job):
    executor = make_executor(SETTINGS.model_copy(update={"workers": 1}), operation="no_such_module:perform")
    executor.submit(job("ok"))
    (event,) = wait_for(executor)

    assert isinstance(event, NotStarted)
    assert executor.free() == 0  # backs off
    assert [worker.up for worker in executor.workers()] == [False]


def test_a_system_without_room_for_processes_is_not_the_job_s_fault(make_executor, job, monkeypatch):
    def refuse(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(workers_module.WorkerProcess, "start", refuse)
    executor = make_executor()
    executor.submit(job("ok"))

    assert isinstance(executor.events(0.0)[0], NotStarted)


def test_a_gpu_is_for_compressing(clock, monkeypatch):
    monkeypatch.setattr(workers_module.LocalExecutor, "_start", lambda *_: None)
    executor = LocalExecutor(SETTINGS.model_copy(update={"devices": ("cpu", "cuda:1"), "workers": 1}), clock)
    executor.submit(Replace(Path("/store"), Path("/run/a")))
    executor.submit(Compress(Path("/store"), Path("/run/b")))

    assert {worker.name: worker.job.kind for worker in executor.workers()} == {
        "cpu-0": "replace",
        "cuda:1-0": "compress",
    }


def test_back_off_grows_and_ends(clock, job):
    executor = LocalExecutor(SETTINGS.model_copy(update={"workers": 1}), clock, operation="x:y")
    (slot,) = executor._slots
    delays = []
    for _ in range(12):
        slot.job = job("ok")
        executor._not_started(slot, clock.monotonic(), "x")
        delays.append(slot.not_before - clock.monotonic())

    assert delays[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(delays) == 300.0


def test_an_idle_worker_ends_and_another_is_started_when_needed(make_executor, job, monkeypatch, wait_until):
    monkeypatch.setattr(workers_module, "IDLE_SECONDS", 0.0)
    executor = make_executor(SETTINGS.model_copy(update={"workers": 1}))
    pids = []
    for _ in range(2):
        executor.submit(job("ok"))
        (done,) = wait_for(executor)
        pids.append(done.report["pid"])
        assert wait_until(lambda: not executor.events(0.0) and executor.free() == 1 and not is_alive(pids[-1]))

    assert pids[0] != pids[1]
    assert [worker.restarts for worker in executor.workers()] == [0]


def test_closing_ends_running_jobs_and_tells_which(hanging, wait_until):
    executor, pids = hanging("hang")
    (cancelled,) = executor.close()

    assert isinstance(cancelled, Cancelled)
    assert cancelled.job.checkpoint.name == "hang"
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_a_worker_dies_with_its_parent(place, wait_until):
    script = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from ckzd.config import DaemonSettings
from ckzd.daemon.clock import SystemClock
from ckzd.daemon.jobs import Compress
from ckzd.daemon.workers import LocalExecutor
settings = DaemonSettings(devices=("cpu",), workers=1, threads=1, state_dir=Path("/nowhere"))
executor = LocalExecutor(settings, SystemClock(), operation="fake_operation:perform", places=[{str(place)!r}])
executor.submit(Compress(Path({str(place)!r}), Path("/run/hang")))
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    assert wait_until(lambda: (place / "pids").exists() and (place / "pids").read_text(), 20.0)
    worker = int((place / "pids").read_text().split()[0])
    grandchild = int((place / "pids").read_text().split()[1])
    parent.send_signal(signal.SIGKILL)
    parent.wait()

    assert wait_until(lambda: not is_alive(worker))
    os.kill(grandchild, signal.SIGKILL)  # started by the test's operation without such care


def test_a_worker_whose_parent_died_before_it_could_ask_ends_at_once():
    script = "from ckzd.daemon.worker import die_with_parent; die_with_parent(1); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {script}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (1, "")
