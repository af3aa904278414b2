"""How fast this process, and each that it starts, reads and writes checkpoints and archives: as may be set.

The kernel knows one for a group of processes (io.max of cgroups), which is for their makers to set; this is for
everybody else, and needs no rights.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

_BLOCK = 1 << 20
_BURST_SECONDS = 0.25  # what may be taken ahead: a few reads, and no sleep shorter than the kernel can do well


class _Pace:
    """A bucket of bytes that fills as time goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paid_until = 0.0  # monotonic; owner: whoever holds the lock
        self.bytes_per_second: float | None = None

    def took(self, nbytes: int) -> None:
        if self.bytes_per_second is None:
            return
        with self._lock:
            now = time.monotonic()
            self._paid_until = max(self._paid_until, now - _BURST_SECONDS) + nbytes / self.bytes_per_second
            wait = self._paid_until - now
        if wait > 0:
            time.sleep(wait)


_PACE = _Pace()


def set_pace(bytes_per_second: float | None) -> None:
    """From now on, here and in processes that `operations.child` starts; None: as fast as the disk is."""
    _PACE.bytes_per_second = bytes_per_second


@contextmanager
def unpaced() -> Iterator[None]:
    """As fast as the disk is: for what holds locks that others wait for."""
    before = pace()
    set_pace(None)
    try:
        yield
    finally:
        set_pace(before)


def pace() -> float | None:
    """What was set."""
    return _PACE.bytes_per_second


def took(nbytes: int) -> None:
    """So many bytes were read or written: returns when the next ones may be. From any thread."""
    _PACE.took(nbytes)


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """A file's bytes from where it stands, no faster than was set."""
    while block := file.read(_BLOCK):
        took(len(block))
        yield block
