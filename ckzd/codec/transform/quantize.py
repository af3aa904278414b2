"""Residuals <-> levels: the scalar quantizer with a dead zone.

Level 0 means pruned. Decoding is float64 elementwise arithmetic (IEEE products, quotients and square roots are exact
to the last bit everywhere) and one rounding to the stored dtype.

# R = rows, C = columns
"""

from dataclasses import dataclass

import numpy as np

from ckzd.codec.arrays import Float64, Plane
from ckzd.codec.kernels import kernels
from ckzd.codec.kernels.plain import CENTRED_LEVELS

_CENTRE_UNITS = 256


@dataclass(frozen=True, slots=True)
class ScalarCode:
    """Levels (R, C) of a weighted residual, and where |level| 1..3 restore inside their step, in 1/256."""

    levels: Plane
    centres: bytes


def quantize_scalar(weighted: Float64, step: float, dead_zone: float) -> ScalarCode:
    """Uniform steps with a dead zone: |x| < dead_zone * step becomes 0."""
    levels, sums, counts = kernels.quantize(weighted, step, dead_zone)
    centres = bytearray()
    for level, (total, count) in enumerate(zip(sums.tolist(), counts.tolist(), strict=True), start=1):
        offset = total / count * 2.0**-20 - (level - 0.5) if count else 0.5
        centres.append(int(np.clip(np.rint(offset * _CENTRE_UNITS), 0, 255)))
    return ScalarCode(levels, bytes(centres))


def dequantize_scalar(code: ScalarCode, step: float) -> Float64:
    """Weighted residuals (R, C); ValueError for centres that no encoder writes."""
    if len(code.centres) != CENTRED_LEVELS:
        raise ValueError(f"expected {CENTRED_LEVELS} centres, got {len(code.centres)}")
    restored = [(level - 0.5) + centre / _CENTRE_UNITS for level, centre in enumerate(code.centres, start=1)]
    return kernels.dequantize(code.levels, np.array(restored), step)
