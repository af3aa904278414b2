"""When the daemon reads archives back: a small share of a store at a time, while there is nothing else to do.

How far it has come stands in the store (`operations/ledger.py`), so that neither a restart nor a check by hand begins
anew, and the share grows with the time since the last one, but not beyond a day's.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckzd.chains import ARCHIVE_SUFFIX
from ckzd.daemon.clock import Clock
from ckzd.daemon.jobs import Check
from ckzd.operations.ledger import Ledger
from ckzd.retention import DAY_SECONDS
from ckzd.store import Store

LOOK_SECONDS = 600.0  # between two looks at what is due
PORTION_SECONDS = 60.0  # after so long no other archive is begun: a checkpoint may be waiting


@dataclass
class Scrub:
    """Of one store. Owner: the service's thread."""

    store: Store
    clock: Clock
    _next_look: float = 0.0  # monotonic
    _facts: dict[str, Any] | None = None
    _begun: bool = False  # what was found damaged before this start was looked at

    def facts(self) -> dict[str, Any]:
        """How many archives there are, which share this pass has read, when the last one was complete (None: never)."""
        if self._facts is None:
            self._facts = self._look()
        return self._facts

    def portion(self, percent_a_day: float, runs: Sequence[Path], nbytes: int) -> Check | None:
        """What is due now, if anything. `nbytes`: of the largest checkpoint, which may have to be archived anew."""
        now = self.clock.monotonic()
        if now < self._next_look or not percent_a_day:
            return None
        self._next_look = now + LOOK_SECONDS
        facts = self._facts = self._look()
        days = min(1.0, max(0.0, self.clock.time() - facts["last"]) / DAY_SECONDS)
        count = math.floor(facts["archives"] * percent_a_day / 100 * days)
        if not count and (self._begun or not facts["damaged"]):
            return None
        percent = 100 * count / max(1, facts["archives"])
        return Check(self.store.root, nbytes=nbytes, percent=percent, seconds=PORTION_SECONDS, runs=tuple(runs))

    def ended(self, *, well: bool) -> None:
        """A portion is over; what is left of it is due at the next look."""
        self._begun = self._begun or well
        self._facts = None

    def _look(self) -> dict[str, Any]:
        ledger, now = Ledger.read(self.store), self.clock.time()
        archives: list[Path] = []
        with suppress(OSError):  # the store is out of sight: a scan will say so
            for directory in self.store.run_directories():
                archives += directory.glob(f"*{ARCHIVE_SUFFIX}")
        return {
            "archives": len(archives),
            "pass_ratio": ledger.progress(archives, now),
            "pass_completed": ledger.pass_completed or None,
            "last": ledger.last_check,
            "damaged": ledger.problems,
        }
