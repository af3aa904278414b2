"""Who else is at work: locks on files, claims where locks do not reach, processes that can be told after they died.

`flock` parts the processes of one host, at once and for certain: the kernel drops it with its process. Not every file
system passes it on to other hosts. There a claim parts them: a file that names its owner and host, in a directory that
all of them see. Its owner beats, a new mtime every few seconds; one that does not is gone, and its claim is taken away.
"""

import errno
import fcntl
import os
import random
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ckzd.errors import StoreLocked
from ckzd.meanwhile import repeated

POLL_SECONDS = 0.05
CLAIM_POLL_SECONDS = 0.2
BEAT_SECONDS = 5.0
GONE_SECONDS = 60.0  # without a beat; NFS may show a beat seconds late, and who stands back may starve for some
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
LOCKS_UNSUPPORTED = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})  # what Lustre and FUSE answer


@contextmanager
def locked(path: Path, claims: Path, *, shared: bool, wait_seconds: float) -> Iterator[None]:
    """Hold a lock on `path` against processes of this host, and a claim in the directory `claims` against other hosts.

    StoreLocked, naming who holds it, if it is taken for so long. One who is shared does without where it cannot write.
    """
    with (
        flock(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait_seconds=wait_seconds),
        claim(claims, path.name, shared=shared, wait_seconds=wait_seconds),
    ):
        yield


@contextmanager
def flock(path: Path, operation: int, *, wait_seconds: float) -> Iterator[None]:
    """Hold a lock on `path` (flock: the kernel drops it with the process). StoreLocked, naming the holder if it can.

    A shared lock is only a courtesy to those who delete: it is done without on a read-only or lockless file system.
    """
    descriptor = _open(path, operation)
    deadline = time.monotonic() + wait_seconds
    try:
        while descriptor >= 0 and not _try_lock(descriptor, operation):
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


def _try_lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LOCKS_UNSUPPORTED:
            raise
    return True  # where there are none, claims are what there is


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


@contextmanager
def claim(place: Path, subject: str, *, shared: bool = False, wait_seconds: float) -> Iterator[None]:
    """Be the only one with a claim on `subject` in `place`, or one of several that are shared, on any host.

    StoreLocked if the owner of another claim still lives after `wait_seconds`; that it lives is known at once of a
    process of this host, and of others when they beat. One who is gone is waited for as long as it takes to know that:
    `GONE_SECONDS` at the most. On a full disk it is done without: what waits for it may be what makes room.
    """
    own = _Claim.new(place, subject, shared=shared)
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        _take(own, wait_seconds)
    except OSError as error:
        if error.errno not in (FULL | READ_ONLY if shared else FULL):
            raise
        yield
        return
    with _beating(own.path):
        yield


@dataclass(frozen=True, slots=True)
class _Claim:
    """`PROCESS-TOKEN@HOST@SUBJECT@alone`, empty: on a full disk there is room for a name."""

    path: Path
    conflicting: tuple[str, ...]  # ends of the names of those that it cannot stand beside

    @classmethod
    def new(cls, place: Path, subject: str, *, shared: bool) -> "_Claim":
        """One that is not made yet."""
        host = re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())[:64]
        alone, together = f"@{subject}@alone", f"@{subject}@shared"
        name = f"{Process.this()}-{secrets.token_hex(6)}@{host}{together if shared else alone}"
        return cls(place / name, (alone,) if shared else (alone, together))


@dataclass(slots=True)
class _Look:
    """What was seen of another's claim."""

    mtime_ns: int
    since: float  # monotonic: no beat since
    beats: bool = False

    def is_gone(self, owner: "Process") -> bool:
        """Whether its owner is dead, or has not beaten for so long; two beats are watched whatever clocks say."""
        is_old = time.time() - self.mtime_ns / 1e9 > GONE_SECONDS
        watched = time.monotonic() - self.since
        return owner.is_dead() or watched > (2 * BEAT_SECONDS if is_old else GONE_SECONDS)


@dataclass(slots=True)
class _Others:
    """Those whose claims stand beside ours; it remembers what it saw of them."""

    own: _Claim
    looks: dict[str, _Look] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Of claims that ours cannot stand beside, in order; those of owners who are gone are taken away."""
        found = []
        with os.scandir(self.own.path.parent) as entries:
            for entry in entries:
                owner = Process.parse(entry.name)
                if owner is not None and entry.name.endswith(self.own.conflicting) and entry.name != self.own.path.name:
                    with suppress(FileNotFoundError):
                        if self._look(entry).is_gone(owner):
                            Path(entry.path).unlink()
                        else:
                            found.append(entry.name)
        return sorted(found)

    def _look(self, entry: os.DirEntry[str]) -> _Look:
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)  # NFS asks its server then
        mtime_ns = os.fstat(descriptor).st_mtime_ns
        os.close(descriptor)
        look = self.looks.setdefault(entry.name, _Look(mtime_ns, time.monotonic()))
        if look.mtime_ns != mtime_ns:
            look.mtime_ns, look.since, look.beats = mtime_ns, time.monotonic(), True
        return look

    def require_hope(self, names: list[str], deadline: float) -> None:
        """Raise StoreLocked if it is late and each of these is known to live."""
        owners = [(name, owner) for name in names if (owner := Process.parse(name)) is not None]
        if time.monotonic() >= deadline and all(self.looks[name].beats or owner.is_local() for name, owner in owners):
            hosts = [(owner, name.split("@")[1]) for name, owner in owners]
            held = ", ".join(f"process {owner.pid} on {host}" for owner, host in hosts)
            place = self.own.path.parent
            raise StoreLocked(place, f"held by {held}", hint="wait until it is done, then try again")


def _take(own: _Claim, wait_seconds: float) -> None:
    """Make the claim and find no other beside it: of two that come at a time at least one sees the other.

    Who sees an earlier name makes way. Who sees later ones alone stays: they make way too, or are done some time.
    """
    others, deadline, is_made = _Others(own), time.monotonic() + wait_seconds, False
    try:
        while (names := others.names()) or not is_made:
            is_first = not names or own.path.name < names[0]
            if is_first and not is_made:
                os.close(os.open(own.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            elif is_made and not is_first:
                own.path.unlink(missing_ok=True)
            if names:
                others.require_hope(names, deadline)
                time.sleep(CLAIM_POLL_SECONDS * random.uniform(0.5, 1.5))
            is_made = is_first and _beat(own.path)
    except BaseException:
        own.path.unlink(missing_ok=True)
        raise


@contextmanager
def _beating(path: Path) -> Iterator[None]:
    try:
        with repeated(partial(_beat, path), BEAT_SECONDS, "ckzd-claim"):
            yield
    finally:
        with suppress(OSError):  # it beats no more: whoever waits for it takes it away
            path.unlink()


def _beat(path: Path) -> bool:
    """Whether it is still there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True


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
