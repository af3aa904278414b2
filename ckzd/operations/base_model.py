"""A model that was trained elsewhere as the first reference: named by its hashes, and not kept.

    base model's files ── tensors of the checkpoint's names and shapes ──▶ reconstruction ◀── delta, the chain's root

The archive holds where in those files each tensor lies, so that to decode it takes no reader of their format. Its
`reference` is the id of the reconstruction made of them: other bytes are never taken for it.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import BinaryIO, Self

from ckzd.archive import ArchiveReader, NamedFile, NamedModel
from ckzd.chains import file_sha256, missing_model, require_base_model
from ckzd.checkpoint import CODED_FLOATS, STORED_AS, Checkpoint, RawArray
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.codec.dtypes import from_float64, stored_array, to_float64
from ckzd.codec.parsing import read_json
from ckzd.codec.records.reconstruction import Reconstruction, ReconstructionWriter
from ckzd.codec.records.reference_tensors import seal
from ckzd.errors import BadCheckpoint, ConfigError, CorruptArchive, SourceChanged
from ckzd.formats import read_checkpoint
from ckzd.formats.source import FileSource

ENTRY = "base_model"
PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.pth")  # of a directory's files: the first that it has


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
    def checked(cls, row: object, files: int) -> Self:
        """A row of the entry; ValueError if it is none."""
        if not isinstance(row, list) or len(row) != 6:
            raise ValueError("a tensor of the base model is not told in six values")
        path, dtype, shape, file, offset, stored_dtype = row
        texts = isinstance(path, list) and all(isinstance(part, str) for part in path)
        counts = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in (*shape, file, offset))
        if not texts or not counts or not {dtype, stored_dtype} <= CODED_FLOATS or file >= files:
            raise ValueError("a tensor of the base model has no path, dtype, shape or place")
        return cls(tuple(path), dtype, tuple(shape), file, offset, stored_dtype)

    @property
    def nbytes(self) -> int:
        """In the base model's file."""
        elements = 1
        for size in self.shape:
            elements *= size
        return elements * STORED_AS[self.stored_dtype].itemsize

    def values(self, data: bytes) -> RawArray:
        """In the checkpoint's dtype: widened exactly, or rounded once."""
        stored = stored_array(data, self.stored_dtype, self.shape)
        return (
            stored
            if self.dtype == self.stored_dtype
            else from_float64(to_float64(stored, self.stored_dtype), self.dtype)
        )


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What the first archive of a run is a delta against."""

    named: NamedModel
    tensors: tuple[Placed, ...]

    def entry(self) -> bytes:
        """What the archive holds of it beside its manifest."""
        return json.dumps({"tensors": [astuple(tensor) for tensor in self.tensors]}, separators=(",", ":")).encode()

    def write(self, file: BinaryIO) -> str:
        """Its reconstruction; the id."""
        paths = [Path(os.path.realpath(place)) for place in self.named.paths()]
        writer = ReconstructionWriter(file)
        with closing(FileSource(paths)) as source:
            for tensor in self.tensors:
                data = source.read(tensor.file, tensor.offset, tensor.nbytes)
                writer.put(tensor.path, "weights", tensor.values(data))
        return seal(writer, b"", b"", b"")


def files_of(model: Path) -> list[Path]:
    """The files of a model: itself, or those of a directory. ConfigError if there are none."""
    if not model.is_dir():
        if not model.is_file():
            raise ConfigError("base_model", f"expected a file or a directory, got {model}")
        return [model]
    found = next((files for pattern in PATTERNS if (files := sorted(model.glob(pattern)))), [])
    if not found:
        problem = f"expected {', '.join(PATTERNS)} in a directory, got none in {model}"
        raise ConfigError("base_model", problem, hint="name the file, or the directory that holds the weights")
    return found


def base_model_for(checkpoint: Checkpoint, model: Path) -> BaseModel | None:
    """What of the model the checkpoint's tensors are near to, by names and shapes; None if they share none.

    A tensor of the checkpoint is one of the model's that has its name, or the end of it behind a dot: what a wrapper
    puts in front ("model", "module.") does not count.
    """
    paths = files_of(model.absolute())
    there = dict(_tensors_of(paths))
    tensors: list[Placed] = []
    for tensor in checkpoint.tensors:
        found = next((there[name] for name in _ends(tensor.path) if name in there), None)
        if found is not None and tensor.dtype in CODED_FLOATS and found.shape == tensor.shape:
            tensors.append(
                Placed(tensor.path, tensor.dtype, tensor.shape, found.file, found.offset, found.stored_dtype)
            )
    if not tensors:
        return None
    files = [NamedFile(name=path.name, size=path.stat().st_size, sha256=file_sha256(path)) for path in paths]
    return BaseModel(NamedModel(directory=str(paths[0].parent), files=files), tuple(tensors))


def _ends(path: Sequence[str]) -> Iterator[str]:
    """A tensor's name, and what is behind each of its dots; the number of a tile stays with it."""
    name = ".".join(path)
    while name:
        yield name
        name = name.partition(".")[2]


def _tensors_of(paths: Sequence[Path]) -> Iterator[tuple[str, Placed]]:
    for number, path in enumerate(paths):
        checkpoint = in_tiles(read_checkpoint(Path(os.path.realpath(path))))
        checkpoint.source.close()
        for hole in checkpoint.files[0].holes:
            tensor = checkpoint.tensors[hole.tensor]
            if tensor.dtype in CODED_FLOATS:
                placed = Placed(tensor.path, tensor.dtype, tensor.shape, number, hole.offset, tensor.dtype)
                yield ".".join(tensor.path), placed


def write_reconstruction(reader: ArchiveReader, named: NamedModel, file: BinaryIO) -> Reconstruction:
    """What an archive was made against, from the base model's files as they are now.

    Raises MissingReference, naming what is needed, where they are not there or other ones.
    """
    rows = read_json(reader.read(ENTRY), len(reader.read(ENTRY)))["tensors"]
    model = BaseModel(named, tuple(Placed.checked(row, len(named.files)) for row in rows))
    for tensor in model.tensors:
        if tensor.offset + tensor.nbytes > named.files[tensor.file].size:
            raise ValueError("a tensor of the base model lies outside of its file")
    try:
        identity = model.write(file)
    except (BadCheckpoint, SourceChanged) as error:
        raise missing_model(reader.path, named, error.problem) from error
    if identity != reader.manifest.reference:
        require_base_model(reader.path, named)
        raise CorruptArchive(reader.path, "is a delta against other bytes of its base model than it names")
    return Reconstruction(file)
