"""The .ckz container: named bytes and one manifest. It knows bytes, never tensors. FORMAT.md specifies it."""

from ckzd.archive.container import ArchiveReader, ArchiveWriter, StreamRef
from ckzd.archive.manifest import EntryModel, FileModel, Manifest, StatModel, files_digest

__all__ = [
    "ArchiveReader",
    "ArchiveWriter",
    "EntryModel",
    "FileModel",
    "Manifest",
    "StatModel",
    "StreamRef",
    "files_digest",
]
