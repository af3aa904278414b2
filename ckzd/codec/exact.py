"""Exact coding of a storage: integer delta against the reference's bits, byte planes, zstd.

Float bits are mapped to integers that are ordered like the values, so that a small change of value is a small
difference; the difference is folded to its magnitude and split into byte planes, most significant first.
"""

import struct

import numpy as np
import numpy.typing as npt

from ckzd.checkpoint import Bytes
from ckzd.codec import zstd

_LEVEL = 3
_UNSIGNED: dict[int, np.dtype[np.unsignedinteger]] = {
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}
Unsigned = npt.NDArray[np.unsignedinteger]


def _ordered(bits: Unsigned) -> Unsigned:
    """Sign-magnitude bits -> integers in the order of the values."""
    top = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return np.where(bits & top, ~bits, bits | top)


def _from_ordered(ordered: Unsigned) -> Unsigned:
    top = ordered.dtype.type(1 << (8 * ordered.itemsize - 1))
    return np.where(ordered & top, ordered ^ top, ~ordered)


def _folded(difference: Unsigned) -> Unsigned:
    """Two's complement -> zigzag."""
    one, shift = difference.dtype.type(1), difference.dtype.type(8 * difference.itemsize - 1)
    folded: Unsigned = (difference << one) ^ np.negative(difference >> shift)
    return folded


def _unfolded(zigzag: Unsigned) -> Unsigned:
    one = zigzag.dtype.type(1)
    unfolded: Unsigned = (zigzag >> one) ^ np.negative(zigzag & one)
    return unfolded


def _rotated(bits: Unsigned, places: int) -> Unsigned:
    """Rotated left: a sign bit at the low end leaves the whole exponent in the first byte plane."""
    left, right = bits.dtype.type(places), bits.dtype.type(8 * bits.itemsize - places)
    return (bits << left) | (bits >> right)


def encode_exact(payload: Bytes, itemsize: int, reference: Bytes | None) -> bytes:
    """Code `payload` (elements of 1, 2, 4 or 8 bytes), against a `reference` of the same length if there is one."""
    if itemsize not in _UNSIGNED:
        return zstd.compress(bytes(payload), _LEVEL)
    bits = _bits(payload, itemsize)
    if reference is None:
        folded = _rotated(bits, 1)
    else:
        folded = _folded(np.subtract(_ordered(bits), _ordered(_bits(reference, itemsize))))
    planes = np.ascontiguousarray(folded).view(np.uint8).reshape(-1, itemsize).T[::-1]
    blocks = [zstd.compress(plane.tobytes(), _LEVEL) for plane in planes]
    return struct.pack(f"<{itemsize}I", *(len(block) for block in blocks)) + b"".join(blocks)


def decode_exact(data: bytes, nbytes: int, itemsize: int, reference: Bytes | None) -> bytes:
    """The inverse of `encode_exact`; ValueError if the bytes cannot be one."""
    if itemsize not in _UNSIGNED:
        return zstd.decompress_exactly(data, nbytes)
    folded = _joined(data, nbytes // itemsize, itemsize)
    if reference is None:
        return _rotated(folded, 8 * itemsize - 1).tobytes()
    before = _ordered(_bits(reference, itemsize))
    return _from_ordered(np.add(_unfolded(folded), before)).tobytes()


def _joined(data: bytes, elements: int, itemsize: int) -> Unsigned:
    """The integers whose byte planes these are."""
    lengths = struct.unpack_from(f"<{itemsize}I", data)
    if 4 * itemsize + sum(lengths) != len(data):
        raise ValueError(f"expected byte planes of {lengths} bytes, got {len(data)} bytes in all")
    joined, start = np.empty((elements, itemsize), np.uint8), 4 * itemsize
    for number, length in enumerate(lengths):
        block = zstd.decompress_exactly(data[start : start + length], elements)
        joined[:, itemsize - 1 - number] = np.frombuffer(block, np.uint8)
        start += length
    return joined.view(_UNSIGNED[itemsize]).ravel()


def _bits(payload: Bytes, itemsize: int) -> Unsigned:
    return np.frombuffer(payload, _UNSIGNED[itemsize])
