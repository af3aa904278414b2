"""A model that was trained elsewhere as the first reference: named by its hashes, and not kept.

    base model's files ── tensors of the checkpoint's names and shapes ──▶ reconstruction ◀── delta, the chain's root

The archive holds where in those files each tensor lies, so that to decode it takes no reader of their format. Its
`reference` is the id of the reconstruction made of them: other bytes are never taken for it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from ckzd.archive import ArchiveReader, NamedModel
from ckzd.base_models import require
from ckzd.checkpoint import CODED_FLOATS, STORED_AS, Checkpoint, RawArray
from ckzd.codec.analysis.counterparts import Named, counterparts
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.twins import casts
from ckzd.codec.dtypes import from_float64, stored_array, to_float64
from ckzd.codec.parsing import read_json
from ckzd.codec.records.reconstruction import Key, Reconstruction, ReconstructionWriter
from ckzd.codec.records.reference_tensors import seal
from ckzd.errors import BadCheckpoint, CorruptArchive, SourceChanged
from ckzd.formats import read_checkpoint
from ckzd.formats.source import FileSource

ENTRY = "base_model"
MAX_ENTRY_BYTES = 64 << 20  # a row of some 100 bytes for each of a checkpoint's tensors and tiles
_MAX_SIZE = 1 << 48  # of a dimension or an offset, as in a layout


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor (or tile) of the checkpoint, and where the base model's files hold what is to be its reference."""

    path: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    stored_dtype: str  # there

    @classmethod
    def checked(cls, row: object, sizes: Sequence[int]) -> Self:
        """A row of the entry, of files of these sizes; ValueError if it is none."""
        if not isinstance(row, list) or len(row) != 6:
            raise ValueError("a tensor of the base model is not told in six values")
        path, dtype, shape, file, offset, stored_dtype = row
        texts = isinstance(path, list) and all(isinstance(text, str) for text in (*path, dtype, stored_dtype))
        counts = isinstance(shape, list) and all(type(n) is int and 0 <= n < _MAX_SIZE for n in (*shape, file, offset))
        if not texts or not counts or not {dtype, stored_dtype} <= CODED_FLOATS or file >= len(sizes):
            raise ValueError("a tensor of the base model has no path, dtype, shape or place")
        placed = cls(tuple(path), dtype, tuple(shape), file, offset, stored_dtype)
        if offset + placed.nbytes > sizes[file]:
            raise ValueError("a tensor of the base model lies outside of its file")
        return placed

    @property
    def nbytes(self) -> int:
        """In the base model's file."""
        return math.prod(self.shape) * STORED_AS[self.stored_dtype].itemsize

    def values(self, data: bytes) -> RawArray:
        """In the checkpoint's dtype: as it is, or widened exactly or rounded once, and 0 for what is not finite."""
        stored = stored_array(data, self.stored_dtype, self.shape)
        if self.dtype == self.stored_dtype:
            return stored
        values = to_float64(stored, self.stored_dtype)
        return from_float64(np.where(np.isfinite(values), values, 0.0), self.dtype)

    def row(self) -> list[object]:
        """In the entry."""
        return [list(self.path), self.dtype, list(self.shape), self.file, self.offset, self.stored_dtype]


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """What of a model stands for the tensors of a checkpoint; read as a reconstruction is, before there is one."""

    source: FileSource
    tensors: tuple[Placed, ...]
    _by_path: dict[Key, Placed] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_path", {tensor.path: tensor for tensor in self.tensors})

    def form(self, key: Key, _field: str) -> tuple[np.dtype[np.generic], tuple[int, ...]] | None:
        """Dtype and shape of a tensor, in the checkpoint's dtype."""
        placed = self._by_path.get(key)
        return None if placed is None else (STORED_AS[placed.dtype], placed.shape)

    def get(self, key: Key, _field: str) -> RawArray | None:
        """Its values, in the checkpoint's dtype."""
        placed = self._by_path.get(key)
        return None if placed is None else self._values(placed)

    def entry(self) -> bytes:
        """What the archive holds of it beside its manifest."""
        return json.dumps({"tensors": [tensor.row() for tensor in self.tensors]}, separators=(",", ":")).encode()

    def write(self, file: BinaryIO) -> str:
        """Its reconstruction; the id. SourceChanged if a file is another one by now."""
        writer = ReconstructionWriter(file)
        for tensor in self.tensors:
            writer.put(tensor.path, "weights", self._values(tensor))
        return seal(writer, b"", b"", b"")

    def _values(self, placed: Placed) -> RawArray:
        return placed.values(self.source.read(placed.file, placed.offset, placed.nbytes))


