"""What memory holds of files: the room is for training's data, and what it holds of an archive proves nothing."""

import os
from pathlib import Path

_SAMPLES = 16  # places of a file that are asked about
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def is_cached(descriptor: int) -> bool:
    """Whether memory holds most of a file; True where the kernel does not say."""
    size, there, byte = os.fstat(descriptor).st_size, 0, bytearray(1)
    for number in range(_SAMPLES):
        try:
            there += os.preadv(descriptor, [byte], size * number // _SAMPLES, os.RWF_NOWAIT)
        except BlockingIOError:
            continue
        except OSError:  # a file system without it
            return True
    return 2 * there >= _SAMPLES


def forget(descriptor: int) -> None:
    """Let the next read of a file come from the disk; what is not on the disk yet stays."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def forget_file(path: Path) -> None:
    """Let the next read of a file that nobody holds open here come from the disk."""
    descriptor = os.open(path, _FLAGS)
    try:
        forget(descriptor)
    finally:
        os.close(descriptor)
