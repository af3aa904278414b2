"""Residuals <-> levels: the Fisher-weighted scalar quantizer, and levels that name the centres of a codebook.

Level 0 means pruned. Decoding is float64 elementwise arithmetic (IEEE products, quotients and square roots are exact
to the last bit everywhere) and one rounding to the stored dtype.

# R = rows, C = columns, K = codebook size
"""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckzd.codec.arrays import Float64, Plane, Scale
from ckzd.codec.scales import BELOW_ALL, MAX_LEVEL, ZERO, Scales, value_of

_CENTRED_LEVELS = 3  # |level| 1..3 restore at their own mean, beyond that at the middle of their step
_CENTRE_UNITS = 256


@dataclass(frozen=True, slots=True)
class Weigher:
    """What multiplies a residual before it is quantized: fourth roots of the second moment's row and column means."""

    rows: Float64  # (R, 1)
    columns: Float64  # (1, C)

    def weigh(self, residual: Float64) -> Float64:
        """Into the domain in which every unit of error costs about the same."""
        return residual * self.rows * self.columns

    def unweigh(self, weighted: Float64) -> Float64:
        """Back; this order of divisions is the format's."""
        return (weighted / self.rows) / self.columns


def weigher_of(scales: Scales) -> Weigher:
    """Fourth roots by two square roots. A row that is all zero weighs as if two octaves below the smallest other."""
    rows, columns = (_fourth_root(codes, scales.reach) for codes in (scales.rows, scales.columns))
    return Weigher(rows[:, None], columns[None, :])


def _fourth_root(codes: Scale, reach: int | None) -> Float64:
    """Within `reach` below the mean code (rounded down): what never had a gradient must not move by half its size."""
    used = codes[codes != ZERO].astype(np.int64)
    floor = int(used.min()) + BELOW_ALL if used.size else 0
    weighed = np.where(codes == ZERO, floor, codes.astype(np.int64))
    if reach is not None and used.size:
        weighed = np.maximum(weighed, int(used.sum()) // used.size - reach)
    return np.sqrt(np.sqrt(value_of(weighed.astype(np.int16))))


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
    for level in range(1, _CENTRED_LEVELS + 1):
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


@dataclass(frozen=True, slots=True)
class Codebook:
    """Ascending float32 centres (K,); the first `below` have levels -below..-1, the rest 1, 2, ..."""

    centres: npt.NDArray[np.float32]
    below: int

    def to_bytes(self) -> bytes:
        """u8 K, u8 below, f32[K]."""
        return struct.pack("<BB", self.centres.size, self.below) + self.centres.astype("<f4").tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> tuple["Codebook", int]:
        """The codebook at the start of `data`, and its length in bytes."""
        size, below = struct.unpack_from("<BB", data)
        centres = np.frombuffer(data, "<f4", size, 2)
        if below > size or not np.isfinite(centres).all():
            raise ValueError(f"a codebook of {size} centres, {below} of them below zero, or one that is not finite")
        return Codebook(centres, below), 2 + 4 * size


@dataclass(frozen=True, slots=True)
class KmeansCode:
    """Levels (R, C), 0 where pruned, and their codebook."""

    levels: Plane
    codebook: Codebook


def dequantize_kmeans(code: KmeansCode) -> Float64:
    """Values (R, C), 0 where pruned; ValueError if a level has no centre."""
    centres, below, levels = code.codebook.centres, code.codebook.below, code.levels
    if levels.min(initial=0) < -below or levels.max(initial=0) > centres.size - below:
        raise ValueError(f"a level lies outside the codebook of {centres.size} centres")
    table = np.insert(centres.astype(np.float64), below, 0.0)
    values: Float64 = table[levels.astype(np.int32) + below]
    return values
