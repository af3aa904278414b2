"""Residuals <-> levels: the scalar quantizer with a dead zone.

Level 0 means pruned. Decoding is float64 elementwise arithmetic (IEEE products, quotients and square roots are exact
to the last bit everywhere) and one rounding to the stored dtype.

# R = rows, C = columns
"""

from dataclasses import dataclass

import numpy as np

from ckzd.codec.arrays import MAX_LEVEL, Float64, Plane

CENTRED_LEVELS = 3  # |level| 1..3 restore at their own mean (a byte each), beyond that in the middle of a step
_CENTRE_UNITS = 256


@dataclass(frozen=True, slots=True)
class ScalarCode:
    """Levels (R, C) of a weighted residual, and where |level| 1..3 restore inside their step, in 1/256."""

    levels: Plane
    centres: bytes


def quantize_scalar(weighted: Float64, step: float, dead_zone: float) -> ScalarCode:
    """Uniform steps with a dead zone: |x| < dead_zone * step becomes 0."""
    relative = weighted / step
    magnitude = np.minimum(np.floor(np.abs(relative) + (1.0 - dead_zone)), MAX_LEVEL)
    centres = bytearray()
    for level in range(1, CENTRED_LEVELS + 1):
        inside = np.abs(relative[magnitude == level])
        offset = float(inside.mean()) - (level - 0.5) if inside.size else 0.5
        centres.append(int(np.clip(np.rint(offset * _CENTRE_UNITS), 0, 255)))
    return ScalarCode(np.copysign(magnitude, relative).astype(np.int16), bytes(centres))


def dequantize_scalar(code: ScalarCode, step: float) -> Float64:
    """Weighted residuals (R, C)."""
    levels = code.levels.astype(np.float64)
    magnitude = np.abs(levels)
    for level, centre in enumerate(code.centres, start=1):
        magnitude[np.abs(code.levels) == level] = (level - 0.5) + centre / _CENTRE_UNITS
    return np.copysign(magnitude, levels) * step
