"""Who a checkpoint is: the files it consists of, as the file system tells them apart."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

_MAX_INTEGER = (1 << 63) - 1  # of SQLite


@dataclass(frozen=True, slots=True)
class Identity:
    """A rewritten step has another one. For a directory: its own inode, the sum of sizes, the newest file's mtime."""

    ino: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, ino: int, size: int, mtime_ns: int) -> "Identity":
        """With sizes and times as the journal can keep them: files may claim 2^63 bytes together, or any year."""
        return cls(ino, min(size, _MAX_INTEGER), max(-_MAX_INTEGER, min(mtime_ns, _MAX_INTEGER)))


@dataclass(frozen=True, slots=True)
class FileMark:
    """One file inside a checkpoint; `name` is relative, "" for the checkpoint that is a file itself."""

    name: str
    ino: int
    size: int
    mtime_ns: int
    links: int
    is_symlink: bool


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that a look at a checkpoint sees without reading it. Equal fingerprints: nothing has moved."""

    ino: int
    files: tuple[FileMark, ...]

    @property
    def identity(self) -> Identity:
        """The short form that the journal keeps."""
        return Identity.of(self.ino, self.nbytes, self.newest_mtime_ns)

    @property
    def nbytes(self) -> int:
        """Sum of the file sizes."""
        return sum(file.size for file in self.files)

    @property
    def newest_mtime_ns(self) -> int:
        """Last time that one of the files was written."""
        return max((file.mtime_ns for file in self.files), default=0)


def fingerprint(checkpoint: Path) -> Fingerprint:
    """Look at every file of a checkpoint, in name order; OSError if one vanishes meanwhile."""
    status = os.lstat(checkpoint)
    if not stat.S_ISDIR(status.st_mode):
        return Fingerprint(status.st_ino, (_mark("", status),))
    marks: list[FileMark] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(checkpoint / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                else:
                    marks.append(_mark(name, entry.stat(follow_symlinks=False)))
    return Fingerprint(status.st_ino, tuple(sorted(marks, key=lambda mark: mark.name)))


def _mark(name: str, status: os.stat_result) -> FileMark:
    is_symlink = stat.S_ISLNK(status.st_mode)
    return FileMark(name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_nlink, is_symlink)
