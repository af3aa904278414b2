"""Take a replaced checkpoint away for good: first what stands for it, then its archive.

    file        pointer -> archive; of several files all pointers -> archive
    directory   the small files that stayed -> the directory with its pointer, in one step -> as above
                where something else is in it: the small files -> the pointer -> as above

Each step is durable before the next one. Until the pointer goes it leads to the archive, and all of the checkpoint can
be restored; after it the archive is one that the framework has rotated, and nothing leads nowhere. Of a directory only
those small files go that are as they were archived: what was written into it later is not ckzd's to delete.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ckzd import durable
from ckzd.archive import FileModel, Manifest
from ckzd.chains import ArchiveRecord
from ckzd.errors import SourceChanged
from ckzd.formats.names import POINTER_NAME
from ckzd.operations.pointer import large_files, places_of, pointer_for, points_to
from ckzd.operations.undo import carry_over_what_came_later
from ckzd.store import Store

_CHUNK = 1 << 20


def standing(run: Path, record: ArchiveRecord) -> list[Path]:
    """What of a checkpoint a pointer of ours, and no link to one, stands for in its place, naming this archive."""
    return [place for place in places_of(run, record.manifest) if _stands_for(pointer_for(place), record.path)]


def _stands_for(pointer: Path, archive: Path) -> bool:
    with suppress(OSError):
        return stat.S_ISREG(pointer.lstat().st_mode) and points_to(pointer, archive)
    return False


def withdraw(store: Store, run: Path, record: ArchiveRecord) -> None:
    """Delete the pointers in a run that are this archive's, and the archive.

    Whoever calls holds the store alone and knows that nothing else needs the archive. Raises SourceChanged, having
    deleted nothing, if somebody writes the checkpoint anew.
    """
    checkpoint = run / record.manifest.name
    if places := standing(run, record):
        if any(os.path.lexists(path) for path in large_files(checkpoint, record.manifest)):
            raise SourceChanged(checkpoint, "is written anew just now: it stays")
        if record.manifest.kind == "directory":
            _remove_small_files(checkpoint, record.manifest)
            _remove_directory(store, checkpoint)
        for place in places:
            durable.remove(pointer_for(place))
    durable.remove(record.path)


def _remove_small_files(checkpoint: Path, manifest: Manifest) -> None:
    """Those that are in the archive as they stand here, and directories that nothing else is in."""
    ours = [file for file in manifest.files if not file.tensors]
    for file in ours:
        if _is_as_archived(checkpoint / file.name, file):
            durable.remove(checkpoint / file.name)
    folders = {folder for file in manifest.files for folder in _folders(file.name)}
    folders |= {folder.name for folder in manifest.folders}
    for folder in sorted(folders, key=len, reverse=True):
        durable.remove_empty_directory(checkpoint / folder)


def _remove_directory(store: Store, checkpoint: Path) -> None:
    """Where nothing but the pointer is left in it the directory goes with it at once.

    So none stays empty after a crash, and none is taken for one that a trainer has just made.
    """
    if _names(checkpoint) != {POINTER_NAME}:
        return
    temp = store.new_temp(".pruned")
    durable.rename(checkpoint, temp)
    if _names(temp) == {POINTER_NAME}:
        durable.remove_tree(temp)
        return
    try:
        durable.rename(temp, checkpoint)  # somebody wrote into it in the very last moment
    except FileExistsError:
        carry_over_what_came_later(temp, {}, checkpoint)
    raise SourceChanged(checkpoint, "is written anew just now: it stays")


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def _folders(name: str) -> Iterator[str]:
    return (str(parent) for parent in PurePosixPath(name).parents if str(parent) != ".")


def _is_as_archived(path: Path, file: FileModel) -> bool:
    """Whether these very bytes stand there, in a plain file that nobody has written since."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            return False
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return sha256 in (file.original_sha256, file.sha256)
