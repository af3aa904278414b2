"""Who a checkpoint is: the files it consists of, as the file system tells them apart."""

import stat
from dataclasses import dataclass
from pathlib import Path

from ckzd.file_marks import Mark, walk

_MAX_INTEGER = (1 << 63) - 1  # of SQLite


@dataclass(frozen=True, slots=True)
class Identity:
    """A rewritten step has another one. For a directory: its own inode, the sum of sizes, the newest file's mtime.

    The journal has a row for each: marks of all files would not fit into one.
    """

    ino: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, ino: int, size: int, mtime_ns: int) -> "Identity":
        """With sizes and times as the journal can keep them: files may claim 2^63 bytes together, or any year."""
        return cls(ino, min(size, _MAX_INTEGER), max(-_MAX_INTEGER, min(mtime_ns, _MAX_INTEGER)))


@dataclass(frozen=True, slots=True)
class SeenFile:
    """One file inside a checkpoint; `name` is relative, "" for the checkpoint that is a file itself."""

    name: str
    mark: Mark
    links: int
    is_symlink: bool


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that a look at a checkpoint sees without reading it. Equal fingerprints: nothing has moved."""

    ino: int
    files: tuple[SeenFile, ...]

    @property
    def identity(self) -> Identity:
        """The short form that the journal keeps."""
        return Identity.of(self.ino, self.nbytes, self.newest_mtime_ns)

    @property
    def nbytes(self) -> int:
        """Sum of the file sizes."""
        return sum(file.mark.size for file in self.files)

    @property
    def newest_mtime_ns(self) -> int:
        """Last time that one of the files was written."""
        return max((file.mark.mtime_ns for file in self.files), default=0)


def fingerprint(checkpoint: Path) -> Fingerprint:
    """Look at every file of a checkpoint; OSError if one vanishes meanwhile.

    Directories in it do not count: what comes to them, or goes, are files.
    """
    found = list(walk(checkpoint))
    files = [
        SeenFile(name, Mark.of(status), status.st_nlink, stat.S_ISLNK(status.st_mode))
        for name, status in found
        if not stat.S_ISDIR(status.st_mode)
    ]
    _, own = found[0]
    return Fingerprint(own.st_ino, tuple(files))
