"""Exact coding of a storage: an integer difference to what predicts it, and one of two layouts of its bits.

Float bits are mapped to integers that are ordered like the values, so that a small change of value is a small
difference. It is taken to the reference's bits, or, without one, to what rows and columns predict (prediction.py).
  planes   the folded difference in byte planes, most significant first: the length of each plane's block (LEB128), then
           the blocks: zstd, or the plane itself where that is not smaller. For what repeats itself, and small tensors.
  aligned  since format 2: _ALIGNED, a prediction or a 0 for none, and aligned.py's chunks. For noise with a scale.
"""

import numpy as np
import numpy.typing as npt

from ckzd.checkpoint import Bytes
from ckzd.codec import zstd
from ckzd.codec.lossless.aligned import Classes, decode_aligned, encode_aligned
from ckzd.codec.lossless.prediction import Prediction, fit_prediction
from ckzd.codec.parsing import read_leb, write_leb

_ZSTD_LEVEL = 3
_ALIGNED = b"\x80\x00"  # no length of planes begins so: a 0 in two bytes
_MIN_ALIGNED = 1024  # elements: smaller tensors do not pay for the cuts
_MIN_PREDICTED = 16  # rows and columns
_CERTAIN = 1 << 16  # elements: below, the other layout is tried in any case
_UNSIGNED: dict[int, np.dtype[np.unsignedinteger]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}
Unsigned = npt.NDArray[np.unsignedinteger]


def ordered(bits: Unsigned) -> Unsigned:
    """Sign-magnitude bits -> integers in the order of the values."""
    shift = 8 * bits.itemsize - 1
    negative: Unsigned = np.negative(bits >> shift)  # all bits set, or none
    negative |= bits.dtype.type(1 << shift)
    negative ^= bits
    return negative


def from_ordered(numbers: Unsigned) -> Unsigned:
    """The inverse of `ordered`."""
    shift = 8 * numbers.itemsize - 1
    positive: Unsigned = np.subtract(numbers >> shift, numbers.dtype.type(1))  # no bit set, or all
    positive |= numbers.dtype.type(1 << shift)
    positive ^= numbers
    return positive


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


def encode_exact(payload: Bytes, itemsize: int, reference: Bytes | None, columns: int = 0) -> bytes:
    """Code `payload` (elements of 1, 2, 4 or 8 bytes), against a `reference` of the same length if there is one.

    `columns`: the length of a matrix's rows, 0 if it is none; without a reference they predict each other.
    """
    bits = _bits(payload, itemsize)
    before = _before(reference, itemsize)
    if itemsize == 1 or bits.size < _MIN_ALIGNED:
        return _encode_planes(bits, before)
    found, is_certain = _encode_aligned(bits, before, columns)
    return found if is_certain else min(found, _encode_planes(bits, before), key=len)


def decode_exact(data: bytes, nbytes: int, itemsize: int, reference: Bytes | None) -> bytes:
    """The inverse of `encode_exact`; ValueError or IndexError if the bytes cannot be one."""
    before = _before(reference, itemsize)
    if not data.startswith(_ALIGNED):
        return _decode_planes(data, nbytes, itemsize, before)
    return _decode_aligned(data, nbytes // itemsize, _UNSIGNED[itemsize], before).tobytes()


def _encode_aligned(bits: Unsigned, reference: Unsigned | None, columns: int) -> tuple[bytes, bool]:
    """The stream, and whether the other layout cannot be smaller."""
    if reference is not None:
        head, classes = write_leb(0), _exponents(reference)
        differences = np.subtract(ordered(bits), ordered(reference))
    else:
        head, classes, differences = write_leb(0), None, _rotated(bits, 1)
        if columns >= _MIN_PREDICTED and bits.size >= _MIN_PREDICTED * columns:
            prediction = fit_prediction(differences, columns)
            head = prediction.to_bytes()
            differences -= prediction.values(bits.dtype)
    aligned = encode_aligned(differences, classes)
    return _ALIGNED + head + aligned.data, aligned.is_regular and bits.size >= _CERTAIN


def _decode_aligned(
    data: bytes, count: int, dtype: np.dtype[np.unsignedinteger], reference: Unsigned | None
) -> Unsigned:
    prediction, start = Prediction.from_bytes(data, len(_ALIGNED), count, 8 * dtype.itemsize)
    if reference is not None and prediction is not None:
        raise ValueError("expected a difference to the reference, got one to a prediction")
    classes = None if reference is None else _exponents(reference)
    differences = decode_aligned(data, start, count, dtype, classes)
    if reference is not None:
        return from_ordered(np.add(differences, ordered(reference)))
    if prediction is not None:
        differences += prediction.values(dtype)
    return _rotated(differences, 8 * dtype.itemsize - 1)


def _exponents(bits: Unsigned) -> Classes:
    """The eight bits below the sign: of float32 and bfloat16 the exponent, of the others what comes near it."""
    exponents: Classes = (bits >> (8 * bits.itemsize - 9)).astype(np.uint8)
    return exponents


def _encode_planes(bits: Unsigned, reference: Unsigned | None) -> bytes:
    folded = _forward(bits, reference)
    blocks = []
    for plane in folded.view(np.uint8).reshape(-1, bits.itemsize).T[::-1]:
        plain = plane.tobytes()
        packed = zstd.compress(plain, _ZSTD_LEVEL)
        blocks.append(packed if len(packed) < len(plain) else plain)
    return b"".join(write_leb(len(block)) for block in blocks) + b"".join(blocks)


def _decode_planes(data: bytes, nbytes: int, itemsize: int, reference: Unsigned | None) -> bytes:
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
    return _backward(folded, reference).tobytes()


def _forward(bits: Unsigned, reference: Unsigned | None) -> Unsigned:
    if bits.itemsize == 1:
        return bits
    if reference is None:
        return _rotated(bits, 1)
    return _folded(np.subtract(ordered(bits), ordered(reference)))


def _backward(folded: Unsigned, reference: Unsigned | None) -> Unsigned:
    if folded.itemsize == 1:
        return folded
    if reference is None:
        return _rotated(folded, 8 * folded.itemsize - 1)
    return from_ordered(np.add(_unfolded(folded), ordered(reference)))


def _bits(payload: Bytes, itemsize: int) -> Unsigned:
    return np.frombuffer(payload, _UNSIGNED[itemsize])


def _before(reference: Bytes | None, itemsize: int) -> Unsigned | None:
    return None if reference is None else _bits(reference, itemsize)
