"""The nouns of a checkpoint: files, the tensors inside them, and what the optimizer says of itself.

A checkpoint is bytes. Most of them are tensor storages; the rest (pickle, headers, JSON) is kept verbatim.
A `FileLayout` says which byte ranges of a file are storages ("holes"); `assembly.assembled` puts files together
again from its verbatim bytes and its payloads, in both directions: to hash what a restore will write, and to write it.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ckzd.fingerprints import Fingerprint
from ckzd.parts import Part

Bytes = bytes | memoryview
RawArray = npt.NDArray[np.generic]

# How a dtype name is held in memory. bfloat16 has no NumPy type: it travels as its 16 bits.
STORED_AS: dict[str, np.dtype[np.generic]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
CODED_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})  # dtypes that a lossy preset may touch


@dataclass(frozen=True, slots=True)
class FileStat:
    """What a restore gives back beside the bytes."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Bytes of a storage, seen as the tensor that covers them; or, in an archive, some of its rows.

    `path` names it inside its run ("model", "blocks.0.fc.weight"); it is unique in a checkpoint and stays the
    same from one checkpoint to the next. `shape` is in memory order: the bytes are that array, C-contiguous.
    `dtype` is a torch name; one outside `STORED_AS` is opaque and `shape` then counts bytes. Tiles with a `stack` are
    rows of matrices, one under another, of a tensor that has these dimensions before theirs.
    """

    path: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    stack: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements (bytes, for an opaque dtype)."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Hole:
    """Bytes [offset, offset + nbytes) of a file are `tensors[tensor]`, or the part of it that `part` says.

    `crc_offsets` are the places where the file repeats the CRC-32 of these bytes (little-endian uint32). Each
    lies after the hole, or between the previous hole's end and this hole's start. A hole that `continues` starts where
    the previous one ends and goes on with its tensor, one that `joins` it with another tensor or part of its
    storage: CRC-32s are of the whole storage, and stand with its last hole, as does the fingerprint that follows from
    them. All parts of a tensor `cover` it.
    """

    tensor: int
    offset: int
    nbytes: int
    crc_offsets: tuple[int, ...] = ()
    continues: bool = False
    joins: bool = False
    part: Part | None = None
    fingerprint: Fingerprint | None = None

    @property
    def begins_storage(self) -> bool:
        """Whether CRC-32s begin with it."""
        return not (self.continues or self.joins)


@dataclass(frozen=True, slots=True)
class FileLayout:
    """One file: its name inside the checkpoint (posix, relative), its size, its holes in ascending order."""

    name: str
    size: int
    stat: FileStat
    holes: tuple[Hole, ...]

    def verbatim_ranges(self) -> Iterator[tuple[int, int]]:
        """The (start, stop) ranges before, between and after the holes; always one more than there are holes."""
        start = 0
        for hole in self.holes:
            yield start, hole.offset
            start = hole.offset + hole.nbytes
        yield start, self.size


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """One optimizer `param_groups` entry. `ids` are the keys of its parameters in `state`, in order."""

    ids: tuple[str, ...]
    names: tuple[str, ...] | None = None
    betas: tuple[float, float] | None = None
    learning_rate: float | None = None
    eps: float | None = None  # what is added to the root of a second moment
    updates: int | None = None  # how often it moved its parameters, as it says itself
    is_orthogonal: bool = False  # its updates are near to orthogonal matrices, as Muon's


@dataclass(frozen=True, slots=True)
class Optimizer:
    """`path` is the path of the optimizer's state dict; its tensors are (*path, "state", id, "exp_avg")."""

    path: tuple[str, ...]
    groups: tuple[ParamGroup, ...]


