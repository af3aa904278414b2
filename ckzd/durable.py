"""The only renames and unlinks of the package, each followed by the fsync that makes it last.

A failed fsync is final: Linux drops the dirty pages and the next fsync would report success, so nothing here tries
twice; the temporary file is thrown away and the caller keeps what it had. A full file system is `NoSpace`.
"""

import ctypes
import errno
import io
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ckzd.errors import NoSpace
from ckzd.locks import FULL, Process
from ckzd.pace import took

TEMP_PREFIX, TEMP_SUFFIX = ".ckzd-", ".tmp"
ABANDONED_SECONDS = 24 * 3600.0  # a temporary file of an unknown process, untouched for so long, has no owner

_PRIVATE = 0o600
_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})  # what NFS, FUSE, old kernels answer
_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})


@contextmanager
def as_no_space(path: Path) -> Iterator[None]:
    """Turn "disk full" and "quota exceeded" into NoSpace; let every other error pass."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            hint = "free some space; nothing was removed, and the work is tried again later"
            raise NoSpace(path, f"{os.strerror(error.errno)}: {free_bytes(path)} bytes free", hint=hint) from error
        raise


def disk_bytes(status: os.stat_result) -> int:
    """What a file takes on its disk: less than its size where that has holes or is compressed, else a block more."""
    return status.st_blocks * 512


def temp_beside(target: Path) -> Path:
    """A fresh path beside `target`, not yet created. Its name tells whose it is: see `remove_abandoned`."""
    return target.with_name(f"{TEMP_PREFIX}{Process.this()}-{secrets.token_hex(6)}{TEMP_SUFFIX}")


@contextmanager
def write_atomically(target: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Yield a file that becomes `target` when the block ends: temp beside it, fsync, rename, fsync of the directory.

    On any error `target` is as it was and the temporary file is gone. `mode` is exact; None is what `open` would give.
    After a crash the temporary file stays; its name tells whose it was.
    """
    temp = temp_beside(target)
    with as_no_space(target):
        try:
            with create(temp, 0o666 if mode is None else _PRIVATE) as file:
                yield file
                file.flush()
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            temp.replace(target)
        except BaseException:
            with suppress(OSError):
                temp.unlink(missing_ok=True)
            raise
        fsync_dir(target.parent)


class Paced(io.BufferedRandom):
    """A file that is written no faster than `pace` says."""

    def write(self, data: Any, /) -> int:
        """As any file does."""
        written = super().write(data)
        took(written)
        return written


def create(path: Path, mode: int = _PRIVATE) -> BinaryIO:
    """A new file, open for reading and writing; nobody else may open it until it is given another mode."""
    return Paced(io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "r+"))


def is_temp(name: str) -> bool:
    """Whether `write_atomically` gives such names to what is unfinished."""
    return name.startswith(TEMP_PREFIX) and name.endswith(TEMP_SUFFIX)


def publish(temp: Path, target: Path) -> bool:
    """Give a finished file its name, never overwriting; False if `target` was there first. `temp` is gone then too."""
    with as_no_space(target):
        fsync_file(temp)
        try:
            _rename_noreplace(temp, target)
        except FileExistsError:
            remove(temp)
            return False
        fsync_dir(target.parent)
    return True


def rename(source: Path, target: Path) -> None:
    """Move what is ours, a file or directory, within its file system; FileExistsError rather than overwrite."""
    with as_no_space(target):
        _rename_noreplace(source, target)
        fsync_dir(target.parent)
        if source.parent != target.parent:
            fsync_dir(source.parent)


def take(source: Path, target: Path) -> None:
    """Move what others may rewrite at any instant to a new name that only we know: in one step on every file system.

    `rename` does without flags by linking and unlinking: between the two, the file it unlinks could be a newer one.
    """
    with as_no_space(target):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)
        fsync_dir(target.parent)
        fsync_dir(source.parent)


def overwrite(source: Path, target: Path) -> None:
    """Move a file to a name that may be taken."""
    with as_no_space(target):
        fsync_file(source)
        source.replace(target)
        fsync_dir(target.parent)
        if source.parent != target.parent:
            fsync_dir(source.parent)


