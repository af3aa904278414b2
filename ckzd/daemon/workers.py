"""The local executor: one supervised process and one pipe for each worker, no shared queue, no shared lock.

A worker may be killed at any time (memory, a bug in a kernel, an operator) and takes only its own job with it.
"""

import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection

from ckzd.config import DaemonSettings
from ckzd.daemon import devices
from ckzd.daemon.clock import Clock
from ckzd.daemon.jobs import Cancelled, Compress, Died, Event, Job, NotStarted, Progress, WorkerStatus
from ckzd.daemon.processes import Boot, WorkerProcess
from ckzd.daemon.worker import READY
from ckzd.priority import FairClock

log = logging.getLogger(__name__)

OPERATION = "ckzd.daemon.perform:perform"
PASSES = 10.0  # of a checkpoint's bytes over the disk: read some four times, written as scratch and reconstructions
TERM_GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL of a job over its time
IDLE_SECONDS = 30.0  # an idle worker ends: its memory (and its CUDA context) is training's
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 300.0


@dataclass
class _Slot:
    """Place for one worker. Owner: the thread that calls the executor."""

    name: str
    device: str
    worker: WorkerProcess | None = None
    ready: bool = False
    left_at: float | None = None  # its pipe was closed then, it ends by itself
    job: Job | None = None
    clock: FairClock | None = None  # of the job: its limit does not count what others take
    terminated_at: float | None = None
    idle_since: float = 0.0
    deaths: int = 0  # in a row
    restarts: int = 0
    not_before: float = 0.0

    def is_free(self, now: float) -> bool:
        return self.job is None and self.left_at is None and now >= self.not_before


