"""Levels beyond the alphabet <-> bytes: exponential Golomb codes, in two parts so that all levels are read at once.

Layout, for levels of magnitude 9 + e, x = e + 2**k:
  u8 k           the order
  leb            length of the first part in bytes
  first part     for each level as many 0 as x has bits beyond k + 1, then a 1; padded with 0 to a byte
  second part    for each level 1 if it is negative, else 0, then x without its leading 1, most significant bit first

# N = levels
"""

import numpy as np
import numpy.typing as npt

from ckzd.codec.arrays import Plane
from ckzd.codec.kernels.plain import ALPHABET
from ckzd.codec.parsing import read_leb, write_leb

LEAST = ALPHABET // 2  # the smallest magnitude that has no symbol
_MAX_ORDER = 14
_MAX_BITS = 16  # of x
_PLACES = range(_MAX_BITS - 1, -1, -1)

Counts = npt.NDArray[np.int64]


def pack(levels: Plane) -> bytes:
    """Levels (N,), none between -9 and 9 itself, in the order that makes them shortest."""
    excess = np.abs(levels.astype(np.int64)) - LEAST
    order, _ = _shortest(excess)
    offset = excess + (1 << order)
    bits = _bits(offset)
    first = np.zeros(int((bits - order).sum()), np.uint8)
    first[np.cumsum(bits - order) - 1] = 1
    ones = np.packbits(first).tobytes()
    rest = np.stack([(offset >> place).astype(np.uint8) & 1 for place in _PLACES], axis=1)
    rest[np.arange(levels.size), _MAX_BITS - bits] = levels < 0  # where the leading 1 was
    second = np.packbits(rest[_used(bits)]).tobytes()
    return bytes([order]) + write_leb(len(ones)) + ones + second


def bits_each(levels: Plane) -> float:
    """What one of them takes, of so many that are packed together."""
    return _shortest(np.abs(levels.astype(np.int64)) - LEAST)[1] / max(levels.size, 1)


def _shortest(excess: Counts) -> tuple[int, int]:
    """The order that makes them shortest, and how many bits they are."""
    bits = [int(2 * _bits(excess + (1 << order)).sum()) - order * excess.size for order in range(_MAX_ORDER + 1)]
    order = int(np.argmin(bits))
    return order, bits[order]


def unpack(data: bytes, limit: int) -> Plane:
    """The inverse; ValueError or IndexError for more than `limit` levels, or bytes that `pack` does not write."""
    order = data[0]
    length, start = read_leb(data, 1)
    ones = np.flatnonzero(np.unpackbits(np.frombuffer(data[start : start + length], np.uint8)))
    bits = np.diff(ones, prepend=-1) + order
    if order > _MAX_ORDER or ones.size > limit or bits.max(initial=0) > _MAX_BITS:
        raise ValueError(f"{ones.size} escapes of order {order}, {bits.max(initial=0)} bits, where {limit} may be")
    used, total = _used(bits), int(bits.sum())
    second = np.frombuffer(data, np.uint8, offset=start + length)
    if second.size != -(-total // 8):
        raise ValueError(f"escapes of {total} bits in {second.size} bytes")
    rest = np.zeros(used.shape, np.uint8)
    rest[used] = np.unpackbits(second, count=total)
    leading = np.arange(ones.size), _MAX_BITS - bits
    negative = rest[leading] == 1
    rest[leading] = 1
    magnitude = np.full(ones.size, LEAST - (1 << order), np.int64)
    for number, place in enumerate(_PLACES):
        magnitude += rest[:, number].astype(np.int64) << place
    levels = np.where(negative, -magnitude, magnitude)
    if np.abs(levels).max(initial=0) > 1 << 15 or levels.max(initial=0) == 1 << 15:
        raise ValueError("an escape beyond 16 bits")
    return levels.astype(np.int16)


def _bits(values: Counts) -> Counts:
    """How many bits positive integers have."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _used(bits: Counts) -> npt.NDArray[np.bool_]:
    """(N, 16): which of the last places a number of so many bits takes."""
    used: npt.NDArray[np.bool_] = np.array(_PLACES) < bits[:, None]
    return used
