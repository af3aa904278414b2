"""Fill an empty journal from what a store holds of a run."""

import os
from pathlib import Path

from ckzd.chains import ArchiveRecord
from ckzd.daemon.identity import Identity
from ckzd.daemon.journal import Journal
from ckzd.operations.pointer import as_pointed, pointed_in, pointer_for, points_to, read_pointer


def rebuild(journal: Journal, run: Path, records: list[ArchiveRecord], now: float) -> None:
    """One row for each archive whose original is not simply there: replaced ones by their pointer, the rest as rotated.

    One for each name that a pointer to it has. What stands in its place is not entered: it is compressed again,
    recognised by its hash, and entered then.
    """
    pointed = pointed_in(run)
    for record in records:
        manifest = record.manifest
        names = [file.name for file in manifest.files] if manifest.kind == "files" else [manifest.name]
        for path in dict.fromkeys((*(run / name for name in names), *pointed.get(record.path.resolve(), ()))):
            _enter(journal, run, path, record, now)


def _enter(journal: Journal, run: Path, path: Path, record: ArchiveRecord, now: float) -> None:
    replaced = points_to(pointer_for(path), record.path)
    if not replaced and os.path.lexists(path):
        return
    manifest = record.manifest
    if replaced:
        manifest = as_pointed(manifest, read_pointer(pointer_for(path)))
    elif manifest.kind == "files" and path.name in {file.name for file in manifest.files}:
        manifest = manifest.of_files([path.name])
    identity = Identity.of(0, manifest.original_bytes, max(file.mtime_ns for file in manifest.files))
    journal.import_archive(
        run, path, identity, archive=record.path, step=manifest.step,
        archive_bytes=record.path.stat().st_size, replaced=replaced, now=now,
    )  # fmt: skip