class LocalExecutor:
    """Executor on this machine."""

    def __init__(
        self,
        settings: DaemonSettings,
        clock: Clock,
        *,
        operation: str = OPERATION,
        places: Sequence[str] = (),
        log_as_json: bool = False,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._operation = operation
        self._places = tuple(places)  # further directories on the workers' module path
        self._log_as_json = log_as_json
        self._gpus = devices.GpuWatch()
        names = devices.slots(settings)
        self._slots = [_Slot(f"{device}-{names[:i].count(device)}", device) for i, device in enumerate(names)]

    def free(self) -> int:
        """How many jobs `submit` would take now."""
        now = self._clock.monotonic()
        return sum(slot.is_free(now) for slot in self._slots)

    def workers(self) -> list[WorkerStatus]:
        """The slots as they stand."""
        return [WorkerStatus(slot.name, not slot.deaths, slot.job, slot.restarts) for slot in self._slots]

    def submit(self, job: Job) -> None:
        """Give the job to a free worker, starting one if needed."""
        now = self._clock.monotonic()
        free = [slot for slot in self._slots if slot.is_free(now)]
        slot = max(free, key=lambda slot: (_suits(slot, job), slot.worker is not None))
        slot.job = job
        slot.terminated_at = None
        if slot.worker is None:
            try:
                self._start(slot)
            except OSError as error:
                log.warning("worker cannot be started", extra={"worker": slot.name, "error": str(error)})
        if slot.worker is not None:
            slot.clock = FairClock(slot.worker.process.pid)
            slot.worker.send(job)

    def events(self, timeout_seconds: float) -> list[Event]:
        """What has happened since, waiting for it at most so long."""
        connection.wait([slot.worker.pipe for slot in self._slots if _listens(slot) and slot.worker], timeout_seconds)
        now = self._clock.monotonic()
        found: list[Event] = []
        for slot in self._slots:
            found += self._read(slot, now)
            found += self._check(slot, now)
        return found

    def close(self) -> list[Event]:
        """End everything at once."""
        cancelled: list[Event] = [Cancelled(slot.job) for slot in self._slots if slot.job is not None]
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.bury()
            slot.worker, slot.job = None, None
        return cancelled

    def _limit_seconds(self, job: Job) -> float:
        pace = self._settings.disk_bytes_per_second
        ours = self._settings.job_seconds + job.nbytes / self._settings.job_bytes_per_second
        ours += PASSES * job.nbytes / pace if pace is not None else 0.0
        return ours + job.accept_seconds if isinstance(job, Compress) and job.accept_command is not None else ours

    def _start(self, slot: _Slot) -> None:
        taken = {worker.placement.environment.get("CUDA_VISIBLE_DEVICES", "") for worker in self._living()}
        placement = devices.place(slot.device, self._settings, self._gpus, frozenset(taken))
        pace = self._settings.disk_bytes_per_second
        boot = Boot(self._operation, self._settings.nice, self._places, self._log_as_json, pace)
        slot.worker = WorkerProcess.start(placement, boot)
        slot.ready, slot.left_at = False, None

    def _living(self) -> list[WorkerProcess]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    def _read(self, slot: _Slot, now: float) -> list[Event]:
        if slot.worker is None or slot.left_at is not None:
            return []
        events: list[Event] = []
        for message in slot.worker.messages():
            if message == READY:
                slot.ready, slot.deaths = True, 0
                continue
            events.append(message)
            if not isinstance(message, Progress):
                slot.job, slot.idle_since = None, now
        return events

    def _check(self, slot: _Slot, now: float) -> list[Event]:
        if slot.worker is None:
            return self._not_started(slot, now, "the system has no room for a process") if slot.job else []
        if slot.worker.has_ended():
            return self._ended(slot, now)
        if slot.job is not None:
            self._enforce_limit(slot, slot.worker, now)
        elif slot.left_at is not None:
            if now >= slot.left_at + TERM_GRACE_SECONDS:
                slot.worker.signal(signal.SIGKILL)
        elif now >= slot.idle_since + IDLE_SECONDS or _is_borrowed(slot):
            slot.worker.pipe.close()
            slot.left_at = now
        return []

    def _enforce_limit(self, slot: _Slot, worker: WorkerProcess, now: float) -> None:
        assert slot.job is not None
        assert slot.clock is not None
        if slot.terminated_at is None and slot.clock.seconds() >= self._limit_seconds(slot.job):
            log.warning("job is over its time", extra={"worker": slot.name, "job": str(slot.job)})
            slot.terminated_at = now
            worker.signal(signal.SIGTERM)
        elif slot.terminated_at is not None and now >= slot.terminated_at + TERM_GRACE_SECONDS:
            worker.signal(signal.SIGKILL)

    def _ended(self, slot: _Slot, now: float) -> list[Event]:
        assert slot.worker is not None
        status, job, was_ready = slot.worker.bury(), slot.job, slot.ready
        slot.worker, slot.job, was_asked = None, None, slot.left_at is not None
        slot.left_at = None
        if was_asked:
            return []
        slot.restarts += 1
        if job is None:
            return []
        if not was_ready and slot.terminated_at is None:
            slot.job = job
            return self._not_started(
                slot, now, f"exit status {status} before it was ready; see its messages in the log"
            )
        if slot.terminated_at is not None:
            return [Died(job, "time limit", f"took longer than {self._limit_seconds(job):.0f} s")]
        if status < 0:
            return [Died(job, "signal", f"killed by {signal.Signals(-status).name}")]
        return [Died(job, "exit", f"exit status {status}")]

    def _not_started(self, slot: _Slot, now: float, detail: str) -> list[Event]:
        job, slot.job = slot.job, None
        assert job is not None
        slot.not_before = now + min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**slot.deaths)
        slot.deaths += 1
        return [NotStarted(job, detail)]


def _suits(slot: _Slot, job: Job) -> bool:
    """A GPU is for compressing; everything else is reading and renaming."""
    return (slot.device != "cpu") == (job.kind == "compress")


def _listens(slot: _Slot) -> bool:
    return slot.worker is not None and slot.left_at is None


def _is_borrowed(slot: _Slot) -> bool:
    """On a GPU that was idle when the worker started: given back after each job, and asked for again."""
    return slot.device == "auto" and slot.worker is not None and slot.worker.placement.device != "cpu"
