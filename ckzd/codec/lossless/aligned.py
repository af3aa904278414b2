"""Differences <-> bytes, cut where each class of them stops being noise.

A byte plane cuts all elements at the same bits. How large a difference is depends on the exponent, though: here the
elements of a class (the exponent of what they were predicted from) are cut at the class's own place, so that eight bits
hold all that an entropy coder can use. Elements are coded in chunks of 2**18, each sorted by class.

A chunk is 3 LEB128 lengths, the classes' cuts, and three blocks: zstd, or as is where that is not smaller.
  cuts     of each class that occurs, ascending: u8 k, u8 offset; y = difference + offset * 2**k
  symbols  bits k to k+7 of all y
  above    bits from k+8 on: of each class its byte planes, lowest first; nearly always 0
  below    bits under k: of each class k // 8 byte planes, highest first, then k % 8 bit planes, lowest first
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckzd.codec import zstd
from ckzd.codec.parsing import read_leb, write_leb

Unsigned = npt.NDArray[np.unsignedinteger]  # (N,)
Classes = npt.NDArray[np.uint8]  # (N,)
Bytes1 = npt.NDArray[np.uint8]

_CHUNK = 1 << 18  # elements: arrays of a chunk stay in the cache, and memory is bounded
_ZSTD_LEVEL = 1  # all that pays here is the Huffman stage: level 3 gains 0.01 % and costs a third of the speed
_OWN_TABLE = 4096  # a class of so many elements gets Huffman tables of its own
_SAMPLED_DIFFERENCES = 1024
_TAIL = 64  # left out at both ends
_LEVELS = 80  # at most, of 256, for what is left: beyond 256 a difference costs about two bytes more


@dataclass(frozen=True, slots=True)
class _Cut:
    """One class's elements in a sorted chunk, and where they are cut."""

    part: slice
    k: int
    offset: int


@dataclass(frozen=True, slots=True)
class Aligned:
    """Coded differences, and whether another layout may be smaller."""

    data: bytes
    is_regular: bool  # noise below, nothing above


def encode_aligned(differences: Unsigned, classes: Classes | None) -> Aligned:
    """Code differences modulo 2**bits, cut by class (none: all alike)."""
    found, regular = [], True
    for part in _chunks(differences.size):
        data, is_regular = _encode_chunk(differences[part], None if classes is None else classes[part])
        found.append(data)
        regular &= is_regular
    return Aligned(b"".join(found), regular)


def decode_aligned(
    data: bytes, start: int, count: int, dtype: np.dtype[np.unsignedinteger], classes: Classes | None
) -> Unsigned:
    """The inverse, from `start` to the end of `data`; ValueError or IndexError if the bytes cannot be one."""
    if count // _CHUNK > len(data):  # a chunk is at least three bytes
        raise ValueError(f"expected {count} differences, got {len(data)} bytes")
    differences = np.empty(count, dtype)
    for part in _chunks(count):
        chunk, start = _decode_chunk(data, start, differences[part], None if classes is None else classes[part])
        differences[part] = chunk
    if start != len(data):
        raise ValueError(f"expected differences of {start} bytes, got {len(data)}")
    return differences


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, _CHUNK):
        yield slice(start, min(start + _CHUNK, count))


def _parts(classes: Classes | None, count: int) -> list[slice]:
    """The classes that occur, as slices of the sorted elements."""
    if classes is None:
        return [slice(0, count)]
    counts = np.bincount(classes, minlength=256)
    ends = np.cumsum(counts)
    return [slice(int(ends[c] - counts[c]), int(ends[c])) for c in np.flatnonzero(counts)]


def _encode_chunk(differences: Unsigned, classes: Classes | None) -> tuple[bytes, bool]:
    if classes is not None:
        differences = differences[np.argsort(classes, kind="stable")]
    symbols: list[bytes] = []
    above: list[bytes] = []
    below: list[bytes] = []
    cuts = [_cut(differences, part) for part in _parts(classes, differences.size)]
    for cut in cuts:
        shifted = differences[cut.part] + _moved(differences, cut)
        symbols.append((shifted >> cut.k).astype(np.uint8).tobytes())
        above += [(shifted >> place).astype(np.uint8).tobytes() for place in _places_above(shifted, cut.k)]
        below += [(shifted >> place).astype(np.uint8).tobytes() for place in _places_below(cut.k)]
        lowest = shifted.astype(np.uint8)
        below += [np.packbits(lowest & np.uint8(1 << bit)).tobytes() for bit in range(cut.k % 8)]
    plain = b"".join(above), b"".join(below)
    blocks = [
        zstd.compress_parts(symbols, _ZSTD_LEVEL, alone=_OWN_TABLE),
        *(zstd.compress(each, _ZSTD_LEVEL) for each in plain),
    ]
    regular = len(blocks[1]) * 64 < len(blocks[0]) + 256 and len(blocks[2]) * 9 > len(plain[1]) * 8
    blocks = [min(pair, key=len) for pair in zip((b"".join(symbols), *plain), blocks, strict=True)]
    head = b"".join(write_leb(len(block)) for block in blocks) + bytes(n for cut in cuts for n in (cut.k, cut.offset))
    return head + b"".join(blocks), regular


