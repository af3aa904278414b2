"""Stored dtypes <-> float64: widening is exact, narrowing rounds once, to nearest even, on any machine.

Numbers of float64 are worked with in float32's range, where their squares are numbers too.
"""

import numpy as np

from ckzd.checkpoint import STORED_AS, Bytes, RawArray
from ckzd.codec.arrays import Float64, Mask, Numbers

SMALLEST = {"float64": 2.0**-149, "float32": 2.0**-149, "bfloat16": 2.0**-133, "float16": 2.0**-24}
SMALLEST_NORMAL = {"float64": 2.0**-126, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}
_LARGEST_SINGLE = float(np.finfo(np.float32).max)
_LARGEST = {"float64": _LARGEST_SINGLE, "float32": _LARGEST_SINGLE, "float16": 65504.0}
_BFLOAT16_EXPONENT = np.uint16(0x7F80)
_MINUS_ZERO = 0x8000  # of bfloat16


def stored_array(payload: Bytes, dtype: str, shape: tuple[int, ...]) -> RawArray:
    """View a payload as its stored dtype (bfloat16 as uint16), in `shape`."""
    return np.frombuffer(payload, STORED_AS[dtype]).reshape(shape)


def to_float64(stored: RawArray, dtype: str) -> Float64:
    """Stored values as float64, exactly."""
    if dtype == "bfloat16":
        stored = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN is a value like others
        return stored.astype(np.float64)


def to_numbers(stored: RawArray, dtype: str) -> Numbers:
    """Stored values as kernels take them: float32 as it is, all others widened, exactly."""
    return stored.astype(np.float32, copy=False) if is_single(dtype) else to_float64(stored, dtype)


def from_numbers(values: Numbers, dtype: str) -> RawArray:
    """What a kernel gave for that dtype in its stored form: float32 if `is_single`, else float64 to be rounded."""
    return values if values.dtype == np.float32 else from_float64(values.astype(np.float64, copy=False), dtype)


def is_single(dtype: str) -> bool:
    """Whether kernels take and give values of it in float32."""
    return dtype == "float32"


def from_float64(values: Float64, dtype: str) -> RawArray:
    """Float64 values rounded once to the stored dtype, ties to even; overflow saturates at the largest finite value."""
    if dtype == "bfloat16":
        return _to_bfloat16(values)
    limit = _LARGEST[dtype]
    return np.clip(values, -limit, limit).astype(STORED_AS[dtype])


def _to_bfloat16(values: Float64) -> RawArray:
    """Through float32 rounded to odd, which makes the second rounding the only one."""
    limit = _LARGEST_SINGLE
    single = np.clip(values, -limit, limit).astype(np.float32)
    bits = single.view(np.uint32).copy()
    widened = single.astype(np.float64)
    bits -= (np.abs(widened) > np.abs(values)).astype(np.uint32)  # towards zero: one step down in magnitude
    bits |= (widened != values).astype(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    upper = (rounded >> np.uint32(16)).astype(np.uint16)
    infinite = (upper & np.uint16(0x7FFF)) == _BFLOAT16_EXPONENT
    return np.asarray(upper - infinite.astype(np.uint16))


def is_zero(stored: RawArray) -> Mask:
    """Where stored values are 0 of either sign, whatever their dtype (bfloat16 as its bits)."""
    zero: Mask = stored == 0
    return zero | (stored == _MINUS_ZERO) if stored.dtype == np.uint16 else zero


def is_negative(stored: RawArray) -> Mask:
    """Where stored values have a minus, zeros and NaN with one too, whatever their dtype (bfloat16 as its bits)."""
    negative: Mask = stored.view(np.uint16) >= _MINUS_ZERO if stored.dtype == np.uint16 else np.signbit(stored)
    return negative


def finite(stored: RawArray, dtype: str) -> Mask:
    """Where stored values are finite; those of float64, in float32's range."""
    found: Mask
    if dtype == "bfloat16":
        found = (stored.view(np.uint16) & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT
    elif dtype == "float64":
        found = np.abs(stored) <= _LARGEST_SINGLE
    else:
        found = np.isfinite(stored)
    return found


def is_finite(stored: RawArray, dtype: str) -> bool:
    """Whether every value is finite."""
    return bool(finite(stored, dtype).all())
