"""What tells a file from the one that was there before, and a walk over all that a checkpoint consists of."""

import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self


class Mark(NamedTuple):
    """What changes when a file is written to or replaced. A directory's size is 0: what comes and goes shows in mtime.

    It may be kept on disk, so no device is in it: devices are numbered anew when a machine starts. Nor is ctime, which
    a rename moves: an original has the same mark in the trash.
    """

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """As a look at the file found it."""
        return cls(status.st_ino, 0 if stat.S_ISDIR(status.st_mode) else status.st_size, status.st_mtime_ns)


def is_unchanged(was: os.stat_result, now: os.stat_result) -> bool:
    """Whether two looks found one file that nobody wrote to in between. Here the device counts: nothing is kept."""
    return (was.st_dev, Mark.of(was)) == (now.st_dev, Mark.of(now))


def walk(checkpoint: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Name relative to the checkpoint ("" is itself) and lstat of all that is there, sorted, parents first.

    Follows no link. OSError if something vanishes meanwhile.
    """
    pending = deque([""])
    while pending:
        name = pending.popleft()
        path = checkpoint / name
        status = path.lstat()
        children = sorted(os.listdir(path)) if stat.S_ISDIR(status.st_mode) else []  # noqa: PTH208  # names, no paths
        yield name, status
        pending += [f"{name}/{child}" if name else child for child in children]
