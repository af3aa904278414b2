"""What stands at a checkpoint's place: may it be replaced, is it still what was archived, a copy of what stays."""

import fcntl
import os
import shutil
import signal
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ckzd import durable
from ckzd.archive import FileModel, Manifest
from ckzd.base_models import all_notes, files_of, hashes_of, why_needed
from ckzd.chains import ARCHIVE_SUFFIX, ArchiveRecord
from ckzd.checkpoint import sha256_of
from ckzd.errors import BadCheckpoint, SourceChanged
from ckzd.file_marks import Mark, walk
from ckzd.formats.names import POINTER_NAME
from ckzd.operations.pointer import large_files
from ckzd.pace import blocks
from ckzd.page_cache import forget
from ckzd.store import MAX_NAME_BYTES

OF_A_BASE_MODEL = "a base model may be restored from it"


def marks_of(checkpoint: Path) -> dict[str, Mark]:
    """The marks of a file ("") or of a directory and all that is in it, by relative name. Follows no link."""
    return {name: Mark.of(status) for name, status in _walk(checkpoint)}


def what_stands(checkpoint: Path, manifest: Manifest) -> Manifest:
    """Of several files those that are there: of the others training may have deleted one, or a restore left one out."""
    if manifest.kind != "files":
        return manifest
    there = [path.name for path in large_files(checkpoint, manifest) if os.path.lexists(path)]
    if checkpoint.name not in there:
        raise SourceChanged(checkpoint, "is gone")
    return manifest.of_files(there)


def require_replaceable(checkpoint: Path, manifest: Manifest) -> None:
    """Raise BadCheckpoint for what must not be replaced, SourceChanged for what is not what was archived.

    Each of several files is asked as a lone one is.
    """
    if manifest.kind == "files":
        for path in large_files(checkpoint, manifest):
            _require_replaceable(path, manifest.of_files([path.name]))
    else:
        _require_replaceable(checkpoint, manifest)


def _require_replaceable(checkpoint: Path, manifest: Manifest) -> None:
    for name, status in _walk(checkpoint):
        path = checkpoint / name
        if stat.S_ISLNK(status.st_mode) and (not name or path in large_files(checkpoint, manifest)):
            raise BadCheckpoint(path, "is a symbolic link", hint="only what is really here can be replaced")
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            problem = f"has {status.st_nlink} names (hard links): replacing one frees nothing"
            raise BadCheckpoint(path, problem, hint="remove the other names first")
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise BadCheckpoint(path, "is neither a file nor a directory")
    longest = MAX_NAME_BYTES - len(ARCHIVE_SUFFIX)
    if manifest.kind == "file" and len(os.fsencode(checkpoint.name)) > longest:
        problem = f"its name leaves no room for its pointer's: expected at most {longest} bytes"
        raise BadCheckpoint(checkpoint, problem, hint="give it a shorter name")
    if checkpoint.is_dir() != (manifest.kind == "directory"):
        raise SourceChanged(checkpoint, f"is no {manifest.kind} any more")
    large = large_files(checkpoint, manifest)
    if not large:
        raise BadCheckpoint(checkpoint, "no file of it holds tensors: there is nothing to replace")
    for path, file in large.items():
        _require_size(path, file)
    require_same_small_files(checkpoint, manifest)


def require_not_needed(checkpoint: Path, manifest: Manifest, store: Path) -> None:
    """Raise BadCheckpoint for what archives of any store are deltas against, or a part of it, or what lies in it."""
    places = [checkpoint, *large_files(checkpoint, manifest)]
    why = why_needed(places, content_of(manifest), store, files_of(places))
    if why is not None:
        raise BadCheckpoint(checkpoint, f"is not replaced: {why}", hint="it stays as it is while they are needed")


def content_of(manifest: Manifest) -> set[str]:
    """Sha256 of the files with tensors, as they were and as a restore writes them."""
    return {sha for file in manifest.files if file.tensors for sha in (file.original_sha256, file.sha256)}


def of_base_models(store: Path, records: Iterable[ArchiveRecord]) -> set[Path]:
    """The archives that a base model of some store's archives may be restored from: they stay while it is needed."""
    models = hashes_of(note for _, note in all_notes(store))
    return {record.path for record in records if not models.isdisjoint(content_of(record.manifest))}


