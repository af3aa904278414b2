"""Merge archives into what is a delta against them: it carries their weights from then on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ckzd import durable
from ckzd.archive import ArchiveReader, Manifest
from ckzd.archive.merging import as_carried, carrying


def write_merged(going: Sequence[Path], dependent: Path, file: BinaryIO, scratch: Path, day: str) -> Manifest:
    """Write `dependent` to `file` with all that it then carries: those that go, base first. Its manifest.

    `scratch` is a path for one file after the other. Raises CorruptArchive where one of them is damaged.
    """
    with ArchiveReader(dependent) as reader:
        reader.check()
        return carrying(reader, _carried(going, reader, scratch, day), file)


def _carried(going: Sequence[Path], dependent: ArchiveReader, scratch: Path, day: str) -> Iterator[ArchiveReader]:
    for path in going:
        with ArchiveReader(path) as reader:
            reader.check()
            yield from reader.carried()
            try:
                with durable.as_no_space(scratch), durable.create(scratch) as file:
                    as_carried(reader, file, day)
                with ArchiveReader(scratch) as link:
                    yield link
            finally:
                durable.remove(scratch)
    yield from dependent.carried()
