"""Pointers of checkpoints that their framework has let go: it deleted a file that was not there any more.

Whoever deletes directories deletes the pointers in them. Savers that keep the best few of many files ask only for those
files, so pointers would stay for ever, and with `on_rotate = "drop"` their archives.
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from ckzd import durable
from ckzd.chains import is_pointer
from ckzd.daemon.identity import Fingerprint
from ckzd.daemon.journal import Journal
from ckzd.daemon.scan import Run
from ckzd.daemon.settle import NotReadYet, Rule
from ckzd.daemon.states import State
from ckzd.errors import CkzdError
from ckzd.formats.rankings import SUFFIXES, Ranking, let_go
from ckzd.operations.pointer import pointer_for

log = logging.getLogger(__name__)

MAX_SAID = 1000  # what this many checkpoints say of others is remembered
MAX_READ = 16  # of a run's newest: each lists all that its saver keeps


class LetGo:
    """Remembers what checkpoints said of others, those that are replaced by now too."""

    def __init__(self, journal: Journal, rule: Rule) -> None:
        self._journal = journal
        self._rule = rule
        self._said: dict[tuple[Path, Fingerprint], list[Ranking]] = {}  # the oldest first

    def look(self, runs: Iterable[Run]) -> bool:
        """Remove the pointers of what the newest checkpoints let go; whether there were any."""
        removed = False
        for run in runs:
            rows = self._journal.rows(run=run.path) if run.watch.replace else []
            replaced = {row.path for row in rows if row.state is State.REPLACED and row.path.name.endswith(SUFFIXES)}
            pointers = {path.name: pointer_for(path) for path in replaced if not os.path.lexists(path)}
            for name in self._let_go(run) & pointers.keys() if pointers else ():
                if pointers[name].is_file() and is_pointer(pointers[name]):
                    durable.remove(pointers[name])
                    log.info("let go by its framework", extra={"checkpoint": str(run.path / name)})
                    removed = True
        return removed

    def _let_go(self, run: Run) -> set[str]:
        raw = [(seen.newest_mtime_ns, path, seen) for path, seen in run.checkpoints if path.name.endswith(SUFFIXES)]
        try:
            told = [self._rankings(path, seen) for _, path, seen in sorted(raw, key=lambda one: one[:2])[-MAX_READ:]]
        except NotReadYet:
            return set()
        newest: list[Ranking] = next((some for some in reversed(told) if some), [])
        here = (some for (path, _), some in self._said.items() if path.parent == run.path)
        return let_go(newest, (one for some in here for one in some))

    def _rankings(self, path: Path, seen: Fingerprint) -> list[Ranking]:
        if (path, seen) not in self._said:
            try:
                self._said[path, seen] = self._rule.rankings(path)
            except NotReadYet:
                raise
            except CkzdError:
                self._said[path, seen] = []
            if len(self._said) > MAX_SAID:
                self._said.pop(next(iter(self._said)))
        return self._said[path, seen]
