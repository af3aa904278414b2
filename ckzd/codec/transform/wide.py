"""Levels of many bits: the low ones, as good as random, are packed, and what is left is a plane like others.

Layout of the low bits: u8 how many of each level; these of all levels, row by row, most significant first, padded
with 0 to a byte. The plane's levels are shifted right by as many, towards minus infinity.

# R = rows, C = columns of a tensor seen as a matrix, K = low bits
"""

import numpy as np

from ckzd.codec.arrays import Plane

MAX_LOW_BITS = 12
_HIGH_RMS = 1.4  # at least, of what is left: with less the low bits are not random, with twice as much many escape


def split(levels: Plane) -> tuple[bytes, Plane]:
    """Levels (R, C) -> their packed low bits and the plane of the rest."""
    (count,) = low_bits(levels.reshape(-1, 1)) if levels.size else (np.int16(0),)
    return packed(levels, int(count)), levels >> count


def low_bits(levels: Plane) -> Plane:
    """How many bits of each column (R, C) are as good as random, (C,)."""
    rms = np.sqrt(np.einsum("rc,rc->c", levels, levels, dtype=np.float64) / len(levels))
    bits = np.floor(np.log2(np.maximum(rms, 1.0) / _HIGH_RMS))
    counts: Plane = np.clip(bits, 0, MAX_LOW_BITS).astype(np.int16)
    return counts


def packed(levels: Plane, count: int) -> bytes:
    """The low bits of levels, so many of each."""
    low_RCK = (levels[..., None] >> _places(count)) & 1
    return bytes([count]) + np.packbits(low_RCK.astype(np.uint8)).tobytes()


def nbytes_of(counts: Plane, elements: int) -> int:
    """How much `packed` makes of columns of so many elements each."""
    return sum(1 + -(-int(count) * elements // 8) for count in counts)


def packed_bytes(data: bytes, elements: int, start: int = 0) -> int:
    """How much of `data` from `start` on the low bits of so many levels take; ValueError if it is too short."""
    nbytes = 1 + -(-data[start] * elements // 8)
    if data[start] > MAX_LOW_BITS or nbytes > len(data) - start:
        raise ValueError(f"{data[start]} low bits of {elements} levels in {len(data) - start} bytes")
    return nbytes


def joined(packed: bytes, high: Plane) -> Plane:
    """The inverse of `split`; ValueError for levels that do not fit."""
    count = packed[0]
    if high.min(initial=0) < -(32768 >> count) or high.max(initial=0) > 32767 >> count:
        raise ValueError(f"a level of more than 16 bits, {count} of them apart")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8, offset=1), count=count * high.size)
    low_RCK = bits.reshape(*high.shape, count).astype(np.int16) << _places(count)
    return np.asarray((high << np.int16(count)) + low_RCK.sum(-1, dtype=np.int16), np.int16)


def _places(count: int) -> Plane:
    return np.arange(count, dtype=np.int16)[::-1]
