"""Who else is at work: locks on files, and processes that can be recognised after they died."""

import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckzd.errors import ConfigError, StoreLocked

POLL_SECONDS = 0.05
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
LOCKS_UNSUPPORTED = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})  # what Lustre and FUSE answer


@contextmanager
def flock(path: Path, operation: int, *, wait_seconds: float) -> Iterator[None]:
    """Hold a lock on `path` (flock: the kernel drops it with the process). StoreLocked, naming the holder if it can.

    A shared lock is only a courtesy to those who delete: it is done without on a read-only or lockless file system.
    """
    descriptor = _open(path, operation)
    deadline = time.monotonic() + wait_seconds
    try:
        while descriptor >= 0 and not _try_lock(path, descriptor, operation):
            if time.monotonic() >= deadline:
                raise StoreLocked(path, f"held by {_holders(descriptor)}", hint="wait until it is done, then try again")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _open(path: Path, operation: int) -> int:
    """A descriptor to lock; -1 where the lock may be done without."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in READ_ONLY or operation != fcntl.LOCK_SH:
            raise
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return -1


def _try_lock(path: Path, descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LOCKS_UNSUPPORTED:
            raise
        if operation != fcntl.LOCK_SH:
            raise ConfigError(path, "the file system has no locks", hint="mount it with flock") from error
    return True


def _holders(descriptor: int) -> str:
    """Who holds a lock on this file, as the kernel tells it: "process 123 (python3)"."""
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return "another process"
    pids = {int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5] == place}
    return ", ".join(f"process {pid} ({_command(pid)})" for pid in sorted(pids) if pid > 0) or "another process"


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told apart from every other: which boot, which process namespace, which process, since when."""

    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> "Process":
        """The calling process."""
        return cls(*_here(), os.getpid(), _start_of(os.getpid()) or "0")

    @classmethod
    def parse(cls, name: str) -> "Process | None":
        """The process that is named at the beginning of a temporary file's name; None for any other name."""
        match = re.match(r"(?:\.ckzd-)?([0-9a-f]{8})-(\d+)-(\d+)-(\d+)-", name)
        return cls(match[1], match[2], int(match[3]), match[4]) if match else None

    def __str__(self) -> str:
        return f"{self.boot}-{self.namespace}-{self.pid}-{self.started}"

    def is_local(self) -> bool:
        """Whether this process could see the owner if it lived."""
        return (self.boot, self.namespace) == _here()

    def is_dead(self) -> bool:
        """Whether it certainly lives no more; False where that cannot be told."""
        return self.is_local() and _start_of(self.pid) != self.started


def _here() -> tuple[str, str]:
    """The boot of this machine (its id is random) and the namespace of its processes that we are in."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    return boot, str(Path("/proc/self/ns/pid").stat().st_ino)


def _start_of(pid: int) -> str | None:
    """When the process started, in clock ticks since boot; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None
