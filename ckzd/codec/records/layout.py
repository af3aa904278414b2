"""Where the tensors of a checkpoint lie in its files: what hardly changes over a run.

A layout read from an archive is believed only if it is one that a reader of checkpoints could have found: tensors fill
the holes of their files exactly, whole or in parts, no two overlap, and what refers to a tensor refers to one that is
there.
"""

import json
import math
import re
from bisect import bisect_right
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any

from ckzd.checkpoint import CODED_FLOATS, STORED_AS, FileLayout, Hole, TensorSpec, tiles_of
from ckzd.codec.parsing import read_json
from ckzd.codec.records.holes import MAX_BYTES, Made, count, counts, file_entry, file_of, text
from ckzd.fingerprints import DIGITS, Fingerprint
from ckzd.parts import Interval, cover

_FEW_VALUES = 1 << 17  # 10,000 files without tensors are 50,000
_RECORDS_A_FINGERPRINT, _MANY_RECORDS = 64, 1 << 16  # torch.save writes some seven beside a tensor
_BYTES_A_VALUE = 4  # of 256 bytes a tensor: three times what its entries take
_LAYER = re.compile(r"(?:^|(?<=\.))(\d+)(?=\.)")


class Role(Enum):
    """What a tensor is to the codec."""

    STATE = "state"  # nothing is coded against it, nor with it
    REFERENCE = "reference"  # dependents refer to it; it has no moments that can be told
    WEIGHT = "weight"
    FIRST = "first moment"
    SECOND = "second moment"
    MOMENTUM = "momentum"  # a first moment without a second


@dataclass(frozen=True, slots=True)
class Triple:
    """Tensor numbers of a weight, of its first moment or momentum, and of its second moment, where there are such."""

    weight: int
    first: int | None = None
    second: int | None = None

    @property
    def first_moment(self) -> int:
        """Its first moment or momentum; of a weight that has one."""
        assert self.first is not None, "it is no weight alone"
        return self.first

    @property
    def moments(self) -> tuple[int, ...]:
        """Tensor numbers of what its optimizer keeps of it."""
        return tuple(number for number in (self.first, self.second) if number is not None)

    def role_of(self, number: int) -> Role:
        """What one of its tensors is."""
        if number == self.weight:
            return Role.WEIGHT
        if number == self.second:
            return Role.SECOND
        return Role.MOMENTUM if self.second is None else Role.FIRST


