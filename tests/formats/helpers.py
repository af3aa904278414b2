"""The law of every format: verbatim bytes and payloads, assembled, are the file."""

import io
import zipfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ckzd.assembly import assembled
from ckzd.checkpoint import Checkpoint, TensorSpec
from ckzd.parts import cover


def rebuilt(checkpoint: Checkpoint, payload_of: Callable[[int], bytes] | None = None) -> list[bytes]:
    """Each file, put together again."""
    verbatim = [checkpoint.verbatim(number) for number in range(len(checkpoint.files))]
    files = [bytearray() for _ in checkpoint.files]
    for file, piece in assembled(checkpoint.files, verbatim, partial(map, payload_of or checkpoint.payload)):
        files[file] += piece
    return list(map(bytes, files))


def assert_lossless(checkpoint: Checkpoint, path: Path) -> None:
    """Rebuilt from its own payloads, each file is what it was."""
    assert checkpoint.nbytes == sum(layout.size for layout in checkpoint.files)
    names = [path / layout.name if checkpoint.is_directory else path for layout in checkpoint.files]
    assert rebuilt(checkpoint) == [name.read_bytes() for name in names]
    assert len({tensor.path for tensor in checkpoint.tensors}) == len(checkpoint.tensors)
    for layout in checkpoint.files:
        assert_well_formed(layout, checkpoint.tensors)
    parts = defaultdict(list)
    for hole in (hole for layout in checkpoint.files for hole in layout.holes):
        parts[hole.tensor].append(hole.part)
    assert sorted(parts) == list(range(len(checkpoint.tensors)))
    assert all(found == [None] or cover(found, checkpoint.tensors[n].nbytes) for n, found in parts.items())


def assert_well_formed(layout, tensors: tuple[TensorSpec, ...]) -> None:
    """Holes ascend, hold their tensors or parts exactly, and CRC fields lie where they can be patched."""
    end = 0
    for hole in layout.holes:
        assert hole.offset >= end
        assert hole.nbytes == (tensors[hole.tensor] if hole.part is None else hole.part).nbytes
        for offset in hole.crc_offsets:
            assert offset >= hole.offset + hole.nbytes or end <= offset <= hole.offset - 4
            assert not any(other.offset - 4 < offset < other.offset + other.nbytes for other in layout.holes)
        end = hole.offset + hole.nbytes
    assert end <= layout.size


def zip_is_intact(data: bytes) -> bool:
    """Every CRC in it is right."""
    return zipfile.ZipFile(io.BytesIO(data)).testzip() is None


def saved(path: Path, value: object, **keywords: object) -> Path:
    """torch.save, and the path."""
    torch.save(value, path, **keywords)
    return path
