"""What there is of runs: their checkpoints, raw and archived. Reads manifests and names, no archive's streams."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ckzd import formats
from ckzd.chains import ArchiveRecord, decodable, is_ruined, records_in
from ckzd.errors import CkzdError
from ckzd.formats.names import step_in_name
from ckzd.operations.ledger import Ledger
from ckzd.operations.places import Place
from ckzd.operations.pointer import (
    as_pointed,
    is_as_archived,
    large_files,
    places_of,
    pointed_in,
    pointer_for,
    read_pointer,
)
from ckzd.series import in_order, written


class Stands(StrEnum):
    """What stands at a checkpoint's place."""

    ORIGINAL = "original"  # or what was restored: it has the size and time that were archived
    POINTER = "pointer"
    BOTH = "both"
    NOTHING = "nothing"  # it was rotated away
    ANOTHER = "another version"  # written since, or by another run


@dataclass(frozen=True, slots=True)
class Row:
    """A checkpoint of a run, archived or not, under one of its names."""

    run: str | None  # None: its directory is not found
    checkpoint: str
    archive: str | None  # None: it is not archived
    kind: str | None  # "base" or "delta"
    preset: str | None
    step: int | None
    depth: int | None  # deltas down to the base
    original_bytes: int | None
    archive_bytes: int | None
    ratio: float | None
    written: float | None  # seconds since the epoch: when the checkpoint was
    checked: float | None  # when the archive was last read back, or written
    stands: str | None  # None: its run is not found
    ruined: bool  # so much of it is infinite or no number that nothing is a delta against it
    damaged: str | None  # what is wrong, as far as it is known without reading the archive

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def catalogue(places: Iterable[Place], now: float) -> Iterator[Row]:
    """Every checkpoint of these places, a run after the other, in order. What checks have found is remembered."""
    for place in places:
        yield from _Listing(place, now).rows()


class _Listing:
    """Of one place."""

    def __init__(self, place: Place, now: float) -> None:
        self._place, self._now = place, now
        self._ledger = Ledger.read(place.store) if place.store is not None else None
        self._pointed = pointed_in(place.run) if place.run is not None else {}
        self._unreadable: dict[Path, str] = {}
        records = records_in(place.archives, self._note) if place.archives is not None else []
        self._records = sorted(records, key=in_order)
        self._there = decodable(self._records, lambda record: not self._problem(record.path))

    def _note(self, archive: Path, error: Exception) -> None:
        self._unreadable[archive] = getattr(error, "problem", None) or str(error)

    def rows(self) -> Iterator[Row]:
        """Archived ones first, those of no step last; then what is not archived."""
        raw: set[Path] = set()
        for record in self._records:
            own = places_of(self._place.run, record.manifest) if self._place.run is not None else []
            pointed = (place.name for place in self._pointed.get(record.path.resolve(), ()) if place not in own)
            for name in dict.fromkeys((record.manifest.name, *pointed)):
                row = self._archived(record, name)
                if row.stands in {Stands.ORIGINAL, Stands.BOTH} and self._place.run is not None:
                    raw |= {self._place.run / name, *own}
                yield row
        yield from (self._without_manifest(path, why) for path, why in sorted(self._unreadable.items()))
        if self._place.run is not None:
            yield from (_unarchived(path) for path in _listed(self._place.run) if path not in raw)

    def _archived(self, record: ArchiveRecord, name: str) -> Row:
        manifest, nbytes = record.manifest, _size(record.path)
        return Row(
            run=str(self._place.run) if self._place.run is not None else None,
            checkpoint=name,
            archive=str(record.path),
            kind="delta" if manifest.reference is not None else "base",
            preset=manifest.preset,
            step=manifest.step,
            depth=manifest.depth,
            original_bytes=manifest.original_bytes,
            archive_bytes=nbytes,
            ratio=manifest.original_bytes / nbytes if nbytes else None,
            written=written(record) / 1e9,
            checked=self._checked(record.path),
            stands=self._stands(record, name),
            ruined=is_ruined(record),
            damaged=self._damage(record),
        )

    def _without_manifest(self, archive: Path, why: str) -> Row:
        run = str(self._place.run) if self._place.run is not None else None
        nothing: dict[str, Any] = dict.fromkeys(
            ("kind", "preset", "step", "depth", "original_bytes", "ratio", "written", "stands")
        )
        return Row(
            run=run, checkpoint=archive.name, archive=str(archive), archive_bytes=_size(archive),
            checked=self._checked(archive), ruined=False, damaged=why, **nothing,
        )  # fmt: skip

    def _checked(self, archive: Path) -> float | None:
        return self._ledger.last_read(archive, self._now) if self._ledger is not None else None

    def _problem(self, archive: Path) -> str:
        """What the last check of this very file said of its bytes."""
        return self._ledger.problem_of(archive) if self._ledger is not None else ""

    def _damage(self, record: ArchiveRecord) -> str | None:
        if problem := self._problem(record.path):
            return problem
        return None if record.path in self._there else "what it needs is damaged or missing"

    def _stands(self, record: ArchiveRecord, name: str) -> Stands | None:
        run = self._place.run
        if run is None:
            return None
        checkpoint, manifest = run / name, record.manifest
        pointed = checkpoint in self._pointed.get(record.path.resolve(), ())
        if pointed:
            with suppress(CkzdError, OSError):
                manifest = as_pointed(manifest, read_pointer(pointer_for(checkpoint)))
        there = [os.path.lexists(path) for path in large_files(checkpoint, manifest)]
        if not there or not all(there):
            return Stands.POINTER if pointed else Stands.NOTHING
        if not is_as_archived(checkpoint, manifest):
            return Stands.ANOTHER
        return Stands.BOTH if pointed else Stands.ORIGINAL


def _listed(run: Path) -> list[Path]:
    with suppress(CkzdError, OSError):
        return formats.list_checkpoints(run)
    return []


def _unarchived(checkpoint: Path) -> Row:
    nothing: dict[str, Any] = dict.fromkeys(
        ("archive", "kind", "preset", "depth", "archive_bytes", "ratio", "checked", "damaged")
    )
    files = [checkpoint, *(checkpoint.iterdir() if checkpoint.is_dir() else ())]
    statuses = [path.lstat() for path in files if not path.is_dir()]
    return Row(
        run=str(checkpoint.parent), checkpoint=checkpoint.name, step=step_in_name(checkpoint.name),
        original_bytes=sum(status.st_size for status in statuses),
        written=max((status.st_mtime for status in statuses), default=None),
        stands=Stands.ORIGINAL, ruined=False, **nothing,
    )  # fmt: skip


def _size(path: Path) -> int:
    """0 of what has just gone."""
    with suppress(OSError):
        return path.stat().st_size
    return 0
