"""Chains: an archive and all it needs down to its base, and whether every link is sound as it lies on the disk now.

These functions look only at an archive's neighbours: a folder to which somebody copied a chain works like a store.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from ckzd.archive import ArchiveReader, Manifest
from ckzd.base_models import READ_AGAIN_SECONDS, require
from ckzd.errors import CkzdError, CorruptArchive, MissingBaseModel, MissingReference
from ckzd.file_marks import Mark
from ckzd.formats.names import POINTER_SUFFIX
from ckzd.page_cache import forget_file

log = logging.getLogger(__name__)

ARCHIVE_SUFFIX = POINTER_SUFFIX  # a pointer stands for an archive
_RUINED = 0.5  # of an archive's numbers: where some layers are NaN the others are worth a delta against them
_MAX_REMEMBERED = 1 << 16  # archives; some hundred bytes each

_Version = tuple[int, int, Mark]


@dataclass(frozen=True, slots=True)
class ArchiveRecord:
    """An archive and what it says of itself."""

    path: Path
    manifest: Manifest

    @classmethod
    def read(cls, archive: Path) -> Self:
        """Open it. Raises CorruptArchive."""
        return cls(archive, read_manifest(archive))


# What there is


def read_manifest(archive: Path) -> Manifest:
    """What an archive says of itself. Raises CorruptArchive."""
    with ArchiveReader(archive) as reader:
        return reader.manifest


def is_pointer(path: Path) -> bool:
    """Whether the file is a pointer rather than an archive: both may be called *.ckz."""
    with path.open("rb") as file:
        return file.read(1) == b"{"


def archive_files(directory: Path) -> list[Path]:
    """Everything in a directory that is called as archives are and is no pointer, readable or not."""
    found = []
    for path in sorted(directory.glob(f"*{ARCHIVE_SUFFIX}")):
        try:
            if path.is_file() and not path.is_symlink() and not is_pointer(path):
                found.append(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("archive left out: it cannot be read", extra={"path": str(path), "error": str(error)})
    return found


def records_in(directory: Path, tell: Callable[[Path, Exception], None] = lambda *_: None) -> list[ArchiveRecord]:
    """All readable archives of a directory; `tell` hears of the others. What has not changed is not opened again."""
    before, found = _records_before(directory), dict[Path, tuple[_Version, ArchiveRecord]]()
    for path in archive_files(directory):
        try:
            version = _version(path)
            known = before.get(path)
            found[path] = known if known is not None and known[0] == version else (version, ArchiveRecord.read(path))
        except FileNotFoundError:
            continue
        except (CorruptArchive, OSError) as error:
            tell(path, error)
    before.clear()
    before.update(found)
    return [record for _, record in found.values()]


@lru_cache(maxsize=1)  # one directory's: whoever asks holds as many anyway, and asks ten times for each archive
def _records_before(directory: Path) -> dict[Path, tuple[_Version, ArchiveRecord]]:
    """As they were when it was looked at last."""
    del directory
    return {}


def _version(archive: Path) -> _Version:
    """What changes with an archive's bytes.

    ctime counts: nothing can set that back after a change. What took a name by a rename (`Store.supplant`, moments
    dropped, an archive put in a damaged one's place) has a new one, and is read once more.
    """
    status = archive.stat()
    return status.st_dev, status.st_ctime_ns, Mark.of(status)


# Who needs whom


def reference_of(record: ArchiveRecord) -> ArchiveRecord | None:
    """The archive that this one is a delta against, among its neighbours; None for a base, or one of a base model.

    Two neighbours may have one reconstruction (a checkpoint that did not change, or was archived anew): any that is
    nearer to the base will do, and one that is sound is taken first. Raises MissingReference naming the id.
    """
    return _reference_among(records_in(record.path.parent), record)


def chain(record: ArchiveRecord) -> list[ArchiveRecord]:
    """The archive and all it needs, base first."""
    neighbours = records_in(record.path.parent)
    links = [record]
    while (reference := _reference_among(neighbours, links[-1])) is not None:
        links.append(reference)
    return links[::-1]


def references_in(records: Sequence[ArchiveRecord]) -> dict[Path, ArchiveRecord | None]:
    """What each is a delta against, None for a base; those whose reference is not among them are left out."""
    by_reconstruction: dict[str, list[ArchiveRecord]] = {}
    for record in records:
        by_reconstruction.setdefault(record.manifest.reconstruction, []).append(record)
    found: dict[Path, ArchiveRecord | None] = {}
    for record in records:
        with suppress(MissingReference):
            found[record.path] = _reference_among(by_reconstruction.get(record.manifest.reference or "", []), record)
    return found


def is_ruined(record: ArchiveRecord) -> bool:
    """Whether so much of it became infinite or no number at all that none that comes later is a delta against it."""
    return record.manifest.quality.get("ruined", 0.0) >= _RUINED


def decodable(records: Iterable[ArchiveRecord], is_link: Callable[[ArchiveRecord], bool] = lambda _: True) -> set[Path]:
    """Those whose chains are there down to a base, of archives that `is_link` lets pass."""
    reached: dict[str, int] = {}  # reconstruction id -> smallest depth that yields it
    found = set()
    for record in sorted(records, key=lambda record: record.manifest.depth):
        manifest = record.manifest
        needed = None if manifest.base_model is not None else manifest.reference
        has_reference = needed is None or reached.get(needed, manifest.depth) < manifest.depth
        if has_reference and is_link(record):
            reached.setdefault(manifest.reconstruction, manifest.depth)
            found.add(record.path)
    return found


def _reference_among(neighbours: list[ArchiveRecord], record: ArchiveRecord) -> ArchiveRecord | None:
    manifest, folder = record.manifest, record.path.parent
    if manifest.reference is None or manifest.base_model is not None:
        return None
    found = [  # depth falls along a chain: no circle, even where two have one reconstruction
        other
        for other in neighbours
        if other.manifest.reconstruction == manifest.reference and other.manifest.depth < manifest.depth
    ]
    if len(found) > 1:
        whole_chains = sound(records_in(folder))
        found = [other for other in found if other.path in whole_chains] or found
    if found:
        return found[0]
    problem = f"needs the archive with reconstruction {manifest.reference}, which is not in {folder}"
    raise MissingReference(record.path, problem, hint="copy the whole chain to one folder")


# Is it sound


def require_sound(archive: Path) -> None:
    """Every link of the chain is there, was read back from disk, and holds its checksums; its base model is as it was.

    Raises CorruptArchive or MissingReference; MissingBaseModel only where nothing else is wrong. That a cached
    reconstruction is whole says nothing of this.
    """
    links = chain(ArchiveRecord.read(archive))
    for link in links:
        require_whole(link.path)
    _require_base_model(links[0], archive)


def is_sound(archive: Path) -> bool:
    """Whether `require_sound` has nothing against it."""
    try:
        require_sound(archive)
    except (CkzdError, FileNotFoundError):
        return False
    return True


def is_intact(archive: Path) -> bool:
    """Whether every link of the chain is sound, be its base model here or away: then nothing of it is damaged."""
    try:
        require_sound(archive)
    except MissingBaseModel:
        return True
    except (CkzdError, FileNotFoundError):
        return False
    return True


def require_whole(archive: Path) -> None:
    """The archive itself, without its chain, was read back from disk and holds its checksums. Raises CorruptArchive.

    It is read once in each process as long as nothing of the file changes, and again in each period.
    """
    _read_back(archive, _version(archive), int(time.monotonic() // READ_AGAIN_SECONDS))


def is_whole(archive: Path) -> bool:
    """Whether `require_whole` has nothing against it."""
    try:
        require_whole(archive)
    except (CkzdError, FileNotFoundError):
        return False
    return True


def sound(records: Iterable[ArchiveRecord]) -> set[Path]:
    """Those whose chains are sound."""
    return decodable(records, lambda record: is_whole(record.path) and _has_base_model(record))


def intact(records: Iterable[ArchiveRecord]) -> set[Path]:
    """Those whose chains are sound but for a base model that may be away."""
    return decodable(records, lambda record: is_whole(record.path))


def is_irreplaceable(identity: str, records: Sequence[ArchiveRecord]) -> bool:
    """Whether archives yield this reconstruction, or hang on it, and none of them can be decoded to it any more.

    Then one that is cached is all that there is of it: of a damaged link, or of a base model that is away.
    """
    yielding = [record for record in records if record.manifest.reconstruction == identity]
    is_wanted = bool(yielding) or any(record.manifest.reference == identity for record in records)
    return is_wanted and not any(is_sound(record.path) for record in yielding)


def _require_base_model(root: ArchiveRecord, archive: Path) -> None:
    """Of an archive whose chain begins with `root`."""
    if root.manifest.base_model is not None:
        try:
            require(root.path, root.manifest.base_model)
        except MissingBaseModel as error:
            raise MissingBaseModel(archive, error.problem, hint=error.hint) from error


def _has_base_model(record: ArchiveRecord) -> bool:
    with suppress(MissingBaseModel):
        _require_base_model(record, record.path)
        return True
    return False


@lru_cache(maxsize=_MAX_REMEMBERED)  # it remembers what returned, not what raised
def _read_back(archive: Path, version: _Version, period: int) -> None:
    del version, period
    try:
        forget_file(archive)
        with ArchiveReader(archive) as reader:
            reader.check()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CorruptArchive(archive, f"cannot be read from the disk: {os.strerror(errno.EIO)}") from error