def _cut(differences: Unsigned, part: slice) -> _Cut:
    """Where eight bits hold a sample with room to spare."""
    signed = differences.dtype.str.replace("u", "i")
    sample = np.sort(differences[part][:: max(1, (part.stop - part.start) // _SAMPLED_DIFFERENCES)].view(signed))
    tail = sample.size // _TAIL
    low, high = int(sample[tail]), int(sample[-1 - tail])
    k = min(max(0, ((high - low) // _LEVELS).bit_length()), 8 * (differences.itemsize - 1))
    middle = ((low + high) >> 1) >> k
    return _Cut(part, k, (128 - middle) % 256)


def _moved(differences: Unsigned, cut: _Cut) -> np.unsignedinteger:
    scalar: np.unsignedinteger = differences.dtype.type((cut.offset << cut.k) % (1 << 8 * differences.itemsize))
    return scalar


def _places_above(differences: Unsigned, k: int) -> range:
    return range(k + 8, 8 * differences.itemsize, 8)


def _places_below(k: int) -> range:
    return range(k - 8, -1, -8)


def _decode_chunk(data: bytes, start: int, sorted_: Unsigned, classes: Classes | None) -> tuple[Unsigned, int]:
    """The chunk and where it ends; `sorted_` is room for as many."""
    lengths = []
    for _ in range(3):
        length, start = read_leb(data, start)
        lengths.append(length)
    cuts = []
    for part in _parts(classes, sorted_.size):
        cuts.append(_Cut(part, data[start], data[start + 1]))
        start += 2
    blocks = []
    for length, size in zip(lengths, _sizes(cuts, sorted_), strict=True):
        block = data[start : start + length]
        blocks.append(np.frombuffer(block if length == size else zstd.decompress_exactly(block, size), np.uint8))
        start += length
    if any(block.size != size for block, size in zip(blocks, _sizes(cuts, sorted_), strict=True)):
        raise ValueError("expected blocks of differences, got the end of the stream")
    symbols, above, below = blocks
    for cut in cuts:
        above, below = _join(cut, sorted_, symbols, above, below)
    if classes is None:
        return sorted_, start
    differences = np.empty_like(sorted_)
    differences[np.argsort(classes, kind="stable")] = sorted_
    return differences, start


def _sizes(cuts: list[_Cut], differences: Unsigned) -> tuple[int, int, int]:
    """Sizes of the three blocks; ValueError for a cut beyond the element."""
    above = below = 0
    for cut in cuts:
        if cut.k > 8 * (differences.itemsize - 1):
            raise ValueError(f"expected a cut within {8 * differences.itemsize} bits, got {cut.k}")
        count = cut.part.stop - cut.part.start
        above += count * len(_places_above(differences, cut.k))
        below += count * len(_places_below(cut.k)) + (count + 7) // 8 * (cut.k % 8)
    return differences.size, above, below


def _join(cut: _Cut, into: Unsigned, symbols: Bytes1, above: Bytes1, below: Bytes1) -> tuple[Bytes1, Bytes1]:
    """Fill in a class's elements; what is left of `above` and `below`."""
    joined, dtype = into[cut.part], into.dtype
    count = joined.size
    joined[:] = symbols[cut.part]
    joined <<= cut.k
    for place in _places_above(into, cut.k):
        if above[:count].any():
            joined |= above[:count].astype(dtype) << place
        above = above[count:]
    for place in _places_below(cut.k):
        joined |= below[:count].astype(dtype) << place
        below = below[count:]
    lowest, packed = np.zeros(count, np.uint8), (count + 7) // 8
    for bit in range(cut.k % 8):
        lowest |= np.unpackbits(below[:packed], count=count) << np.uint8(bit)
        below = below[packed:]
    joined |= lowest
    joined -= _moved(into, cut)
    return above, below
