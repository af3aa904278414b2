"""What an event of the executor means: for the journal, the metrics, and for what may go on."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckzd import durable
from ckzd.config import Settings
from ckzd.daemon.clock import Clock
from ckzd.daemon.jobs import Cancelled, Died, Done, Event, Failed, Job, NotStarted, Progress
from ckzd.daemon.journal import Journal
from ckzd.daemon.metrics import Metrics
from ckzd.daemon.states import ARCHIVED, ARCHIVED_AND_THERE, RUNNING, Row, State
from ckzd.daemon.status import STOPPED, replacing_stopped
from ckzd.daemon.stores import Stores
from ckzd.errors import (
    BadCheckpoint,
    CkzdError,
    CorruptArchive,
    MissingBaseModel,
    MissingReference,
    NoSpace,
    NotAccepted,
    SourceChanged,
    StoreLocked,
    VerificationFailed,
)
from ckzd.operations.inspect import KEPT_EXACT, RUINED
from ckzd.stages import Stage

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # of one checkpoint, by failures and deaths of its worker; then a person has to look
MAX_CRASHES = 3  # of the daemon in a row under one job, then it waits longer and longer
FIRST_CRASH_SECONDS, MAX_CRASH_SECONDS = 600.0, 24 * 3600.0
BACKOFF_SECONDS = (30.0, 120.0)  # after the first and the second failed attempt
LOCKED_SECONDS = 30.0  # somebody collects garbage in the store
REFUSED_SECONDS = 3600.0  # a replacement that a hard link or a missing pointer's place forbids
RETRY_REPLACE_SECONDS = 600.0
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 60.0, 900.0
MAX_NOT_STARTED = 3  # in a pass that does not wait
_UNTRUE = (VerificationFailed, CorruptArchive)  # a new archive is not what it should be: replace nothing more
# Of an old one, or what it needs, or of its original, though that has its size and time: that is archived anew
_NO_LONGER_TRUE = (CorruptArchive, MissingReference, SourceChanged)
_VERIFY_REASONS = {
    VerificationFailed: "mismatch",
    CorruptArchive: "corrupt archive",
    MissingReference: "missing reference",
}


_WAITING = "waiting for the worker"
_DURING = {  # after the operation said this, it does that: what `metrics.STAGES` names
    _WAITING: "start", Stage.READ: "read", Stage.ENCODE: "encode", Stage.WRITTEN: "verify", Stage.VERIFIED: "publish",
    Stage.ACCEPT: "accept", Stage.ACCEPTED: "publish",
}  # fmt: skip


@dataclass
class Running:
    """A job in an executor."""

    job: Job
    run: Path | None
    stage: str
    fraction: float
    since: float  # monotonic: when the stage began


@dataclass
class Outcomes:
    """Applies events. Owner: the service's thread."""

    settings: Settings
    journal: Journal
    metrics: Metrics
    stores: Stores
    clock: Clock
    rescan: Callable[[], None]
    running: list[Running] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)  # rows that failed since the start
    damaged: dict[Path, set[str]] = field(default_factory=dict)  # a store, or a run's archives in it -> those lost
    waiting: dict[Path, list[str]] = field(default_factory=dict)  # run -> those whose base model is not here
    without_base_model: dict[Path, str] = field(default_factory=dict)  # run -> why its last base is no delta
    not_started: int = 0  # in a row
    worker_problem: str = ""
    no_space: NoSpace | None = None
    paused_until: float = 0.0  # monotonic
    _pause_seconds: float = FIRST_PAUSE_SECONDS

    def began(self, job: Job, run: Path | None) -> None:
        """A job was given to the executor."""
        self.running.append(Running(job, run, _WAITING, 0.0, self.clock.monotonic()))
        self.metrics.started.labels(job.kind).inc()

    def apply(self, event: Event) -> None:
        """Do what the event asks for."""
        if isinstance(event, Progress):
            self._progress(event)
            return
        self._end_stage(event.job)
        self.stores.measure_again()
        self.running = [running for running in self.running if running.job != event.job]
        if isinstance(event, Done):
            self.not_started, self.worker_problem = 0, ""
            done = {
                "compress": self._archived, "replace": self._replaced, "clean": self._cleaned, "prune": self._pruned,
                "check": self._checked,
            }  # fmt: skip
            done[event.job.kind](event.job, event.report)
        elif isinstance(event, Failed):
            self._failed(event)
        elif isinstance(event, Died):
            self._died(event)
        else:
            self._not_begun(event)

    def is_paused(self) -> bool:
        """Whether the file system was too full a short while ago."""
        return self.clock.monotonic() < self.paused_until

    def after_crash(self, row: Row) -> None:
        """The daemon died under this job. After too often the others go first: it may be what kills us, or not."""
        if row.crashes >= MAX_CRASHES:
            wait = min(MAX_CRASH_SECONDS, FIRST_CRASH_SECONDS * 2 ** (row.crashes - MAX_CRASHES))
            now = self.clock.time()
            self.journal.put_off(row.number, now, f"the daemon died {row.crashes} times at it", now + wait)

    # -- it went well -------------------------------------------------------------------------------------------

    def _archived(self, job: Job, report: dict[str, Any]) -> None:
        if not report["verified"]:
            problem = "the archive was not verified"
            self._failed(Failed(job, VerificationFailed(job.checkpoint, problem, hint="report this")))
            return
        self._pause_seconds, self.no_space, self.paused_until = FIRST_PAUSE_SECONDS, None, 0.0
        row = self._row(job)
        if row is None:
            return
        now = self.clock.time()
        reference = Path(report["reference"]) if report["reference"] else None
        self.journal.verified(
            row.number, now, archive=Path(report["archive"]), reference=reference, nbytes=report["archive_bytes"],
            seconds=report["seconds"], again=bool(report["already"] and row.in_place_of_replaced),
        )  # fmt: skip
        self.stores.prune_again(job.store)
        self.metrics.checkpoints.labels("already" if report["already"] else "archived").inc()
        self.metrics.last_success.set(now)
        if not report["already"]:
            self.metrics.bytes_read.inc(report["original_bytes"])
            self.metrics.bytes_written.inc(report["archive_bytes"])
            self.metrics.ratio.observe(report["ratio"])
            self.metrics.archives.labels(report["effort"]).inc()
            self.metrics.proxy(report["preset"], report)
            self.metrics.ruined.labels(self.settings.watch_name_of(job.checkpoint)).inc(report["ruined"])
        place = Path(report["archive"]).parent
        for found in self.damaged.values():  # what a check of the whole store has found there
            found -= {archive for archive in found if Path(archive).parent == place}
        self._archive_with_others(row, report)
        self._heal(job, place, report["damaged"])
        self._tell_base_model(job, report)
        told = {name: report[name] for name in ("checkpoint", "archive", "ratio", "seconds")}
        log.info("already archived" if report["already"] else "archived", extra=told)
        if report["kept_exact"]:
            log.warning(KEPT_EXACT, extra={"checkpoint": report["checkpoint"]})
        if report["ruined"]:
            log.warning(RUINED, extra={"checkpoint": report["checkpoint"]})

    def _archive_with_others(self, row: Row, report: dict[str, Any]) -> None:
        """Files of the same checkpoint that have another archive, made before this one was there, get this one too."""
        archive = Path(report["archive"])
        for other in self.journal.rows(run=row.run, states=ARCHIVED_AND_THERE):
            if str(other.path) in report["members"] and other.archive != archive:
                self.journal.give_back(other.number, self.clock.time())

    def _heal(self, job: Job, place: Path, damaged: Sequence[str]) -> None:
        """These archives cannot be restored from: say so, and archive anew what is left of the originals.

        Those that stand in their places are compressed again, and those in the trash are put back by a cleaning.
        """
        found, known = set(damaged), self.told_damaged
        self.damaged[place] = found
        self.metrics.damaged_archives.set(len(self.told_damaged))
        if new := found - known:
            log.error("archives are damaged", extra={"place": str(place), "archives": ", ".join(sorted(new))})
            self.stores.mark_dirty(job.store)
        for row in self.journal.rows(states=ARCHIVED_AND_THERE) if found else ():
            if str(row.archive) in found and row.number != job.number:
                self.journal.give_back(row.number, self.clock.time())

    def _tell_base_model(self, job: Job, report: dict[str, Any]) -> None:
        """Why a base is no delta against the model that the watch names, and which archives wait for theirs."""
        run = job.checkpoint.parent
        if report["without_base_model"]:
            self.without_base_model[run] = report["without_base_model"]
        elif not report["already"]:
            self.without_base_model.pop(run, None)
        self.waiting[run] = list(report["waiting"])
        if report["waiting"]:
            log.warning("archives wait for their base model", extra={"run": str(run), "count": len(report["waiting"])})

    @property
    def told_damaged(self) -> set[str]:
        """All archives that cannot be restored from, as far as is known."""
        return set().union(*self.damaged.values())

    def _checked(self, job: Job, report: dict[str, Any]) -> None:
        self.stores.checked(job.store, well=True)
        for outcome, count in report["outcomes"].items():
            self.metrics.checked.labels(outcome).inc(count)
        known = self.told_damaged
        self.damaged = {place: found for place, found in self.damaged.items() if not place.is_relative_to(job.store)}
        self.damaged[job.store] = known & set(report["damaged"])
        self._heal(job, job.store, report["damaged"])
        log.info("checked", extra={"store": str(job.store), **report["outcomes"]})

    def _replaced(self, job: Job, report: dict[str, Any]) -> None:
        self.metrics.checkpoints.labels("replaced").inc()
        self.metrics.reclaimed_bytes.inc(report["reclaimed_bytes"])
        row = self._row(job)
        if row is not None and row.state in ARCHIVED_AND_THERE:
            self.journal.replaced(row.number, self.clock.time(), report["reclaimed_bytes"])
            self._replaced_with(row)
        log.info("replaced", extra={"checkpoint": str(job.checkpoint), "reclaimed_bytes": report["reclaimed_bytes"]})

    def _replaced_with(self, row: Row) -> None:
        """Files of the same checkpoint, which made way with this one."""
        for other in self.journal.rows(run=row.run, states=ARCHIVED_AND_THERE):
            if other.archive == row.archive and not os.path.lexists(other.path):
                self.journal.replaced(other.number, self.clock.time(), 0)

    def _cleaned(self, job: Job, report: dict[str, Any]) -> None:
        self.metrics.freed_bytes.inc(report["freed_bytes"])
        rescued = set(report["rescued"])
        for row in self.journal.rows(states=ARCHIVED_AND_THERE | {State.REPLACED}) if rescued else ():
            if str(row.path) in rescued:
                if row.state is State.REPLACED:
                    self.journal.stands_again(row.number, self.clock.time())
                self.journal.give_back(row.number, self.clock.time())
        self.stores.cleaned(job.store, report["freed_bytes"])
        self.stores.prune_again(job.store)
        if report["freed_bytes"]:
            self.paused_until = 0.0  # what there was no room for may fit now
        self.rescan()

    def _pruned(self, job: Job, report: dict[str, Any]) -> None:
        gone, slim = set(report["archives"]), report["slimmed"]
        for row in self.journal.rows(states=ARCHIVED) if gone or slim else ():
            if str(row.archive) in gone:
                self.journal.forget(row.number)
            elif str(row.archive) in slim:
                self.journal.resized(row.number, slim[str(row.archive)])
        self.metrics.checkpoints.labels("pruned").inc(len(gone))
        self.metrics.checkpoints.labels("moments dropped").inc(len(slim))
        self.metrics.pruned_bytes.inc(report["freed_bytes"])
        if report["over_quota_bytes"]:
            fields = {name: report[name] for name in ("store", "quota_bytes", "over_quota_bytes")}
            log.warning("what is kept takes more than the store's quota", extra=fields)
        self.stores.pruned(job.store, report["over_quota_bytes"])
        if gone or slim:
            told = {
                "store": report["store"],
                "archives": len(gone),
                "slimmed": len(slim),
                "freed": report["freed_bytes"],
            }
            log.info("pruned", extra=told)
            self.rescan()

    # -- it did not ---------------------------------------------------------------------------------------------

    def _failed(self, event: Failed) -> None:
        job, error = event.job, event.error
        kind = type(error).__name__
        self.metrics.failed(kind)
        log.error("job failed", extra={"job": job.kind, "checkpoint": str(job.checkpoint), "error": str(error)})
        if event.detail:
            log.error("%s", event.detail)
        if type(error) in _VERIFY_REASONS:
            self.metrics.verify_failures.labels(_VERIFY_REASONS[type(error)]).inc()
        if isinstance(error, _UNTRUE) and job.kind == "compress":
            self._stop_replacing(error)
        if isinstance(error, NoSpace):
            self._pause(error)
        if job.kind == "compress":
            self._compress_failed(job, error)
        elif job.kind == "replace":
            self._replace_failed(job, error)
        else:
            self._wait_with(job, shortly=isinstance(error, StoreLocked))

    def _compress_failed(self, job: Job, error: CkzdError) -> None:
        row = self._row(job)
        if row is None:
            return
        now = self.clock.time()
        if isinstance(error, NoSpace):
            self.journal.give_back(row.number, now)
        elif isinstance(error, StoreLocked):
            self.journal.give_back(row.number, now, not_before=now + LOCKED_SECONDS)
        elif isinstance(error, MissingBaseModel):  # its archive is to be made anew against that
            self.journal.give_back(row.number, now, not_before=now + RETRY_REPLACE_SECONDS)
        elif isinstance(error, NotAccepted):  # to ask the same of the same bytes again would be to haggle
            self.failed.add(row.number)
            self._quarantine(row, str(error))
            self.rescan()
        else:
            self._count_failure(row, str(error))
            self.rescan()

    def _replace_failed(self, job: Job, error: CkzdError) -> None:
        """The original is in its place, or the store's trash says how to get it there."""
        self.stores.mark_dirty(job.store)
        self.failed.add(job.number)
        row = self._row(job)
        is_untrue = isinstance(error, _NO_LONGER_TRUE) and not isinstance(error, MissingBaseModel)  # that only waits
        if is_untrue and row is not None and row.state in ARCHIVED_AND_THERE:
            self.journal.give_back(job.number, self.clock.time(), not_before=self.clock.time() + RETRY_REPLACE_SECONDS)
            self.rescan()
            return
        wait = REFUSED_SECONDS if isinstance(error, BadCheckpoint) else RETRY_REPLACE_SECONDS
        if row is not None:
            self.journal.note(job.number, str(error), self.clock.time() + wait)
        self.rescan()

    def _died(self, event: Died) -> None:
        job = event.job
        self.metrics.failed(event.reason)
        self.metrics.restarts.labels(event.reason).inc()
        log.error("worker died", extra={"checkpoint": str(job.checkpoint), "job": job.kind, "why": event.detail})
        problem = f"the worker died: {event.detail}"
        if job.kind == "compress":
            row = self._row(job)
            if row is not None:
                self._count_failure(row, problem)
        elif job.kind == "replace":
            self._replace_failed(job, CkzdError(job.checkpoint, problem))
        else:
            self._wait_with(job)

    def _not_begun(self, event: Cancelled | NotStarted) -> None:
        job = event.job
        if isinstance(event, NotStarted):
            self.not_started += 1
            self.worker_problem = f"a worker does not start: {event.detail}"
            self.metrics.failed("not started")
            self.metrics.restarts.labels("not started").inc()
            log.error("worker does not start", extra={"why": event.detail})
        elif job.kind == "replace":
            self.stores.mark_dirty(job.store)
        if job.kind == "compress" and self._row(job) is not None:
            self.journal.give_back(job.number, self.clock.time())

    def _wait_with(self, job: Job, *, shortly: bool = False) -> None:
        """It cleans, prunes or checks: that can be done later."""
        if job.kind == "prune":
            self.stores.wait_with_pruning(job.store, shortly=shortly)
        elif job.kind == "check":
            self.stores.checked(job.store, well=False)
        else:
            self.stores.wait_with_cleaning(job.store)

    def _count_failure(self, row: Row, problem: str) -> None:
        self.failed.add(row.number)
        now = self.clock.time()
        if row.attempts + 1 < MAX_ATTEMPTS:
            self.journal.failed(row.number, now, problem, not_before=now + BACKOFF_SECONDS[row.attempts])
            self.metrics.checkpoints.labels("failed").inc()
            return
        self._quarantine(row, problem)

    def _quarantine(self, row: Row, problem: str) -> None:
        self.journal.quarantined(row.number, self.clock.time(), problem)
        self.metrics.checkpoints.labels("quarantined").inc()
        log.error(
            "checkpoint quarantined: left raw and not tried again until it is written anew (or touched)",
            extra={"checkpoint": str(row.path), "error": problem},
        )

    def _pause(self, error: NoSpace) -> None:
        """Wait for somebody to make room. Nothing is deleted to get it."""
        self.no_space = error
        self.paused_until = self.clock.monotonic() + self._pause_seconds
        self._pause_seconds = min(MAX_PAUSE_SECONDS, 2 * self._pause_seconds)

    def _stop_replacing(self, error: CkzdError) -> None:
        if replacing_stopped(self.settings) is not None:
            return
        file = self.settings.daemon.state_dir / STOPPED
        text = (
            f"replacing is stopped: {error}\n\nEvery original stays where it is; archiving goes on. Find out why an"
            f" archive was not what it should be\n(`ckzd verify`; disk, memory), then let it go on with: rm {file}\n"
        )
        with durable.write_atomically(file) as out:
            out.write(text.encode(errors="replace"))
        log.critical("replacing is stopped until a person acknowledges", extra={"acknowledge": f"rm {file}"})

    # -- inside -------------------------------------------------------------------------------------------------

    def _row(self, job: Job) -> Row | None:
        """The job's row; None when the scan has found meanwhile that the checkpoint is gone or rewritten."""
        try:
            row = self.journal.row(job.number)
        except KeyError:
            return None
        return row if job.kind != "compress" or row.state in RUNNING else None

    def _progress(self, event: Progress) -> None:
        for running in self.running:
            if running.job == event.job:
                if running.stage != event.stage and event.job.kind == "compress":
                    self._end_stage(event.job)
                    running.since = self.clock.monotonic()
                running.stage, running.fraction = event.stage, event.fraction
        if event.stage == Stage.WRITTEN and event.job.kind == "compress":
            row = self._row(event.job)
            if row is not None:
                self.journal.written(row.number, self.clock.time())

    def _end_stage(self, job: Job) -> None:
        """The other kinds of jobs are one stage each."""
        for running in self.running:
            if running.job == job:
                stage = job.kind if job.kind != "compress" else _DURING.get(running.stage, "other")
                self.metrics.stage(stage, self.clock.monotonic() - running.since)
