"""Does somebody else wait for the disk? Linux counts the time in which at least one task did (PSI).

    /proc/pressure/io                     of all tasks
    /sys/fs/cgroup/<our own>/io.pressure  of those of our cgroup: what we wait for by ourselves

What the first has grown by more than the second is time of others alone. Where no cgroup of our own is seen (version 1,
or the root), whatever happens while a job of ours runs counts as ours.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ckzd.daemon.clock import Clock

WINDOW_SECONDS = 5.0  # a trainer that saves waits for longer
BUSY_SHARE = 0.4  # of it; one that loads its data from the disk, and keeps up, waits for less
PATIENCE_SECONDS = 120.0  # a disk that is always busy must not keep ckzd from giving space back
_EVERYBODY, _GROUPS, _ROOT = Path("/proc/pressure/io"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class DiskPressure:
    """Asked whenever a job may begin. Owner: the service's thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._before = _Stalls.now(clock.monotonic())
        self._was_ours = False  # a job of ours ran in this window
        self._busy = False
        self._waiting_since: float | None = None

    def holds_back(self, *, we_run: bool) -> bool:
        """Whether no job is to begin: others have waited for the disk for much of the last window.

        Not for longer than the patience that there is; then one may. `we_run`: jobs of ours do.
        """
        now = self._clock.monotonic()
        self._was_ours |= we_run
        if now - self._before.at >= WINDOW_SECONDS:
            found = _Stalls.now(now)
            self._busy = found.share_of_others(self._before, was_ours=self._was_ours) > BUSY_SHARE
            self._before, self._was_ours = found, we_run
        if not self._busy or we_run:
            self._waiting_since = None
            return self._busy
        if self._waiting_since is None:
            self._waiting_since = now
        return now - self._waiting_since < PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class _Stalls:
    """Seconds in which somebody waited, all in all; None where the kernel does not say."""

    at: float  # monotonic
    everybody: float | None
    own_group: float | None

    @classmethod
    def now(cls, at: float) -> "_Stalls":
        group = _own_group()
        return cls(at, _total(_EVERYBODY), None if group is None else _total(group / "io.pressure"))

    def share_of_others(self, before: "_Stalls", *, was_ours: bool) -> float:
        """Of the time since then."""
        seconds = self.at - before.at
        if self.everybody is None or before.everybody is None:
            return 0.0
        if self.own_group is not None and before.own_group is not None:
            return (self.everybody - before.everybody - (self.own_group - before.own_group)) / seconds
        return 0.0 if was_ours else (self.everybody - before.everybody) / seconds


def _own_group() -> Path | None:
    """Unless it is the root, which all others are in; that of a container looks like it, but has events."""
    with suppress(OSError, ValueError, StopIteration):  # a name may be any bytes
        own = next(line[3:] for line in _GROUPS.read_text().splitlines() if line.startswith("0::"))
        group = _ROOT / PurePosixPath(own.lstrip("/"))
        return group if (group / "cgroup.events").exists() else None
    return None


def _total(file: Path) -> float | None:
    """`some avg10=0.00 avg60=0.00 avg300=0.00 total=MICROSECONDS`."""
    with suppress(OSError, ValueError, StopIteration):
        some = next(line for line in file.read_text().splitlines() if line.startswith("some "))
        return int(some.rpartition("total=")[2]) / 1e6
    return None
