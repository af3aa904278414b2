"""What is in the directory of a checkpoint, and in the directories in it: finished, not yet replaced.

Symbolic links and special files are refused: an archive could not give them back.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckzd.errors import BadCheckpoint
from ckzd.formats.names import POINTER_NAME, SHARD_SUFFIX, TENSOR_SUFFIXES, is_being_written, is_written_last
from ckzd.formats.source import as_ckzd_errors

MAX_FILES = 10_000  # and directories
MAX_DEPTH = 4  # of directories in directories


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in a directory and those in it: relative names, sorted, and stats of the directories, "" its own."""

    path: Path
    names: tuple[str, ...]
    folders: dict[str, os.stat_result]

    @property
    def stat(self) -> os.stat_result:
        """The directory's own."""
        return self.folders[""]

    def parts(self) -> "dict[str, Listing]":
        """Of each directory: the files that are directly in it, and all directories below it."""
        names: dict[str, list[str]] = {folder: [] for folder in self.folders}
        below = {folder: {"": found} for folder, found in self.folders.items()}
        for name in self.names:
            folder, _, own = name.rpartition("/")
            names[folder].append(own)
        for folder, found in self.folders.items():
            above = folder
            while above:
                above = above.rpartition("/")[0]
                below[above][folder.removeprefix(f"{above}/")] = found
        return {folder: Listing(self.path / folder, tuple(names[folder]), below[folder]) for folder in self.folders}


def list_directory(path: Path) -> Listing:
    """What is in the directory; BadCheckpoint unless it is finished, not replaced, and all can be given back."""
    with as_ckzd_errors(path):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise BadCheckpoint(path, "is no directory")
    if is_replaced(path):
        raise BadCheckpoint(path, "was replaced by its archive", hint=f"run `ckzd restore {path}` first")
    names: list[str] = []
    folders: dict[str, os.stat_result] = {}
    pending = [""]
    while pending:
        folder = pending.pop()
        with as_ckzd_errors(path / folder):
            folders[folder] = os.lstat(path / folder)
            with os.scandir(path / folder) as entries:
                kinds = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in entries}
        if not folder:
            kinds.pop(POINTER_NAME, None)
        for own, mode in kinds.items():
            name = f"{folder}/{own}" if folder else own
            _require_plain(path, name, mode)
            (pending if stat.S_ISDIR(mode) else names).append(name)
        if (count := len(names) + len(folders) + len(pending)) > MAX_FILES:
            raise BadCheckpoint(path, f"holds {count} files or more, at most {MAX_FILES} are read")
    return Listing(path, tuple(sorted(names)), dict(sorted(folders.items())))


def is_replaced(path: Path) -> bool:
    """Whether a pointer stands in this directory for what was in it.

    Not when the checkpoint was saved again, into the directory that was there: then a tensor file is younger than the
    pointer, and so is what its framework writes last.
    """
    pointer = _mtime_ns(path / POINTER_NAME)
    if pointer is None:
        return False
    with contextlib.suppress(OSError):
        files = list(_files_below(path))
        for may_be_one in (is_written_last, _may_hold_tensors):
            if all((_mtime_ns(file) or 0) <= pointer for file in files if may_be_one(file.name)):
                return True
        return False
    return True


def _files_below(path: Path) -> Iterator[Path]:
    """As far down as checkpoints go, and no further than they may be large; follows no link."""
    pending, seen = [(path, 0)], 0
    while pending and seen < MAX_FILES:
        place, depth = pending.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                seen += 1
                if not entry.is_dir(follow_symlinks=False):
                    yield place / entry.name
                elif depth < MAX_DEPTH:
                    pending.append((place / entry.name, depth + 1))


def _may_hold_tensors(name: str) -> bool:
    return name.endswith((*TENSOR_SUFFIXES, SHARD_SUFFIX))


def _mtime_ns(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return os.lstat(path).st_mtime_ns
    return None


def _require_plain(path: Path, name: str, mode: int) -> None:
    if is_being_written(name.rpartition("/")[2]):
        raise BadCheckpoint(path, f"{name!a} is still being written, or was left by a writer that died")
    if stat.S_ISLNK(mode):
        raise BadCheckpoint(path, f"holds the symbolic link {name!a}: not supported", hint="it stays as it is")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or not is_text(name):
        raise BadCheckpoint(path, f"holds {name!a}, which is no regular file with a name in UTF-8")
    if stat.S_ISDIR(mode) and name.count("/") >= MAX_DEPTH:
        raise BadCheckpoint(path, f"holds {name!a}, {MAX_DEPTH + 1} directories deep: at most {MAX_DEPTH} are read")


def is_text(name: str) -> bool:
    """Whether a name from the file system is UTF-8: a manifest cannot hold another."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