class Source(Protocol):
    """Random access to the original bytes."""

    def read(self, file: int, offset: int, nbytes: int) -> Bytes:
        """Exactly `nbytes` bytes of file number `file`; raises SourceChanged if they are no longer there."""
        ...

    def close(self) -> None:
        """Let go of what is open; a later read opens it again."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A parsed checkpoint: everything but the tensor bytes is in memory, those are read on demand.

    It is a file, a directory, or several files of one directory: then its name is that of the first.
    """

    name: str  # "step_100.pt", "checkpoint-100"
    is_directory: bool
    stat: FileStat | None  # of the directory, if it is one
    step: int | None  # what orders it in its run
    files: tuple[FileLayout, ...]
    tensors: tuple[TensorSpec, ...]
    optimizers: tuple[Optimizer, ...]
    source: Source = field(repr=False)
    updates: int | None = None  # how often its weights were moved, as far as it says: an epoch is no such number
    folders: tuple[tuple[str, FileStat], ...] = ()  # the directories in it: relative names, parents first
    tiled: Mapping[int, int] = field(default_factory=dict)  # tensors in parts, by their first tiles: how many these are

    def places(self, path: Path) -> tuple[Path, ...]:
        """Where its files are; `path` is where it, or one of its files, was read."""
        return tuple((path if self.is_directory else path.parent) / layout.name for layout in self.files)

    @property
    def nbytes(self) -> int:
        """Size of all files together."""
        return sum(layout.size for layout in self.files)

    def payload(self, tensor: int) -> Bytes:
        """The original bytes of tensor number `tensor`."""
        places = self._places[tensor]
        file, hole = places[0]
        if hole.part is None:
            return self.source.read(file, hole.offset, hole.nbytes)
        data = bytearray(self.tensors[tensor].nbytes)
        for file, hole in places:
            assert hole.part is not None, "a tensor in several places is in parts"
            hole.part.put_into(data, self.source.read(file, hole.offset, hole.nbytes))
        return memoryview(data).toreadonly()

    @cached_property
    def _places(self) -> dict[int, list[tuple[int, Hole]]]:
        """Tensor number -> number of a file and the hole in it, of all its holes."""
        found: dict[int, list[tuple[int, Hole]]] = {}
        for number, layout in enumerate(self.files):
            for hole in layout.holes:
                found.setdefault(hole.tensor, []).append((number, hole))
        return found

    @cached_property
    def in_parts(self) -> frozenset[int]:
        """Numbers of the tensors that lie in parts."""
        return frozenset(hole.tensor for layout in self.files for hole in layout.holes if hole.part is not None)

    def sha256(self) -> tuple[str, ...]:
        """Of each file, in hex; reads everything."""
        return tuple(sha256_of(self._pieces(number)) for number in range(len(self.files)))

    def _pieces(self, file: int) -> Iterator[Bytes]:
        for piece, hole in zip(self.verbatim(file), (*self.files[file].holes, None), strict=True):
            yield piece
            if hole is not None:
                yield self.source.read(file, hole.offset, hole.nbytes)

    def verbatim(self, file: int) -> Iterator[Bytes]:
        """The bytes around the holes, one piece per `FileLayout.verbatim_ranges()`."""
        for start, stop in self.files[file].verbatim_ranges():
            yield self.source.read(file, start, stop - start)


def sha256_of(pieces: Iterable[Bytes]) -> str:
    """In hex, of what comes piece by piece."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def tiles_of(files: Sequence[FileLayout], tiled: Mapping[int, int]) -> dict[int, list[int]]:
    """The numbers of each tensor's tiles, by that of the first: several where holes continue it, or `tiled` says so."""
    found: dict[int, list[int]] = {}
    following = {first + number for first, count in tiled.items() for number in range(1, count)}
    for file in files:
        first = -1
        for hole in file.holes:
            if hole.continues:
                found[first].append(hole.tensor)
            elif hole.tensor not in following:
                first = hole.tensor
                found.setdefault(first, list(range(first, first + tiled.get(first, 1))))
    return found


def whole(tiles: Sequence[TensorSpec]) -> TensorSpec:
    """The tensor whose rows they are."""
    first, *others = tiles
    if not (others or first.stack):
        return first
    rows = sum(tile.shape[0] for tile in tiles) // math.prod(first.stack)
    shape = (*first.stack, rows, *first.shape[1:])
    return replace(first, shape=shape, nbytes=sum(tile.nbytes for tile in tiles), stack=())