def matched(checkpoint: Checkpoint, paths: Sequence[Path]) -> tuple[Placed, ...]:
    """Where the files of a model hold what the checkpoint's tensors were trained from, by names and shapes.

    Weights may be kept in another float dtype; an optimizer's own copy of a weight has the weight's. Raises what
    `read_checkpoint` does of a file that is no model.
    """
    there = list(_tensors_of(paths))
    inputs = Inputs(checkpoint, None)
    firsts = [n for n in inputs.tiles if n in inputs.is_reference and inputs.tensor(n).dtype in CODED_FLOATS]
    ours = [Named(inputs.tensor(number).path, inputs.whole_shape(number)) for number in firsts]
    pairs = counterparts(ours, [Named(placed.path, placed.shape) for placed in there])
    found = {firsts[number]: there[other] for number, other in pairs.items()}
    found |= _of_masters(inputs, firsts, found)
    placed: list[Placed] = []
    for number in sorted(found):
        offset, stored = found[number].offset, found[number].stored_dtype
        for tile in inputs.tiles[number]:
            tensor = inputs.tensor(tile)
            placed.append(Placed(tensor.path, tensor.dtype, tensor.shape, found[number].file, offset, stored))
            offset += placed[-1].nbytes
    return tuple(placed)


def _of_masters(inputs: Inputs, firsts: Sequence[int], found: Mapping[int, Placed]) -> dict[int, Placed]:
    """Of float32 tensors without a name of their own that a weight is the rounded copy of: what that one has."""
    unknown = {inputs.whole_shape(n) for n in firsts if n not in found and inputs.tensor(n).dtype == "float32"}
    if not any(inputs.tensor(n).dtype != "float32" and inputs.whole_shape(n) in unknown for n in found):
        return {}  # to compare them takes a reading of all
    return {master: found[n] for n, master in casts(inputs).items() if n in found and master not in found}


def _tensors_of(paths: Sequence[Path]) -> list[Placed]:
    """The float tensors in the files of a model."""
    found: list[Placed] = []
    for number, path in enumerate(paths):
        checkpoint = read_checkpoint(path)
        checkpoint.source.close()
        for hole in checkpoint.files[0].holes:
            tensor = checkpoint.tensors[hole.tensor]
            if tensor.dtype in CODED_FLOATS:
                found.append(Placed(tensor.path, tensor.dtype, tensor.shape, number, hole.offset, tensor.dtype))
    return found


def only_files_in_use(tensors: Sequence[Placed]) -> tuple[list[int], tuple[Placed, ...]]:
    """Numbers of the files that hold any of the tensors, and the tensors as they are in these files alone."""
    used = sorted({tensor.file for tensor in tensors})
    return used, tuple(Placed(t.path, t.dtype, t.shape, used.index(t.file), t.offset, t.stored_dtype) for t in tensors)


def write_reconstruction(reader: ArchiveReader, named: NamedModel, file: BinaryIO) -> Reconstruction:
    """What an archive was made against, from the base model's files as they are now.

    Raises MissingBaseModel, naming what is needed, where they are not there or other ones; ValueError of a bad entry.
    """
    data = reader.read(ENTRY)
    if len(data) > MAX_ENTRY_BYTES:
        raise ValueError(f"{len(data)} bytes tell of a base model, at most {MAX_ENTRY_BYTES} are read")
    sizes = [model_file.size for model_file in named.files]
    tensors = tuple(Placed.checked(row, sizes) for row in read_json(data, len(data))["tensors"])
    paths = require(reader.path, named)
    try:
        with closing(FileSource(paths)) as source:
            identity = ModelTensors(source, tensors).write(file)
    except (BadCheckpoint, SourceChanged):
        identity = ""  # something happened to it meanwhile: what, a new look tells
    if identity != reader.manifest.reference:
        require(reader.path, named, read=True)
        raise CorruptArchive(reader.path, "is a delta against other bytes of its base model than it names")
    return Reconstruction(file)