def require_same_small_files(checkpoint: Path, manifest: Manifest) -> None:
    """Raise SourceChanged unless the files that stay are what the archive holds of them."""
    for file in manifest.files:
        path = checkpoint / file.name
        if manifest.kind == "directory" and not file.tensors:
            _require_content(path, file)


def require_same_large_files(place: Path, manifest: Manifest) -> None:
    """Raise SourceChanged unless the large files under `place` are, byte for byte, what was archived (or restored).

    Nobody has them open for writing and nobody can open them by their old name any more, so this stays true.
    """
    large = large_files(place, manifest)
    for path, file in large.items():
        _require_size(path, file)
        if is_open_for_writing(path):
            raise SourceChanged(path, "is open for writing in another process")
    for path, file in large.items():
        _require_content(path, file)


def require_unmarked(place: Path, expected: dict[str, Mark]) -> None:
    """Raise SourceChanged unless all that is under `place` was left alone since `expected` was taken, and stays so."""
    found = marks_of(place)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise SourceChanged(place / name, "was written to while the checkpoint was replaced")
    for name in found:
        if (place / name).is_file() and not (place / name).is_symlink() and is_open_for_writing(place / name):
            raise SourceChanged(place / name, "is open for writing in another process")


def copy_small_files(checkpoint: Path, target: Path, manifest: Manifest) -> None:
    """Make `target` a copy of a directory without its large files: same names, bytes, owners, modes, times."""
    left_out = {str(path.relative_to(checkpoint)) for path in large_files(checkpoint, manifest)}
    stays = [(name, status) for name, status in _walk(checkpoint) if name not in left_out]
    nbytes = sum(status.st_size for name, status in stays if name != POINTER_NAME)
    durable.require_space(target.parent, nbytes)
    with durable.as_no_space(target):
        for name, status in stays:
            if stat.S_ISDIR(status.st_mode):
                (target / name).mkdir()
            elif name != POINTER_NAME:
                shutil.copyfile(checkpoint / name, target / name, follow_symlinks=False)
                copy_stat(checkpoint / name, target / name, status)


def copy_directory_stats(checkpoint: Path, target: Path) -> None:
    """Give `target` and the directories in it the owners, modes and times of the original's; do it last."""
    directories = [(name, status) for name, status in _walk(checkpoint) if stat.S_ISDIR(status.st_mode)]
    for name, status in reversed(directories):
        copy_stat(checkpoint / name, target / name, status)


def copy_stat(source: Path, target: Path, status: os.stat_result) -> None:
    """Owner first: changing it clears mode bits."""
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    shutil.copystat(source, target, follow_symlinks=False)


def is_open_for_writing(path: Path) -> bool:
    """Whether a process of this machine has the file open for writing. False where the kernel does not say."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.fcntl(
            descriptor, fcntl.F_SETSIG, signal.SIGURG
        )  # if somebody opens it meanwhile: a signal that is ignored
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:  # not the owner, or a file system without leases
        return False
    finally:
        os.close(descriptor)
    return False


def allocated_bytes(paths: Iterator[Path] | list[Path]) -> int:
    """Bytes that these files take on disk."""
    return sum(durable.disk_bytes(path.lstat()) for path in paths)


def _walk(checkpoint: Path) -> Iterator[tuple[str, os.stat_result]]:
    """As `walk`; SourceChanged where something is gone meanwhile."""
    try:
        yield from walk(checkpoint)
    except FileNotFoundError as error:
        raise SourceChanged(error.filename, "is gone") from None


def _require_size(path: Path, file: FileModel) -> None:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise SourceChanged(path, "is gone") from None
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise SourceChanged(path, "is no longer a regular file with one name")
    if status.st_size != file.size:
        raise SourceChanged(path, f"expected the {file.size} bytes that were archived, got {status.st_size}")


def _require_content(path: Path, file: FileModel) -> None:
    _require_size(path, file)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as opened:  # noqa: PTH123 - it is a descriptor
        sha256 = sha256_of(blocks(opened))
        forget(descriptor)
    if sha256 not in (file.original_sha256, file.sha256):
        problem = f"expected the archived content, sha256 {file.original_sha256}, got {sha256}"
        raise SourceChanged(path, problem, hint="archive it again")
