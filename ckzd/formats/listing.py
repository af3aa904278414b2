"""What is in the directory of a checkpoint: flat, finished, not yet replaced.

Symbolic links, sub-directories and special files are refused: an archive could not give them back.
"""

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ckzd.errors import BadCheckpoint
from ckzd.formats.names import POINTER_NAME, SHARD_SUFFIX, TENSOR_SUFFIXES, is_being_written, is_written_last
from ckzd.formats.source import as_ckzd_errors

MAX_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Listing:
    """The names in a directory, sorted, and the directory's own stat."""

    path: Path
    names: tuple[str, ...]
    stat: os.stat_result


def list_directory(path: Path) -> Listing:
    """What is in the directory; BadCheckpoint unless it is flat, finished and not yet replaced."""
    with as_ckzd_errors(path):
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise BadCheckpoint(path, "is no directory")
        with os.scandir(path) as entries:
            kinds = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in entries}
    if is_replaced(path):
        raise BadCheckpoint(path, "was replaced by its archive", hint=f"run `ckzd restore {path}` first")
    kinds.pop(POINTER_NAME, None)
    if len(kinds) > MAX_FILES:
        raise BadCheckpoint(path, f"holds {len(kinds)} files, at most {MAX_FILES} are read")
    for name, mode in kinds.items():
        _require_plain(path, name, mode)
    return Listing(path, tuple(sorted(kinds)), found)


def is_replaced(path: Path) -> bool:
    """Whether a pointer stands in this directory for what was in it.

    Not when the checkpoint was saved again, into the directory that was there: then a tensor file is younger than the
    pointer, and so is what its framework writes last.
    """
    pointer = _mtime_ns(path / POINTER_NAME)
    if pointer is None:
        return False
    with contextlib.suppress(OSError):
        names = os.listdir(path)  # noqa: PTH208  # names, no paths
        for may_be_one in (is_written_last, _may_hold_tensors):
            if all((_mtime_ns(path / name) or 0) <= pointer for name in filter(may_be_one, names)):
                return True
        return False
    return True


def _may_hold_tensors(name: str) -> bool:
    return name.endswith((*TENSOR_SUFFIXES, SHARD_SUFFIX))


def _mtime_ns(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return os.lstat(path).st_mtime_ns
    return None


def _require_plain(path: Path, name: str, mode: int) -> None:
    if is_being_written(name):
        raise BadCheckpoint(path, f"{name!a} is still being written, or was left by a writer that died")
    if stat.S_ISLNK(mode) or stat.S_ISDIR(mode):
        kind = "symbolic link" if stat.S_ISLNK(mode) else "sub-directory"
        raise BadCheckpoint(path, f"holds the {kind} {name!a}: not supported", hint="it stays as it is")
    if not stat.S_ISREG(mode) or not is_text(name):
        raise BadCheckpoint(path, f"holds {name!a}, which is no regular file with a name in UTF-8")


def is_text(name: str) -> bool:
    """Whether a name from the file system is UTF-8: a manifest cannot hold another."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
