"""How many cores this process may use: not what the machine has, and of those how many nobody uses."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_GROUPS, _ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_STAT = Path("/proc/stat")
_LOOK_SECONDS = 1.0  # a training step is shorter
_IDLE_FIELDS = slice(3, 5)  # of a line of a core: idle, and idle but for a disk


def cores() -> int:
    """Those of its affinity, or fewer where a control group has a quota: a container sees all cores of its host."""
    return max(1, min([len(os.sched_getaffinity(0)), *_quotas()]))


def idle_cores() -> int:
    """How many of ours nobody used for a second, which this takes; all of them where the kernel does not say."""
    before = _ticks()
    time.sleep(_LOOK_SECONDS)
    after = _ticks()
    idle = [_idle_share(before[core], after[core]) for core in before.keys() & after.keys()]
    return min(cores(), round(sum(idle))) if idle else cores()


def _ticks() -> dict[int, list[int]]:
    """Of each of our cores: the time that it has spent on each kind of work."""
    ours, found = os.sched_getaffinity(0), {}
    with suppress(OSError, ValueError):
        for line in _STAT.read_text().splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name != "cpu" and int(name[3:]) in ours:
                found[int(name[3:])] = [int(field) for field in fields[:8]]  # guests are counted as users already
    return found


def _idle_share(before: list[int], after: list[int]) -> float:
    spent = [later - earlier for earlier, later in zip(before, after, strict=True)]
    return sum(spent[_IDLE_FIELDS]) / max(sum(spent), 1)


def _quotas() -> Iterator[int]:
    """Of our control group and of those around it (version 2)."""
    with suppress(OSError, StopIteration):
        own = next(line[3:] for line in _GROUPS.read_text().splitlines() if line.startswith("0::"))
        group = PurePosixPath(own.lstrip("/"))
        for place in (group, *group.parents):
            with suppress(OSError, ValueError):
                quota, period = map(int, (_ROOT / place / "cpu.max").read_text().split())
                yield quota // period
