"""Which jobs may begin now: one at a time for a run, replacing before compressing, cleaning before replacing."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ckzd.base_models import is_part_of, why_needed
from ckzd.chains import read_manifest
from ckzd.config import Settings
from ckzd.daemon import plan
from ckzd.daemon.backlog import Backlog
from ckzd.daemon.clock import Clock
from ckzd.daemon.identity import fingerprint
from ckzd.daemon.jobs import Compress, Job, Prune, Replace
from ckzd.daemon.journal import Journal
from ckzd.daemon.metrics import Metrics
from ckzd.daemon.outcomes import Outcomes
from ckzd.daemon.pressure import DiskPressure
from ckzd.daemon.protect import Protection
from ckzd.daemon.pruning import Ruled
from ckzd.daemon.scan import Run
from ckzd.daemon.settle import Rule
from ckzd.daemon.states import ARCHIVED, ARCHIVED_AND_THERE, Row, State
from ckzd.daemon.status import effort_of, replacing_stopped
from ckzd.daemon.stores import PRUNE_SECONDS, Stores
from ckzd.defaults import Effort
from ckzd.errors import CkzdError
from ckzd.formats.listing import is_text
from ckzd.operations.originals import content_of
from ckzd.operations.room import FREE_CHECKPOINTS

PATIENCE_SETTLES = 10.0  # settle times that files wait for others which may be one checkpoint with them


class Chooser:
    """Decides from the last scan, the journal and what is running."""

    def __init__(
        self,
        *,
        settings: Settings,
        journal: Journal,
        stores: Stores,
        outcomes: Outcomes,
        metrics: Metrics,
        clock: Clock,
        rule: Rule,
        once: bool,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._stores = stores
        self._outcomes = outcomes
        self._metrics = metrics
        self._clock = clock
        self._once = once
        self._protection = Protection(rule)
        self._served: dict[Path, float] = {}  # run -> when it last had its turn
        self._backlog = Backlog()
        self._pressure = DiskPressure(clock)
        self._why: dict[Path, dict[Path, str]] = {}  # run -> checkpoint -> as its last turn found it

    @property
    def why(self) -> dict[Path, str]:
        """Checkpoint -> why it stays as it is."""
        return {checkpoint: reason for reasons in self._why.values() for checkpoint, reason in reasons.items()}

    @property
    def behind(self) -> frozenset[Path]:
        """Runs that save faster than they are archived."""
        return self._backlog.behind

    def jobs(self, runs: Mapping[Path, Run]) -> Iterator[tuple[Job, Path | None]]:
        """Jobs that could begin now, with their run; ask for the next one only after the last was begun."""
        self._why = {run: reasons for run, reasons in self._why.items() if run in runs}
        self._backlog.forget_all_but(runs.keys())
        for run in runs.values():
            self._stores.keep_free(run.store, run.path, self._min_free(run))
        cleaning = self._stores.to_clean()
        urgent = [job for job in cleaning if not self._once or self._stores.is_dirty(job.store)]
        yield from self._clean(urgent)
        if not self._once and self._stands_back():
            return
        yield from self._prune(runs.values(), late_seconds=PRUNE_SECONDS)
        busy = False
        for run in sorted(runs.values(), key=lambda run: self._served.get(run.path, 0.0)):
            if not any(running.run == run.path for running in self._outcomes.running):
                job = self._replacement(run) or self._compression(run)
                if job is not None:
                    self._served[run.path] = self._clock.monotonic()
                    busy = True
                    yield job, run.path
        if self._once and not self._outcomes.running:  # a pass that does not wait empties the trash at its end
            for cleaned in self._clean([job for job in cleaning if job not in urgent]):
                busy = True
                yield cleaned
        if not busy:
            yield from self._prune(runs.values())
        if not (self._once or self._outcomes.running or self._outcomes.is_paused()):
            yield from ((job, None) for job in self._checks(runs.values()))

    def _stands_back(self) -> bool:
        """Whether others need the disk now: what runs goes on, with idle priority."""
        holds_back = self._pressure.holds_back(we_run=bool(self._outcomes.running))
        self._metrics.disk_busy.set(holds_back)
        return holds_back

    def _checks(self, runs: Collection[Run]) -> Iterator[Job]:
        """What is read back while there is nothing else to do."""
        by_store: dict[Path, list[Path]] = {}
        for run in runs:
            by_store.setdefault(run.store, []).append(run.path)
        largest = max((row.original_bytes for row in self._journal.rows(states=ARCHIVED)), default=0)
        yield from self._stores.to_check(self._settings.daemon.check_percent_a_day, by_store, largest)

    def _clean(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, None]]:
        for job in jobs:
            running = (other.job for other in self._outcomes.running)
            if not any(other.store == job.store and other.kind not in {"compress", "check"} for other in running):
                yield job, None

    def _prune(self, runs: Iterable[Run], late_seconds: float = 0.0) -> Iterator[tuple[Job, None]]:
        """Of stores where nothing is done, and where something may go, by now or since so long."""
        ruled: dict[Path, Ruled] = {}
        for run in runs:
            ruled.setdefault(run.store, Ruled()).add(run.path, run.watch)
        roots = tuple(watch.path for watch in self._settings.watch)
        for root, found in ruled.items():
            is_idle = not any(running.job.store == root for running in self._outcomes.running)
            has_rules = any(run.rules is not None for run in found.runs)
            if has_rules and is_idle and self._stores.is_to_prune(root, late_seconds=late_seconds):
                yield Prune(root, runs=tuple(found.runs), roots=roots, quota=found.quota), None

    def _min_free(self, run: Run) -> int:
        """Unless somebody says how much: room for the trainer's next checkpoints."""
        if run.watch.min_free is not None:
            return run.watch.min_free
        here = [row.identity.size for row in self._journal.rows(run=run.path) if row.path in run.order]
        return FREE_CHECKPOINTS * max(here, default=0)

    def _compression(self, run: Run) -> Job | None:
        if self._outcomes.is_paused():
            return None
        now, order = self._clock.time(), run.order
        rows = [row for row in self._journal.rows(run=run.path) if self._has_turn(row)]
        if not self._once:
            rows = self._leave_some_raw(rows, run, now)
        waiting = plan.steps_that_wait(rows, order)
        if not waiting:
            self._backlog.caught_up(run.path)
        held = self._wait_for_others(run, now)
        row = plan.next_to_compress(rows, order, float("inf") if self._once else now, held)
        if row is None:
            row = plan.to_take_back(rows, order)
            if row is None:
                return None
            self._journal.taken_back(row.number, now)
        watch = run.watch
        together = [other for other in rows if plan.unit(other) == plan.unit(row) and other.path in order]
        nbytes = sum(other.identity.size for other in together) if plan.unit(row) is not None else row.identity.size
        return Compress(
            *(run.store, row.path, row.number, nbytes),
            preset=watch.preset,
            effort=self._effort(run, waiting),
            stride=watch.stride,
            max_depth=watch.max_depth,
            base_model=watch.base_model,
            accept_command=watch.accept_command,
            accept_seconds=watch.accept_seconds,
            min_free=self._min_free(run),
        )

    def _wait_for_others(self, run: Run, now: float) -> dict[Path, str]:
        rows, patience = self._journal.rows(run=run.path), PATIENCE_SETTLES * run.watch.settle_seconds
        held = plan.waits_for_others(rows, run.order, now, patience, once=self._once)
        self._why[run.path] = self._why.get(run.path, {}) | held
        return held

    def _effort(self, run: Run, waiting: int) -> Effort:
        """As the watch says; less for a run that is falling behind. A pass that does not wait has all the time."""
        behind = not self._once and self._backlog.look(run.path, waiting)
        return effort_of(run.watch, behind=behind)

    def _has_turn(self, row: Row) -> bool:
        """A pass that does not wait tries everything once."""
        return not (self._once and row.number in self._outcomes.failed)

    def _leave_some_raw(self, rows: list[Row], run: Run, now: float) -> list[Row]:
        left = plan.to_skip(rows, run.order, run.watch.max_lag)
        for row in left:
            self._journal.skipped(row.number, now)
            self._metrics.checkpoints.labels("skipped").inc()
        numbers = {row.number for row in left}
        return [row for row in rows if row.number not in numbers]

    def _replacement(self, run: Run) -> Job | None:
        """The next file to replace, of the first step of which every file may go."""
        rows = self._journal.rows(run=run.path)
        there = [row for row in rows if row.path in run.order and row.state not in {State.REPLACED, State.ROTATED}]
        standing = [row for row in there if is_text(row.path.name)]  # what can never be archived holds back nothing
        archived = [row for row in standing if row.state in ARCHIVED_AND_THERE]
        why = self._why[run.path] = {}
        general = self._why_nothing_is_replaced(run)
        if general:
            why |= {row.path: general for row in archived}
            return None
        kept = self._why_kept(run, rows, standing)
        kept |= plan.gain_too_little(rows, run.order)
        held: dict[Path, str] | None = None
        for members in plan.units(standing, run.order):
            reasons = {row.path: kept[row.path] for row in members if row.path in kept}
            if not reasons:
                held = self._protection.held(run.watch.path, run.path, run.checkpoints) if held is None else held
                told = ((row.path, held.get(row.path) or self._check(row, run)) for row in members)
                reasons = {path: reason for path, reason in told if reason}
            if not reasons:
                return _replacement_of(run, members)
            why |= {row.path: _reason(row, reasons) for row in members if row in archived}
        return None

    def _why_nothing_is_replaced(self, run: Run) -> str:
        if not run.watch.replace:
            return "replace = false"
        if replacing_stopped(self._settings) is not None:
            return "replacing is stopped until a person acknowledges"
        cleaning = any(other.job.kind == "clean" and other.job.store == run.store for other in self._outcomes.running)
        return "its store is being cleaned" if cleaning or self._stores.is_dirty(run.store) else ""

    def _why_kept(self, run: Run, rows: list[Row], standing: list[Row]) -> dict[Path, str]:
        """Those whose time has not come, and why."""
        now, kept = self._clock.time(), {}
        newest = plan.newest(rows, run.order, run.watch.keep_raw)
        for row in standing:
            if row.state not in ARCHIVED_AND_THERE:
                kept[row.path] = "it is not archived"
            elif row.path in newest:
                kept[row.path] = f"one of the newest {run.watch.keep_raw}"
            elif not self._has_turn(row):
                kept[row.path] = row.error or "it could not be replaced in this pass"
            elif reason := plan.may_be_replaced(row, now):
                kept[row.path] = reason
        return kept

    def _check(self, row: Row, run: Run) -> str | None:
        """A last look at the disk; what was archived is compared by its hash when it is replaced."""
        if row.archive is None or not os.path.lexists(row.archive):
            self._journal.taken_back(row.number, self._clock.time())
            return "its archive is gone: it is compressed again"
        try:
            unchanged = fingerprint(row.path).identity == row.identity
        except OSError:
            unchanged = False
        return self._needed(row, row.archive, run) if unchanged else "it has changed since it was archived"

    def _needed(self, row: Row, archive: Path, run: Run) -> str | None:
        """Whether it is, or holds, a base model of this or another run: of archives, or one that a watch names.

        No model is looked at, whose disk may not answer: the replacement does that.
        """
        for model in (watch.base_model for watch in self._settings.watch if watch.base_model is not None):
            if is_part_of(row.path, model, is_directory=True):  # nothing lies in a file
                return f"it is, or holds, the base_model {model} of a watch"
        try:
            return why_needed([row.path], content_of(read_manifest(archive)), run.store)
        except (CkzdError, OSError):  # the replacement says it
            return None


def _replacement_of(run: Run, members: Sequence[Row]) -> Replace:
    """The first file of a step, if all others can go too; all are archived."""
    row, *others = members
    assert row.archive is not None, "it is archived"
    beside = tuple((other.path, other.archive) for other in others if other.archive is not None)
    nbytes = sum(member.identity.size for member in members)  # all are compared
    return Replace(run.store, row.path, row.number, nbytes, archive=row.archive, beside=beside)


def _reason(row: Row, reasons: Mapping[Path, str]) -> str:
    """Why a file stays: for itself, or because another one of its step does."""
    if row.path in reasons:
        return reasons[row.path]
    other, reason = next(iter(reasons.items()))
    return f"{other.name}, of the same step, stays: {reason}"
