"""An archive that carries others: links of its chain, without moments, each whole in an entry in front of its own.

Nothing is decoded, and no entry changes but for what is left out: every reconstruction keeps its id.
"""

from collections.abc import Iterable
from typing import Any, BinaryIO

from ckzd.archive.container import ArchiveReader, ArchiveWriter
from ckzd.archive.manifest import CARRIED, FORMAT_VERSION, MOMENTS, EntryModel, Manifest, is_carried, is_of_moments


def carried_bytes(manifest: Manifest) -> int:
    """About what an archive takes where it is carried, with all that it carries itself."""
    return sum(entry.nbytes for entry in manifest.entries if not is_of_moments(entry.name))


def as_carried(reader: ArchiveReader, file: BinaryIO, day: str) -> Manifest:
    """Write to `file` what another carries of this one: its own link, without moments. Its manifest.

    What it carries itself is carried beside it. `day` (YYYY-MM-DD): from when on it gives weights alone.
    """
    manifest = reader.manifest
    changes: dict[str, Any] = {
        "format": FORMAT_VERSION,  # each is what the one before was, and more
        "moments_dropped": manifest.moments_dropped or day,
        "parts": {part: nbytes for part, nbytes in manifest.parts.items() if part not in {*MOMENTS, CARRIED}},
        "entries": [],
    }
    for before in reader.carried():
        changes |= {"reference": before.manifest.reconstruction, "base_model": None}
    writer = ArchiveWriter(file)
    _copy(reader, (entry for entry in manifest.entries if not is_of_moments(entry.name)), writer)
    return writer.finish(manifest.model_copy(update=changes))


def carrying(reader: ArchiveReader, links: Iterable[ArchiveReader], file: BinaryIO) -> Manifest:
    """Write to `file` an archive with these, base first, in front of what it is alone; its manifest.

    Each is a delta against the one before; what it carries already is among them.
    """
    writer, roots, nbytes = ArchiveWriter(file), [], 0
    for link in links:
        roots.append(link.manifest)
        nbytes += link.nbytes
        writer.carry(link)
    _copy(reader, reader.manifest.entries, writer)
    changes: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "reference": roots[0].reference,
        "base_model": roots[0].base_model,
        "parts": {**reader.manifest.parts, CARRIED: nbytes},
        "entries": [],
    }
    return writer.finish(reader.manifest.model_copy(update=changes))


def _copy(reader: ArchiveReader, entries: Iterable[EntryModel], writer: ArchiveWriter) -> None:
    """Those of its own link."""
    for entry in entries:
        if not is_carried(entry.name):
            writer.copy(reader, entry)
