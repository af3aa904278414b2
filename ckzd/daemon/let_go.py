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
from ckzd.daemon.protect import Protection
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
        self._protection = Protection(rule)
        self._said: dict[tuple[Path, Fingerprint], list[Ranking]] = {}

    def look(self, runs: Iterable[Run]) -> bool:
        """Remove the pointers of what the newest checkpoints let go; whether there were any."""
        removed = False
        for run in runs:
            rows = self._journal.rows(run=run.path) if run.watch.replace else []
            replaced = {row.path for row in rows if row.state is State.REPLACED and row.path.name.endswith(SUFFIXES)}
            replaced = {path for path in replaced if not os.path.lexists(path)}
            gone = sorted(path for path in replaced if path.name in self._let_go(run)) if replaced else []
            held = self._protection.held_where_they_stood(run.watch.path, run.path, gone) if gone else {}
            for path in gone:
                pointer = pointer_for(path)
                if path not in held and pointer.is_file() and is_pointer(pointer):
                    durable.remove(pointer)
                    log.info("let go by its framework", extra={"checkpoint": str(path)})
                    removed = True
        return removed

    def _let_go(self, run: Run) -> set[str]:
        raw = [(seen.newest_mtime_ns, path, seen) for path, seen in run.checkpoints if path.name.endswith(SUFFIXES)]
        try:
            for _, path, seen in sorted(raw, key=lambda one: one[:2])[-MAX_READ:]:
                self._rankings(path, seen)
        except NotReadYet:
            return set()
        here = [(seen.newest_mtime_ns, path, said) for (path, seen), said in self._said.items() if said]
        return let_go([said for _, path, said in sorted(here, key=lambda one: one[:2]) if path.parent == run.path])

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