def exchange(a: Path, b: Path) -> None:
    """Swap two existing paths in one step. OSError with `exchange_unsupported` where the file system cannot."""
    with as_no_space(b):
        _renameat2(a, b, _EXCHANGE)
        fsync_dir(a.parent)
        fsync_dir(b.parent)


def exchange_unsupported(error: OSError) -> bool:
    """Whether `exchange` failed because the file system does not know it."""
    return error.errno in _UNSUPPORTED


def remove(path: Path) -> None:
    """Delete a file; one that is gone already is fine."""
    with suppress(FileNotFoundError):
        path.unlink()
        fsync_dir(path.parent)


def remove_tree(path: Path) -> None:
    """Delete a directory and what is in it, never following a link; one that is gone already is fine."""
    with suppress(FileNotFoundError):
        shutil.rmtree(path)
        fsync_dir(path.parent)


def remove_empty_directory(path: Path) -> bool:
    """Delete a directory that is empty or gone already; False if something is in it, or it is none."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in _NOT_EMPTY:
            raise
        return False
    fsync_dir(path.parent)
    return True


def abandoned(places: Iterable[Path], now: float | None = None) -> Iterator[Path]:
    """Of these, unfinished work of dead processes: those of this machine by their process, others by their age.

    What belongs to a living process is none, nor, for a day, what cannot be told.
    """
    for path in sorted(set(places)):
        owner = Process.parse(path.name)
        try:
            age = (time.time() if now is None else now) - path.lstat().st_mtime
        except FileNotFoundError:
            continue
        if owner is not None and (owner.is_dead() or (not owner.is_local() and age > ABANDONED_SECONDS)):
            yield path


def remove_abandoned(places: Iterable[Path], now: float | None = None) -> list[Path]:
    """Remove what is `abandoned`; what was removed."""
    removed = []
    for path in abandoned(places, now):
        (remove_tree if path.is_dir() and not path.is_symlink() else remove)(path)
        removed.append(path)
    return removed


def abandoned_beside(target: Path, *, but_with: str) -> Iterator[Path]:
    """What those who died left at `temp_beside` in the directory of `target`; no directory with that in it."""
    left = target.parent.glob(f"{TEMP_PREFIX}*{TEMP_SUFFIX}")
    return abandoned(place for place in left if not (place / but_with).exists())


def sweep_beside(target: Path, *, but_with: str) -> list[Path]:
    """Remove what is `abandoned_beside`."""
    return remove_abandoned(abandoned_beside(target, but_with=but_with))


def sweep(directory: Path) -> None:
    """Remove what those who died while they wrote a file of ours into this directory left there."""
    remove_abandoned(directory.glob(f"{TEMP_PREFIX}*{TEMP_SUFFIX}"))


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    _fsync(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def fsync_dir(path: Path) -> None:
    """Make a directory's names durable. Some network file systems refuse with EINVAL: that, and only that, is fine."""
    try:
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def fsync_tree(path: Path) -> None:
    """Make a directory and all that is in it durable, bottom up."""
    for parent, _, names in os.walk(path, topdown=False):
        for file in (Path(parent, name) for name in names):
            if not file.is_symlink():
                fsync_file(file)
        fsync_dir(Path(parent))


def free_bytes(path: Path) -> int:
    """Bytes that an unprivileged writer can still put on the file system where `path` is or will be."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    status = os.statvfs(existing)
    return status.f_bavail * status.f_frsize


def total_bytes(path: Path) -> int:
    """Size of the file system where `path` is."""
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize


def require_space(path: Path, nbytes: int) -> None:
    """Raise NoSpace, before anything is written, unless `nbytes` fit."""
    free = free_bytes(path)
    if free < nbytes:
        raise NoSpace(path, f"needs {nbytes} bytes, {free} are free", hint=f"free {nbytes - free} bytes")


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_noreplace(source: Path, target: Path) -> None:
    try:
        _renameat2(source, target, _NOREPLACE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _rename_noreplace_by_link(source, target)


def _rename_noreplace_by_link(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():  # a directory has no second name; the check is the best there is
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)
        return
    os.link(source, target, follow_symlinks=False)
    source.unlink()


def _renameat2(source: Path, target: Path, flags: int) -> None:
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, "no renameat2 in the C library", str(target))
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(target))
