"""An archive without its moments: the same entries, byte for byte, but for theirs. Nothing is decoded.

Weights never depend on moments, nor does what dependents need: the reconstruction keeps its id.
"""

from typing import BinaryIO

from ckzd.archive.container import ArchiveReader, ArchiveWriter
from ckzd.archive.manifest import FIRST_TO_DROP_MOMENTS, MOMENTS, Manifest, is_of_moments


def may_drop_moments(manifest: Manifest) -> bool:
    """Whether there are some to drop, in a format that can say that they are gone."""
    return (
        manifest.format >= FIRST_TO_DROP_MOMENTS
        and manifest.moments_dropped is None
        and any(is_of_moments(entry.name) for entry in manifest.entries)
    )


def moment_bytes(manifest: Manifest) -> int:
    """What their entries take."""
    return sum(entry.nbytes for entry in manifest.entries if is_of_moments(entry.name))


def as_left(manifest: Manifest, day: str) -> Manifest:
    """What an archive says of itself once its moments are dropped; `day` (YYYY-MM-DD) is when."""
    entries = [entry for entry in manifest.entries if not is_of_moments(entry.name)]
    parts = {part: nbytes for part, nbytes in manifest.parts.items() if part not in MOMENTS}
    return manifest.model_copy(update={"moments_dropped": day, "parts": parts, "entries": entries})


def without_moments(reader: ArchiveReader, file: BinaryIO, day: str) -> Manifest:
    """Write to `file` what is left of an archive; its manifest."""
    left, writer = as_left(reader.manifest, day), ArchiveWriter(file)
    for entry in left.entries:
        writer.copy(reader, entry)
    return writer.finish(left.model_copy(update={"entries": []}))
