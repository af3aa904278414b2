"""Exact coding of a storage: integer delta against the reference's bits, byte planes, zstd.

Float bits are mapped to integers that are ordered like the values, so that a small change of value is a small
difference; the difference is folded to its magnitude and split into byte planes, most significant first. A stream is
the length of each plane's block (LEB128), then the blocks: zstd, or the plane itself where that is not smaller.
"""

import numpy as np
import numpy.typing as npt

from ckzd.checkpoint import Bytes
from ckzd.codec import zstd
from ckzd.codec.parsing import read_leb, write_leb

_LEVEL = 3
_UNSIGNED: dict[int, np.dtype[np.unsignedinteger]] = {
    1: np.dtype("u1"),
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
    folded = _forward(_bits(payload, itemsize), None if reference is None else _bits(reference, itemsize))
    blocks = []
    for plane in folded.view(np.uint8).reshape(-1, itemsize).T[::-1]:
        plain = plane.tobytes()
        packed = zstd.compress(plain, _LEVEL)
        blocks.append(packed if len(packed) < len(plain) else plain)
    return b"".join(write_leb(len(block)) for block in blocks) + b"".join(blocks)


def decode_exact(data: bytes, nbytes: int, itemsize: int, reference: Bytes | None) -> bytes:
    """The inverse of `encode_exact`; ValueError if the bytes cannot be one."""
    lengths, start = [], 0
    for _ in range(itemsize):
        length, start = read_leb(data, start)
        lengths.append(length)
    if start + sum(lengths) != len(data):
        raise ValueError(f"expected byte planes of {lengths} bytes behind {start}, got {len(data)} bytes in all")
    planes = []
    for length in lengths:
        block = data[start : start + length]
        plain = block if length == nbytes // itemsize else zstd.decompress_exactly(block, nbytes // itemsize)
        planes.append(np.frombuffer(plain, np.uint8))
        start += length
    folded = np.stack(planes[::-1], axis=1).view(_UNSIGNED[itemsize]).ravel()
    return _backward(folded, None if reference is None else _bits(reference, itemsize)).tobytes()


def _forward(bits: Unsigned, reference: Unsigned | None) -> Unsigned:
    if bits.itemsize == 1:
        return bits
    if reference is None:
        return _rotated(bits, 1)
    return _folded(np.subtract(_ordered(bits), _ordered(reference)))


def _backward(folded: Unsigned, reference: Unsigned | None) -> Unsigned:
    if folded.itemsize == 1:
        return folded
    if reference is None:
        return _rotated(folded, 8 * folded.itemsize - 1)
    return _from_ordered(np.add(_unfolded(folded), _ordered(reference)))


def _bits(payload: Bytes, itemsize: int) -> Unsigned:
    return np.frombuffer(payload, _UNSIGNED[itemsize])
