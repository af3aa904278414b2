"""Fill an empty journal from what a store holds of a run."""

import os
from pathlib import Path

from ckzd.chains import ArchiveRecord
from ckzd.daemon.identity import Identity
from ckzd.daemon.journal import Journal
from ckzd.operations.pointer import pointer_for, points_to


def rebuild(journal: Journal, run: Path, records: list[ArchiveRecord], now: float) -> None:
    """One row for each archive whose original is not simply there: replaced ones by their pointer, the rest as rotated.

    What stands in its place is not entered: it is compressed again, recognised by its hash, and entered then.
    """
    for record in records:
        manifest = record.manifest
        path = run / manifest.name
        replaced = points_to(pointer_for(path), record.path)
        if not replaced and os.path.lexists(path):
            continue
        identity = Identity.of(0, manifest.original_bytes, max(file.mtime_ns for file in manifest.files))
        journal.import_archive(
            run, path, identity, archive=record.path, step=manifest.step,
            archive_bytes=record.path.stat().st_size, replaced=replaced, now=now,
        )  # fmt: skip
