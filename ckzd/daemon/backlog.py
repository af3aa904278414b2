"""Whether a run saves faster than it is archived: if so, with less effort until it has caught up."""

from collections.abc import Collection
from pathlib import Path

BEHIND = 3  # checkpoints of a run that wait, the next one among them


class Backlog:
    """Looks at a run whenever it has its turn."""

    def __init__(self) -> None:
        self._waiting: dict[Path, int] = {}  # run -> how many waited when it last had its turn
        self._behind: set[Path] = set()

    @property
    def behind(self) -> frozenset[Path]:
        """Runs that are falling behind."""
        return frozenset(self._behind)

    def caught_up(self, run: Path) -> None:
        """Nothing of the run waits, archived or gone."""
        self._waiting.pop(run, None)
        self._behind.discard(run)

    def forget_all_but(self, runs: Collection[Path]) -> None:
        """These are the runs that there are."""
        for run in self._waiting.keys() - set(runs):
            self.caught_up(run)

    def look(self, run: Path, waiting: int) -> bool:
        """Whether the run is falling behind, given how many of its checkpoints wait as the next one has its turn.

        It is from when as many came as were archived meanwhile, until no other waits: a run that was there before the
        daemon may have many that wait, and gets ahead.
        """
        before = self._waiting.get(run)
        self._waiting[run] = waiting
        if waiting < 2:
            self._behind.discard(run)
        elif waiting >= BEHIND and before is not None and waiting >= before:
            self._behind.add(run)
        return run in self._behind
