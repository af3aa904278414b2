"""The index of an archive: its files' layouts, its tensors, and how each tensor is coded.

Two JSON documents, each compressed: `layout` (files, tensors, triples), which hardly changes over a run and is coded
against the reference's, and `codes`. FORMAT.md gives every field.
"""

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ckzd.checkpoint import Checkpoint, FileLayout, FileStat, Hole, TensorSpec
from ckzd.codec import zstd

MAX_INDEX_BYTES = 1 << 30
_LENGTHS = struct.Struct("<II")
_UNKNOWN_STAT = FileStat(0, 0, 0, 0)  # the manifest knows it

StreamRef = tuple[str, int, int]  # entry, offset, nbytes: where a stream lies in the archive


class Method(StrEnum):
    """How one tensor is coded."""

    COPY = "copy"  # the bytes of another tensor, named by number
    SAME = "same"  # the reference's bytes
    EXACT = "exact"  # on its own, exactly
    DELTA = "delta"  # against the reference, exactly
    SCALAR = "scalar"  # weight: reference + Fisher-weighted scalar residual
    KMEANS = "kmeans"  # weight: reference + codebook residual; moment: codebook values over zero or the fill
    FILL = "fill"  # second moment: rank 1
    SCALED = "scaled"  # first moment: levels times the square root of the restored second


@dataclass(frozen=True, slots=True)
class Triple:
    """Tensor numbers of a weight and of its two moments."""

    weight: int
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Code:
    """A tensor's method and its stream; `other` is the copied tensor's number, else -1."""

    method: Method
    stream: StreamRef | None = None
    other: int = -1


@dataclass(frozen=True, slots=True)
class Layout:
    """What of an index stays the same from one checkpoint to the next."""

    files: tuple[FileLayout, ...]
    tensors: tuple[TensorSpec, ...]
    kept: tuple[int, ...]  # tensors that dependents may refer to: floats that are no optimizer state
    triples: tuple[Triple, ...]

    def to_json(self) -> bytes:
        """Canonical JSON."""
        document = {
            "files": [
                [f.name, f.size, [[h.tensor, h.offset, h.nbytes, *h.crc_offsets] for h in f.holes]] for f in self.files
            ],
            "tensors": [[list(t.path), t.dtype, list(t.shape), t.nbytes] for t in self.tensors],
            "kept": list(self.kept),
            "triples": [[t.weight, t.first, t.second] for t in self.triples],
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes) -> "Layout":
        """The inverse of `to_json`; ValueError, TypeError or KeyError if it is malformed."""
        document = json.loads(data)
        files = tuple(
            FileLayout(name, size, _UNKNOWN_STAT, tuple(Hole(h[0], h[1], h[2], tuple(h[3:])) for h in holes))
            for name, size, holes in document["files"]
        )
        tensors = tuple(TensorSpec(tuple(p), dtype, tuple(s), nbytes) for p, dtype, s, nbytes in document["tensors"])
        triples = tuple(Triple(*triple) for triple in document["triples"])
        return Layout(files, tensors, tuple(document["kept"]), triples)


@dataclass(frozen=True, slots=True)
class Index:
    """Everything but the streams themselves. `step` and `moment_step` are the quantizers' steps."""

    layout: Layout
    codes: tuple[Code, ...]
    step: float
    moment_step: float

    def to_bytes(self, reference_layout: bytes) -> bytes:
        """u32 length of the layout block, u32 length of the code block, both blocks (zstd)."""
        codes = [[c.method.value, *(c.stream or ()), *([c.other] if c.other >= 0 else [])] for c in self.codes]
        document = {"codes": codes, "step": self.step, "moment_step": self.moment_step}
        blocks = (
            zstd.compress_against(self.layout.to_json(), reference_layout),
            zstd.compress(json.dumps(document, separators=(",", ":")).encode()),
        )
        return _LENGTHS.pack(*map(len, blocks)) + b"".join(blocks)

    @staticmethod
    def from_bytes(data: bytes, reference_layout: bytes) -> "Index":
        """The inverse of `to_bytes`; ValueError, TypeError or KeyError if it is malformed."""
        block, _ = _blocks(data)
        return Index.with_layout(data, Layout.from_json(zstd.decompress(block, MAX_INDEX_BYTES, reference_layout)))

    @staticmethod
    def with_layout(data: bytes, layout: Layout) -> "Index":
        """The same where the layout is already known: no reference is needed."""
        _, block = _blocks(data)
        document = json.loads(zstd.decompress(block, MAX_INDEX_BYTES))
        codes = tuple(_code(entry) for entry in document["codes"])
        if len(codes) != len(layout.tensors):
            raise ValueError(f"expected {len(layout.tensors)} codes, got {len(codes)}")
        return Index(layout, codes, float(document["step"]), float(document["moment_step"]))


def _blocks(data: bytes) -> tuple[bytes, bytes]:
    first, second = _LENGTHS.unpack_from(data)
    if _LENGTHS.size + first + second != len(data):
        raise ValueError(f"expected blocks of {first} and {second} bytes, got {len(data)} bytes in all")
    return data[_LENGTHS.size : _LENGTHS.size + first], data[_LENGTHS.size + first :]


def _code(entry: list[str | int]) -> Code:
    method = Method(str(entry[0]))
    if method is Method.COPY:
        return Code(method, other=int(entry[1]))
    if len(entry) == 1:
        return Code(method)
    return Code(method, (str(entry[1]), int(entry[2]), int(entry[3])))


def plane_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A tensor as a matrix: first dimension by all others; a vector is one column."""
    rows = shape[0] if shape else 1
    columns = 1
    for size in shape[1:]:
        columns *= size
    return rows, columns


_LAYER = re.compile(r"(?:^|(?<=\.))(\d+)(?=\.)")


def layer_before(path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The path of the same tensor one layer earlier: the first all-digit part of the name, less one."""
    match = _LAYER.search(path[-1]) if path else None
    if match is None or int(match[1]) == 0:
        return None
    return (*path[:-1], path[-1][: match.start()] + str(int(match[1]) - 1) + path[-1][match.end() :])


def skeleton_of(checkpoint: Checkpoint) -> bytes:
    """All verbatim bytes of all files, in order, with the CRC-32 fields of payloads zeroed: a restore computes them."""
    pieces = []
    for number, file in enumerate(checkpoint.files):
        offsets = sorted(offset for hole in file.holes for offset in hole.crc_offsets)
        for (start, stop), piece in zip(file.verbatim_ranges(), checkpoint.verbatim(number), strict=True):
            cleared = bytearray(piece)
            while offsets and offsets[0] < stop:
                offset = offsets.pop(0) - start
                cleared[offset : offset + 4] = bytes(4)
            pieces.append(bytes(cleared))
    return b"".join(pieces)


def split_skeleton(skeleton: bytes, files: Sequence[FileLayout]) -> list[list[bytes]]:
    """The verbatim pieces of each file; ValueError if the lengths do not add up."""
    pieces, position = [], 0
    for file in files:
        lengths = [stop - start for start, stop in file.verbatim_ranges()]
        if min(lengths) < 0:
            raise ValueError(f"file {file.name!r}: its tensors overlap")
        starts = [position + sum(lengths[:k]) for k in range(len(lengths))]
        pieces.append([skeleton[start : start + length] for start, length in zip(starts, lengths, strict=True)])
        position += sum(lengths)
    if position != len(skeleton):
        raise ValueError(f"expected a skeleton of {position} bytes, got {len(skeleton)}")
    return pieces
