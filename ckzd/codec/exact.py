"""Exact coding of a storage: integer delta against the reference's bits, byte planes, zstd.

Float bits are mapped to integers that are ordered like the values, so that a small change of value is a small
difference; the difference is folded to its magnitude and split into byte planes, most significant first.
"""

import struct

import numpy as np
import numpy.typing as npt
import zstandard

from ckzd.checkpoint import Bytes

_LEVEL = 3
_UNSIGNED = {2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
Unsigned = npt.NDArray[np.unsignedinteger]


def _ordered(bits: Unsigned) -> Unsigned:
    """Sign-magnitude bits -> integers in the order of the values; its own kind of inverse is `_from_ordered`."""
    top = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return np.where(bits & top, ~bits, bits | top).astype(bits.dtype)


def _from_ordered(ordered: Unsigned) -> Unsigned:
    top = ordered.dtype.type(1 << (8 * ordered.dtype.itemsize - 1))
    return np.where(ordered & top, ordered ^ top, ~ordered).astype(ordered.dtype)


def _folded(difference: Unsigned) -> Unsigned:
    """Two's complement -> zigzag."""
    shift = difference.dtype.type(8 * difference.dtype.itemsize - 1)
    one = difference.dtype.type(1)
    return (difference << one) ^ (np.zeros_like(difference) - (difference >> shift))


def _unfolded(zigzag: Unsigned) -> Unsigned:
    one = zigzag.dtype.type(1)
    return (zigzag >> one) ^ (np.zeros_like(zigzag) - (zigzag & one))


def encode_exact(payload: Bytes, itemsize: int, reference: Bytes | None) -> bytes:
    """Code `payload` (elements of 1, 2, 4 or 8 bytes), against a `reference` of the same length if there is one."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    if itemsize not in _UNSIGNED:
        return compressor.compress(payload)
    bits = np.frombuffer(payload, _UNSIGNED[itemsize])
    if reference is None:
        folded = (bits << bits.dtype.type(1)) | (bits >> bits.dtype.type(8 * itemsize - 1))
    else:
        folded = _folded(_ordered(bits) - _ordered(np.frombuffer(reference, _UNSIGNED[itemsize])))
    planes = folded.view(np.uint8).reshape(-1, itemsize).T[::-1]
    blocks = [compressor.compress(np.ascontiguousarray(plane)) for plane in planes]
    return struct.pack(f"<{itemsize}I", *(len(block) for block in blocks)) + b"".join(blocks)


def decode_exact(data: bytes, nbytes: int, itemsize: int, reference: Bytes | None) -> bytes:
    """The inverse of `encode_exact`; ValueError if the bytes cannot be one."""
    decompressor = zstandard.ZstdDecompressor()
    if itemsize not in _UNSIGNED:
        return _exactly(decompressor.decompress(data, max_output_size=max(nbytes, 1)), nbytes)
    elements = nbytes // itemsize
    lengths = struct.unpack_from(f"<{itemsize}I", data)
    planes, start = np.empty((itemsize, elements), np.uint8), 4 * itemsize
    for number, length in enumerate(lengths):
        block = decompressor.decompress(data[start : start + length], max_output_size=max(elements, 1))
        planes[number] = np.frombuffer(_exactly(block, elements), np.uint8)
        start += length
    folded = np.ascontiguousarray(planes[::-1].T).view(_UNSIGNED[itemsize]).ravel()
    if reference is None:
        one = folded.dtype.type(1)
        bits = (folded >> one) | (folded << folded.dtype.type(8 * itemsize - 1))
    else:
        bits = _from_ordered(_unfolded(folded) + _ordered(np.frombuffer(reference, _UNSIGNED[itemsize])))
    return bits.astype(_UNSIGNED[itemsize]).tobytes()


def _exactly(block: bytes, nbytes: int) -> bytes:
    if len(block) != nbytes:
        raise ValueError(f"expected {nbytes} bytes, got {len(block)}")
    return block
