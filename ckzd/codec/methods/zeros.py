"""Exact zeros: pruned weights, masked moments, padding. A tensor with a mask restores as 0 wherever the mask says so.

What is 0 in a weight was 0 in its reference, and what a masked weight's optimizer keeps is 0 where the weight is. So a
mask is coded as its difference to what is expected, which mostly is nothing at all: no stream then, only its mention.

Stream: zstd of the differences' bits, row by row, eight a byte, the first at the top, filled up with zeros.

# R = rows, C = columns of a tensor seen as a matrix
"""

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec import zstd
from ckzd.codec.arrays import Mask
from ckzd.codec.dtypes import SMALLEST_NORMAL, from_float64, is_zero
from ckzd.codec.methods.method import KnownMoments
from ckzd.codec.scales import product_of


def without(values: RawArray, zeros: Mask) -> RawArray:
    """The values with 0 at the zeros (R, C), in their own shape."""
    return np.where(zeros.reshape(values.shape), values.dtype.type(0), values)


def masked_weight(values: RawArray, zeros: Mask, dtype: str) -> RawArray:
    """The values with 0 at the zeros (R, C) and nowhere else: `weight == 0` must find this very mask again."""
    least = from_float64(np.array(SMALLEST_NORMAL[dtype]), dtype)
    return without(np.where(is_zero(values), least, values), zeros)


def expected_in_weight(before: RawArray | None, shape: tuple[int, int]) -> Mask:
    """(R, C): where its reference is 0."""
    return np.zeros(shape, np.bool_) if before is None else is_zero(before).reshape(shape)


def expected_in_moments(known: KnownMoments, second: RawArray | None) -> Mask:
    """(R, C): where the restored weight is 0, or the restored second moment, or a lone momentum's rank-1 variance."""
    variance = product_of(known.scales) if second is None else second
    return is_zero(known.restored_weight).reshape(variance.shape) | is_zero(variance)


def encode_zeros(zeros: Mask, expected: Mask) -> bytes:
    """Empty where all is as expected."""
    difference = zeros ^ expected
    return zstd.compress(np.packbits(difference).tobytes()) if difference.any() else b""


def decode_zeros(data: bytes, expected: Mask) -> Mask:
    """The inverse of `encode_zeros`; ValueError for bytes that it does not write."""
    if not data:
        return expected
    packed = np.frombuffer(zstd.decompress_exactly(data, -(-expected.size // 8)), np.uint8)
    bits = np.unpackbits(packed)
    if bits[expected.size :].any():
        raise ValueError("a mask with zeros behind its end")
    return expected ^ bits[: expected.size].astype(np.bool_).reshape(expected.shape)
