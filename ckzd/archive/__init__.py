"""The .ckz container: named bytes and one manifest. It knows bytes, never tensors. FORMAT.md specifies it."""

from ckzd.archive.container import ArchiveReader, ArchiveWriter
from ckzd.archive.manifest import (
    EntryModel,
    FileModel,
    FolderModel,
    Manifest,
    NamedFile,
    NamedModel,
    StatModel,
    files_digest,
)

__all__ = [
    "ArchiveReader",
    "ArchiveWriter",
    "EntryModel",
    "FileModel",
    "FolderModel",
    "Manifest",
    "NamedFile",
    "NamedModel",
    "StatModel",
    "files_digest",
]
