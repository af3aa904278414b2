"""Weights alone, as a safetensors file: for looking at a model without its optimizer.

Tensors that `formats` leaves in the skeleton (under 256 bytes) are not in it.
"""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ckzd import durable
from ckzd.checkpoint import TensorSpec, tiles_of, whole
from ckzd.operations.reconstruct import OpenCheckpoint

_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_safetensors(path: Path, checkpoint: OpenCheckpoint) -> int:
    """Write all float tensors that are no optimizer state; bytes written. Moments are not decoded."""
    header: dict[str, object] = {}
    start = 0
    for name, _, tensor in _weights(checkpoint):
        offsets = [start, start + tensor.nbytes]
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        start += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with durable.create(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tiles, _ in _weights(checkpoint):
            for number in tiles:
                file.write(checkpoint.payload(number))
        return _flushed(file)


def _weights(checkpoint: OpenCheckpoint) -> Iterator[tuple[str, list[int], TensorSpec]]:
    """Name, numbers of the tiles and form of each. A name that is taken gets the tensor's number behind it."""
    taken, tensors = {"__metadata__"}, checkpoint.layout.tensors
    tiles = tiles_of(checkpoint.layout.files, checkpoint.layout.tiled)
    for number in checkpoint.layout.reference_tensors:
        if number not in tiles:
            continue
        name = ".".join(tensors[number].path)
        name = name if name not in taken else f"{name}#{number}"
        taken.add(name)
        yield name, tiles[number], whole([tensors[tile] for tile in tiles[number]])


def _flushed(file: BinaryIO) -> int:
    file.flush()
    os.fsync(file.fileno())
    return file.tell()
