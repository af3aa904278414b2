"""The only place of `formats` that opens files: exact reads from files that must stay what they were."""

import contextlib
import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ckzd.access import plain_mode
from ckzd.checkpoint import FileStat
from ckzd.errors import BadCheckpoint, CkzdError, SourceChanged
from ckzd.file_marks import is_unchanged
from ckzd.pace import took
from ckzd.page_cache import forget_file, is_cached

MAX_OPEN_FILES = 128  # tensors that ranks have parts of are read from all their files in turns
WINDOW_BYTES = 4096
PAGE_BYTES = 16 << 10
MAX_PAGES = 8
OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe must not make us wait
_GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ENODEV}
_FORBIDDEN = {errno.EACCES, errno.EPERM}


def file_stat(path: Path, found: os.stat_result) -> FileStat:
    """What a restore gives back."""
    return FileStat(plain_mode(path, found), found.st_uid, found.st_gid, found.st_mtime_ns)


@contextlib.contextmanager
def as_ckzd_errors(path: Path) -> Iterator[None]:
    """The seam to the operating system: no OSError leaves `formats`."""
    try:
        yield
    except OSError as error:
        if error.errno in _GONE:
            raise SourceChanged(path, "is not there") from error
        if error.errno in _FORBIDDEN:
            raise BadCheckpoint(path, "permission denied", hint="run ckzd as a user who may read it") from error
        if error.errno == errno.ELOOP:
            raise BadCheckpoint(path, "is a symbolic link", hint="name the file that it points to") from error
        raise CkzdError(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise BadCheckpoint(ascii(str(path)), "is no file name") from error


def regular_file(path: Path) -> os.stat_result:
    """Stat of a regular file; BadCheckpoint for a symbolic link, a directory, a pipe."""
    with as_ckzd_errors(path):
        found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise BadCheckpoint(path, "is a symbolic link", hint="name the file that it points to")
    if not stat.S_ISREG(found.st_mode):
        raise BadCheckpoint(path, "is no regular file")
    return found


class FileSource:
    """Exact reads of numbered files, in any order and from any thread.

    What the files are is fixed when the source is made. Each read raises SourceChanged if the file at the path is
    another one by now, was written to or cut, or is gone. Few files are kept open; `close()` closes them, and lets
    memory forget what it did not hold before: that is for training's data. No read waits for another one.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.stats = tuple(regular_file(path) for path in self.paths)
        self._lock = threading.Lock()
        self._open: dict[int, int] = {}  # owner: whoever holds the lock; file number -> descriptor, oldest use first
        self._readers: Counter[int] = Counter()  # owner: likewise; those at work in a file, which stays open for them
        self._cached: dict[int, bool] = {}  # owner: likewise; whether memory held a file when it was opened first

    def read(self, file: int, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes of file number `file`."""
        path = self.paths[file]
        with as_ckzd_errors(path), self._opened(file) as descriptor:
            try:
                data = read_exactly(descriptor, offset, nbytes)
            finally:  # once, afterwards: what happened to the file before shows then, too
                self._check(file, descriptor)
        took(len(data))
        if len(data) != nbytes:
            raise SourceChanged(path, f"expected {nbytes} bytes at {offset}, got {len(data)}")
        return data

    def view(self, file: int) -> "FileView":
        """One file, for a parser."""
        return FileView(self, file, str(self.paths[file]), self.paths[file].name, self.stats[file].st_size)

    def close(self) -> None:
        """Close what is open and not being read; a later read opens it again."""
        with self._lock:
            self._close_all_but(0)
            fetched = [file for file, was_cached in self._cached.items() if not was_cached]
            self._cached.clear()
        for file in fetched:
            with contextlib.suppress(OSError):
                forget_file(self.paths[file])

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()

    @contextlib.contextmanager
    def _opened(self, file: int) -> Iterator[int]:
        with self._lock:
            descriptor = self._open.pop(file, None)
            if descriptor is None:
                self._close_all_but(MAX_OPEN_FILES - 1)
                descriptor = os.open(self.paths[file], OPEN_FLAGS)
                if file not in self._cached:
                    self._cached[file] = is_cached(descriptor)
            self._open[file] = descriptor
            self._readers[file] += 1
        try:
            yield descriptor
        finally:
            with self._lock:
                self._readers[file] -= 1

    def _close_all_but(self, count: int) -> None:
        """Of the files that nobody reads, those that were used longest ago."""
        unread = [file for file in self._open if not self._readers[file]]
        for file in unread[: max(0, len(self._open) - count)]:
            os.close(self._open.pop(file))

    def _check(self, file: int, descriptor: int) -> None:
        looks = os.fstat(descriptor), os.lstat(self.paths[file])
        if not all(is_unchanged(self.stats[file], found) for found in looks):
            raise SourceChanged(self.paths[file], "was replaced or written to while it was read")


@contextlib.contextmanager
def closed_on_error(source: FileSource) -> Iterator[FileSource]:
    """Hand the source on open if all goes well."""
    try:
        yield source
    except BaseException:
        source.close()
        raise


def first_bytes(path: Path, nbytes: int) -> bytes:
    """Up to `nbytes` bytes from the start of a file, which may be changing."""
    with as_ckzd_errors(path):
        descriptor = os.open(path, OPEN_FLAGS)
        try:
            return os.pread(descriptor, nbytes, 0)
        finally:
            os.close(descriptor)


def read_exactly(descriptor: int, offset: int, nbytes: int) -> bytes:
    """Up to `nbytes`; less only at the end of the file. One call reads at most 2 GiB."""
    pieces: list[bytes] = []
    while nbytes and (piece := os.pread(descriptor, nbytes, offset)):
        pieces.append(piece)
        offset += len(piece)
        nbytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Readable(Protocol):
    """Whatever `FileView` reads from."""

    def read(self, file: int, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes of file number `file`."""
        ...


class PagedSource:
    """For many short reads of one file that lie close together: pages are read once."""

    def __init__(self, source: Readable, end: int) -> None:
        self._source = source
        self._end = end  # of what may be read
        self._pages: dict[int, bytes] = {}  # by number, oldest use first

    def read(self, file: int, offset: int, nbytes: int) -> bytes:
        """As `FileSource.read`; what is longer than a page is read past them."""
        if nbytes > PAGE_BYTES:
            return self._source.read(file, offset, nbytes)
        first, last = offset // PAGE_BYTES, (offset + max(nbytes, 1) - 1) // PAGE_BYTES
        pages = b"".join(self._page(file, number) for number in range(first, last + 1))
        start = offset - first * PAGE_BYTES
        return pages[start : start + nbytes]

    def _page(self, file: int, number: int) -> bytes:
        page = self._pages.pop(number, None)
        if page is None:
            start = number * PAGE_BYTES
            page = self._source.read(file, start, min(PAGE_BYTES, self._end - start))
            if len(self._pages) >= MAX_PAGES:
                self._pages.pop(next(iter(self._pages)))
        self._pages[number] = page
        return page


@dataclass(frozen=True, slots=True)
class FileView:
    """What a parser sees of a file, or of a part of it: its size, and bytes inside it."""

    source: Readable
    file: int
    subject: str
    name: str
    size: int
    start: int = 0  # in the file

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes that the file itself refers to: BadCheckpoint if they lie outside."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise BadCheckpoint(self.subject, f"refers to {nbytes} bytes at {offset} in a file of {self.size} bytes")
        return self.source.read(self.file, self.start + offset, nbytes)

    def paged(self) -> "FileView":
        """A view of these bytes that reads a page at a time, for readers of many short pieces."""
        return replace(self, source=PagedSource(self.source, self.start + self.size))

    def part(self, offset: int, nbytes: int) -> "FileView":
        """A file inside this one; BadCheckpoint if it does not lie in it."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise BadCheckpoint(self.subject, f"expected {nbytes} bytes at {offset} in a file of {self.size} bytes")
        subject, start = f"{self.subject}@{offset}", self.start + offset
        return FileView(self.source, self.file, subject, self.name, nbytes, start)


class Window:
    """A view for short reads that mostly go forward: each trip to the file brings a page."""

    def __init__(self, view: FileView) -> None:
        self._view = view
        self._start = 0
        self._data = b""

    def read(self, offset: int, nbytes: int) -> bytes:
        """As `FileView.read`."""
        at = offset - self._start
        if at < 0 or nbytes < 0 or at + nbytes > len(self._data):
            ahead = max(nbytes, min(WINDOW_BYTES, self._view.size - offset))
            self._start, self._data, at = offset, self._view.read(offset, ahead), 0
        return self._data[at : at + nbytes]