@dataclass(frozen=True, slots=True)
class Layout:
    """What of an index stays the same from one checkpoint to the next."""

    files: tuple[FileLayout, ...]
    tensors: tuple[TensorSpec, ...]
    reference_tensors: tuple[int, ...]  # tensors that dependents may refer to: floats that are no optimizer state
    triples: tuple[Triple, ...]
    states: Mapping[int, int] = field(default_factory=dict)  # of a weight beside its moments: numbers -> the weight's
    tiled: Mapping[int, int] = field(default_factory=dict)  # tensors in parts, by their first tiles: how many these are

    def roles(self) -> dict[int, Role]:
        """What each tensor is to the codec, by number."""
        roles = dict.fromkeys(range(len(self.tensors)), Role.STATE)
        roles |= dict.fromkeys(self.reference_tensors, Role.REFERENCE)
        return roles | {number: t.role_of(number) for t in self.triples for number in (t.weight, *t.moments)}

    def to_json(self) -> bytes:
        """Canonical JSON."""
        made: dict[Made, int] = {}  # of fingerprints: the records that they are made of
        document: dict[str, list[Any]] = {
            "files": [file_entry(file, made) for file in self.files],
            "tensors": [_tensor_entry(tensor) for tensor in self.tensors],
            "kept": list(self.reference_tensors),
            "triples": [[t.weight, *t.moments] for t in self.triples],
        }
        if self.states:
            document["states"] = [list(pair) for pair in sorted(self.states.items())]
        if self.tiled:
            document["tiled"] = [list(pair) for pair in sorted(self.tiled.items())]
        if made:
            document["fingerprints"] = [list(map(list, records)) for records in made]
        return json.dumps(document, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes, checkpoint_bytes: int = MAX_BYTES) -> "Layout":
        """The inverse of `to_json`; ValueError, TypeError or KeyError unless the layout is possible.

        Of a checkpoint of so many bytes: a tensor takes some 20 values, and readers keep the smallest verbatim.
        """
        document = read_json(data, _FEW_VALUES + checkpoint_bytes // _BYTES_A_VALUE)
        made = [(counts(before), counts(after)) for before, after in document.get("fingerprints", [])]
        layout = Layout(
            files=tuple(file_of(made, entry) for entry in document["files"]),
            tensors=tuple(_tensor(*entry) for entry in document["tensors"]),
            reference_tensors=counts(document["kept"]),
            triples=tuple(Triple(*counts(entry)) for entry in document["triples"]),
            states=_pairs(document.get("states", [])),
            tiled=_pairs(document.get("tiled", [])),
        )
        _check_holes(layout)
        _check_tiles(layout)
        _check_roles(layout)
        _check_states(layout)
        return layout


def _tensor_entry(tensor: TensorSpec) -> list[object]:
    stack = [list(tensor.stack)] if tensor.stack else []
    return [list(tensor.path), tensor.dtype, list(tensor.shape), tensor.nbytes, *stack]


def _tensor(path: list[str], dtype: str, shape: list[int], nbytes: int, stack: Sequence[int] = ()) -> TensorSpec:
    known = tuple(text(part) for part in path), text(dtype), counts(shape), count(nbytes)
    tensor = TensorSpec(*known, counts(stack))
    itemsize = STORED_AS[dtype].itemsize if dtype in STORED_AS else 1
    if math.prod(tensor.shape) * itemsize != nbytes:
        raise ValueError(f"tensor {tensor.path}: {nbytes} bytes for {dtype} {tensor.shape}")
    return tensor


def _pairs(entries: Iterable[Iterable[object]]) -> dict[int, int]:
    """Ascending [number of a tensor, what is said of it] -> by number."""
    pairs = [counts(entry) for entry in entries]
    numbers = [number for number, _ in pairs]
    if not all(a < b for a, b in pairwise(numbers)):
        raise ValueError("expected states, and what is tiled, in ascending order")
    return {number: weight for number, weight in pairs}  # noqa: C416  # two each, which dict() cannot be told


def _check_holes(layout: Layout) -> None:
    """Every tensor fills one hole, or holes its parts; holes ascend, and CRC fields lie where assembling finds them."""
    for file in layout.files:
        for start, stop in file.verbatim_ranges():
            if start > stop:
                raise ValueError(f"file {file.name!r}: its tensors overlap or reach beyond its end")
        starts = [0, *(hole.offset + hole.nbytes for hole in file.holes)]
        ranges = list(file.verbatim_ranges())
        for position, hole in enumerate(file.holes):
            for offset in hole.crc_offsets:
                piece = bisect_right(starts, offset) - 1
                if piece < position or offset + 4 > ranges[piece][1]:
                    raise ValueError(f"file {file.name!r}: a CRC-32 at byte {offset} lies inside a tensor or before it")
            if hole.fingerprint is not None:
                piece = bisect_right(starts, hole.fingerprint.offset) - 1
                _check_fingerprint(file.name, hole.fingerprint, ranges[piece] if piece > position else (0, 0))
    fingerprints = [hole.fingerprint for file in layout.files for hole in file.holes if hole.fingerprint is not None]
    if sum(each.records for each in fingerprints) > _MANY_RECORDS + _RECORDS_A_FINGERPRINT * len(fingerprints):
        raise ValueError("fingerprints of more records than files of one tensor have")
    if not all(crc < 1 << 32 for each in fingerprints for crc in (*each.before, *each.after)):
        raise ValueError("a fingerprint of what is no CRC-32")
    _check_covered(layout)


def _check_fingerprint(name: str, fingerprint: Fingerprint, piece: Interval) -> None:
    """Its digits, those before them and all that repeats their CRC-32 lie in one piece between holes, behind it."""
    start, stop = piece
    places = ((fingerprint.offset - DIGITS, DIGITS), *fingerprint.places)
    if not all(start <= offset and offset + length <= stop for offset, length in places):
        raise ValueError(f"file {name!r}: a fingerprint at byte {fingerprint.offset} lies inside a tensor or before it")


def _check_covered(layout: Layout) -> None:
    """Each byte of a tensor lies in one hole."""
    holes: list[list[Hole]] = [[] for _ in layout.tensors]
    for hole in (hole for file in layout.files for hole in file.holes):
        holes[hole.tensor].append(hole)
    for number, (tensor, own) in enumerate(zip(layout.tensors, holes, strict=True)):
        parts = [hole.part for hole in own if hole.part is not None]
        if not parts and len(own) == 1:
            if own[0].nbytes != tensor.nbytes:
                raise ValueError(f"tensor {number}: a hole of {own[0].nbytes} bytes is not its size")
        elif not parts or len(parts) < len(own) or not cover(parts, tensor.nbytes):
            raise ValueError(f"tensor {number}: expected it in one hole of one file, or in parts that are all of it")


def _check_tiles(layout: Layout) -> None:
    """What goes on with a storage begins where the hole before ends; what continues a tensor has the rows behind it.

    It has the path behind its own, too.
    """
    for file in layout.files:
        if file.holes and not file.holes[0].begins_storage:
            raise ValueError(f"file {file.name!r}: its first tensor cannot go on with another's storage")
        for before, hole in pairwise(file.holes):
            if not hole.begins_storage and (before.offset + before.nbytes != hole.offset or before.crc_offsets):
                raise ValueError(f"tensor {hole.tensor}: it does not go on where tensor {before.tensor} ends")
            if hole.continues and (hole.part is not None or before.part is not None):
                raise ValueError(f"tensor {hole.tensor}: it continues what lies in parts, or lies in parts itself")
    end = 0
    for first, tiles_count in sorted(layout.tiled.items()):
        if first < end or tiles_count < 2 or first + tiles_count > len(layout.tensors):
            raise ValueError(f"tensor {first}: {tiles_count} tiles that are not there, or another's")
        end = first + tiles_count
    groups = tiles_of(layout.files, layout.tiled)
    if sorted(number for tiles in groups.values() for number in tiles) != list(range(len(layout.tensors))):
        raise ValueError("expected every tensor to be a tile of one")
    referenced = frozenset(layout.reference_tensors)
    for tiles in groups.values():
        _check_rows(layout, tiles, referenced)


def _check_rows(layout: Layout, tiles: Sequence[int], referenced: Container[int]) -> None:
    """The tiles of one tensor are rows of it, and called so."""
    first, *others = tiles
    whole = layout.tensors[first]
    for number, other in enumerate(others, 1):
        tile = layout.tensors[other]
        expected = ((*whole.path, f"[{number}]"), whole.dtype, whole.shape[1:], whole.stack, first in referenced)
        found = (tile.path, tile.dtype, tile.shape[1:], tile.stack, other in referenced)
        if not (whole.shape and tile.shape) or found != expected:
            raise ValueError(f"tensor {tile.path}: it cannot continue tensor {whole.path}")
    if whole.stack:
        rows, matrices = sum(layout.tensors[n].shape[0] for n in tiles), math.prod(whole.stack)
        if not (rows and matrices) or rows % matrices:
            raise ValueError(f"tensor {whole.path}: {rows} rows are no stack of {whole.stack}")


def _check_roles(layout: Layout) -> None:
    """Names are unique; weights are reference tensors, moments are not, and both are floats of one shape."""
    referenced, weights = set(layout.reference_tensors), [triple.weight for triple in layout.triples]
    if len({tensor.path for tensor in layout.tensors}) != len(layout.tensors):
        raise ValueError("two tensors have one path")
    if len({file.name for file in layout.files}) != len(layout.files):
        raise ValueError("two files have one name")
    if not all(a < b for numbers in (layout.reference_tensors, weights) for a, b in pairwise(numbers)):
        raise ValueError("expected reference tensors and triples in ascending order")
    if not all(layout.tensors[number].dtype in STORED_AS for number in referenced):
        raise ValueError("a reference tensor is not of floats")
    moments = [number for triple in layout.triples for number in triple.moments]
    if not referenced.issuperset(weights) or not referenced.isdisjoint(moments) or len(set(moments)) != len(moments):
        raise ValueError("a triple does not name a weight that is a reference tensor and moments of its own")
    for triple in layout.triples:
        members = [layout.tensors[number] for number in (triple.weight, *triple.moments)]
        if len({tensor.shape for tensor in members}) != 1 or not all(t.dtype in CODED_FLOATS for t in members):
            raise ValueError(f"tensor {members[0].path}: its moments are not floats of its shape")


def _check_states(layout: Layout) -> None:
    """A state is neither a reference tensor nor a moment, and has the shape of a weight."""
    taken = {*layout.reference_tensors, *(number for triple in layout.triples for number in triple.moments)}
    weights = {triple.weight for triple in layout.triples}
    for number, weight in layout.states.items():
        if number in taken or weight not in weights:
            raise ValueError(f"tensor {number} is no state of tensor {weight}")
        if layout.tensors[number].shape != layout.tensors[weight].shape:
            raise ValueError(f"tensor {number} has not the shape of tensor {weight}")


def plane_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A tensor as a matrix: first dimension by all others; a vector is one column."""
    return (shape[0] if shape else 1), math.prod(shape[1:])


def is_in_layer(path: tuple[str, ...]) -> bool:
    """Whether a tensor's name has the number of a layer in it."""
    return any(_LAYER.search(part) for part in path)


def layer_before(path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The path of the same tensor one layer earlier: the first all-digit part of the name, less one."""
    match = _LAYER.search(path[-1]) if path else None
    if match is None or int(match[1]) == 0:
        return None
    return (*path[:-1], path[-1][: match.start()] + str(int(match[1]) - 1) + path[-1][match.end() :])
