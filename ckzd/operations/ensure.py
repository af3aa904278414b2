"""ensure_restored: what a trainer calls on every rank before it resumes."""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path

from ckzd.chains import ARCHIVE_SUFFIX, read_manifest
from ckzd.errors import CkzdError, StoreLocked
from ckzd.formats import completeness, is_replaced, read_checkpoint
from ckzd.formats.names import POINTER_NAME, step_in_name
from ckzd.locks import LOCKS_UNSUPPORTED, claim
from ckzd.operations.child import run_module
from ckzd.operations.pointer import MAX_POINTER_BYTES, archive_of, is_archive
from ckzd.operations.reconstruct import store_of
from ckzd.operations.replace import pointer_for, resolve
from ckzd.store import Store

WAIT_SECONDS = 3600.0  # a restore reads, decodes and writes one checkpoint: minutes at the most
POLL_SECONDS = 0.1


def ensure_restored(path: Path | str) -> Path:
    """Make sure that all of the checkpoint at `path` is there, restoring what ckzd replaced of it; returns its path.

    Of a directory that is everything below it for which a pointer stands, of a file what was archived with it too. Call
    it on every rank, of as many hosts as there are on its file system. One rank restores, in a fresh child process (a
    trainer's default dtype, device and floating-point modes are its own business), the others wait for it,
    `WAIT_SECONDS` at the most; where it dies, another takes its turn. If nothing is missing it returns at once; what
    cannot be restored is an error.
    """
    checkpoint = Path(path)
    for replaced in [checkpoint, *_replaced_below(checkpoint)]:
        _ensure(replaced)
    for other in _replaced_with(checkpoint):  # after a restore that was killed, or of a file that was put back alone
        _ensure(other)
    return checkpoint


def _ensure(checkpoint: Path) -> None:
    if not _is_there(checkpoint):
        with _turn(checkpoint):
            if not _is_there(checkpoint):
                _restore_in_child(checkpoint)


def _replaced_with(checkpoint: Path) -> list[Path]:
    """Files that pointers stand for, of which an archive says that they are one checkpoint with this file."""
    found = []
    if not checkpoint.is_dir():
        for pointer in checkpoint.parent.glob(f"*{ARCHIVE_SUFFIX}"):
            other = pointer.with_suffix("")
            if step_in_name(other.name) == step_in_name(checkpoint.name) and _stands_alone(pointer):
                with suppress(CkzdError):  # else it is of no archive that could say so
                    manifest = read_manifest(archive_of(pointer))
                    names = {file.name for file in manifest.files}
                    found += [other] if manifest.kind == "files" and {other.name, checkpoint.name} <= names else []
    return sorted(found)


def _replaced_below(folder: Path) -> list[Path]:
    """What pointers below a directory stand for; not in stores, whose archives only look like them."""
    found = []
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not Store.is_at(Path(place, name))]
        found += [Path(place, name) for name in folders if os.path.lexists(Path(place, name, POINTER_NAME))]
        found += [pointer.with_suffix("") for name in files if _stands_alone(pointer := Path(place, name))]
    return found


def _raise(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):  # a file, or what `resolve` is to explain
        raise error


def _stands_alone(pointer: Path) -> bool:
    """Whether a file is, or was, the pointer of one that is not there: small, and no archive."""
    if pointer.suffix != ARCHIVE_SUFFIX or os.path.lexists(pointer.with_suffix("")) or not pointer.is_file():
        return False
    return pointer.stat().st_size <= MAX_POINTER_BYTES and not is_archive(pointer)


def _is_there(checkpoint: Path) -> bool:
    """A restore fills a file's place at once, and takes the pointer out of a directory with the same exchange.

    The pointer stays where a trainer has saved into the directory again: what is there then must be whole.
    """
    if checkpoint.is_dir() and pointer_for(checkpoint).exists():
        return not is_replaced(checkpoint) and _is_whole(checkpoint)
    return checkpoint.exists()


def _is_whole(checkpoint: Path) -> bool:
    try:
        with closing(read_checkpoint(checkpoint).source):
            return completeness(checkpoint) is None
    except CkzdError:
        return False


@contextmanager
def _turn(replaced: Path) -> Iterator[None]:
    """Wait for this rank's turn: a lock on the archive among ranks of this host, a claim in its store among hosts.

    Where neither is to be had two ranks may restore the same: wasteful, not harmful, a restore is all or nothing.
    """
    try:
        archive = resolve(replaced).path
    except CkzdError:
        if _is_there(replaced):  # by now
            yield
            return
        raise
    descriptor = os.open(archive, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    deadline = time.monotonic() + WAIT_SECONDS
    try:
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise StoreLocked(archive, f"expected another rank to restore it within {WAIT_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)
        with _claim(archive, deadline - time.monotonic()):
            yield
    finally:
        os.close(descriptor)


def _claim(archive: Path, wait_seconds: float) -> AbstractContextManager[None]:
    store = store_of(archive)
    if store is None or not store.is_writable():
        return nullcontext()
    name = hashlib.sha256(os.fsencode(archive.name)).hexdigest()[:16]
    return claim(store.claims, f"restore-{name}", wait_seconds=wait_seconds)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LOCKS_UNSUPPORTED:
            raise
    return True


def _restore_in_child(checkpoint: Path) -> None:
    """Run `python -m ckzd restore`; raises the error that it ended with, unless another rank has restored it."""
    try:
        run_module("ckzd", ["restore", "--json", "--", str(checkpoint.absolute())], subject=checkpoint)
    except CkzdError:
        if not _is_there(checkpoint):
            raise
