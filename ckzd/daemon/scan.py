"""The scan: what stands in the watched directories now, brought into the journal. It is the truth; events are hints."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ckzd import formats
from ckzd.config import Settings, WatchSettings
from ckzd.daemon.clock import Clock
from ckzd.daemon.identity import Fingerprint, fingerprint
from ckzd.daemon.journal import Journal
from ckzd.daemon.settle import Settled, Settler
from ckzd.daemon.states import ARCHIVED_AND_THERE, RUNNING, Row, State
from ckzd.errors import CkzdError, ConfigError
from ckzd.operations.places import look_below
from ckzd.operations.pointer import pointer_for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One training job's directory as the last scan saw it."""

    path: Path
    watch: WatchSettings
    store: Path
    checkpoints: tuple[tuple[Path, Fingerprint], ...]  # in order

    @cached_property
    def order(self) -> dict[Path, int]:
        """Place of each checkpoint in the run; asked for each of them."""
        return {path: place for place, (path, _) in enumerate(self.checkpoints)}


@dataclass
class Scan:
    """What one scan found. `errors` are of runs that cannot be served, `problems` of watches that cannot be seen."""

    runs: list[Run] = field(default_factory=list)
    errors: list[CkzdError] = field(default_factory=list)
    problems: list[ConfigError] = field(default_factory=list)
    why: dict[Path, str] = field(default_factory=dict)  # checkpoint -> why it is not settled
    folders: list[Path] = field(default_factory=list)  # where something new may appear
    left_alone: dict[Path, Counter[str]] = field(default_factory=dict)  # watched directory -> kinds, how many of each
    again_seconds: float = float("inf")  # a checkpoint may have settled then


class Scanner:
    """Looks at every watched directory. `adopt(run, watch)` gives the run's store; it is asked in every scan."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        settler: Settler,
        clock: Clock,
        adopt: Callable[[Path, WatchSettings], Path],
        *,
        once: bool,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._settler = settler
        self._clock = clock
        self._adopt = adopt
        self._once = once
        self._told: set[tuple[Path, str]] = set()  # watch and kind: what is left alone was logged
        self._said: set[str] = set()  # problems of the last scan

    def scan(self) -> Scan:
        """Look at everything once."""
        result = Scan()
        for number, watch in enumerate(self._settings.watch):
            if not os.path.isdir(watch.path):  # noqa: PTH112  # `Path.is_dir` raises where permission is denied
                problem = f"expected a directory, got {watch.path}, which is none or not there"
                result.problems.append(ConfigError(f"watch[{number}].path", problem, hint="check the path"))
                continue
            seen = list(look_below(watch.path))
            result.folders += [contents.path for contents in seen if not contents.is_left_alone]
            result.left_alone[watch.path] = Counter(left.kind for contents in seen for left in contents.left_alone)
            self._tell_left_alone(watch.path, result.left_alone[watch.path])
            found = {contents.path: contents.checkpoints for contents in seen if contents.is_run}
            known = {run for run in self._journal.runs() if run.is_relative_to(watch.path)}
            for run in (*found, *sorted(known - found.keys())):
                try:
                    with self._journal.together():
                        self._scan_run(run, watch, found.get(run), result)
                except (CkzdError, OSError, UnicodeError) as error:
                    wrapped = error if isinstance(error, CkzdError) else CkzdError(run, f"cannot be scanned: {error}")
                    log.warning("run left out", extra={"run": str(run), "error": str(wrapped)})
                    result.errors.append(wrapped)
        self._settler.forget_all_but(result.why)
        problems = {str(problem) for problem in result.problems}
        for problem in sorted(problems - self._said):
            log.warning("a watch sees nothing", extra={"why": problem})
        self._said = problems
        return result

    def _tell_left_alone(self, watch: Path, kinds: Counter[str]) -> None:
        for kind in kinds:
            if (watch, kind) not in self._told:
                self._told.add((watch, kind))
                log.warning("left alone: not read", extra={"watch": str(watch), "holds": formats.KINDS[kind]})

    def _scan_run(self, run: Path, watch: WatchSettings, found: Iterable[Path] | None, result: Scan) -> None:
        now = self._clock.time()
        if not run.is_dir():  # known from the journal only
            self._reconcile(run, {}, now)
            return
        store = self._adopt(run, watch)
        checkpoints = []
        for path in _listed_anew(run) if found is None else found:
            try:
                checkpoints.append((path, fingerprint(path)))
            except OSError:  # it has just gone
                continue
        for path, seen in checkpoints:
            row = self._journal.find(path, seen.identity)
            if row is None or row.state is State.ROTATED:
                row = self._journal.see(run, path, seen.identity, now)
            if row.state is State.REPLACED:
                self._journal.stands_again(row.number, now)
            elif row.state is State.SEEN:
                self._look(row, seen, watch, result)
        self._reconcile(run, dict(checkpoints), now)
        result.runs.append(Run(run, watch, store, tuple(checkpoints)))

    def _look(self, row: Row, seen: Fingerprint, watch: WatchSettings, result: Scan) -> None:
        look = self._settler.look_once if self._once else self._settler.look
        verdict = look(row.path, watch.settle_seconds)
        if isinstance(verdict, Settled):
            if verdict.fingerprint == seen:
                self._journal.settled(row.number, verdict.step, self._clock.time())
                return
            result.why[row.path] = "has just changed"
            result.again_seconds = 0.0
            return
        result.why[row.path] = verdict.reason
        if verdict.again_seconds is not None:
            result.again_seconds = min(result.again_seconds, verdict.again_seconds)

    def _reconcile(self, run: Path, present: dict[Path, Fingerprint], now: float) -> None:
        """Bring rows in line whose checkpoint is not where it was: replaced just before a crash, or gone."""
        for row in self._journal.rows(run=run):
            seen = present.get(row.path)
            if (seen is not None and seen.identity == row.identity) or row.state in RUNNING | {State.ROTATED}:
                continue
            has_pointer = os.path.lexists(pointer_for(row.path))
            if row.state in ARCHIVED_AND_THERE and has_pointer:
                self._journal.replaced(row.number, now, row.original_bytes)
            elif row.state is not State.REPLACED or not has_pointer:
                gone = self._journal.gone(row.number, now)
                log.info("checkpoint gone", extra={"checkpoint": str(row.path), "archived": gone is not None})


def _listed_anew(run: Path) -> list[Path]:
    """Of a run that only the journal knows: empty, out of reach, or part of a checkpoint that is left alone whole."""
    return [] if formats.left_alone(run) else formats.list_checkpoints(run)
