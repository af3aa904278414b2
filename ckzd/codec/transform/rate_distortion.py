"""What a way to code a residual costs, distortion and rate together; only the encoder asks.

All ways to code a matrix have the same quantization step, so an error weighs as much against a bit in each.

# R = rows, C = columns of a plane
"""

from dataclasses import dataclass

import numpy as np

from ckzd.codec.arrays import Float64, Plane
from ckzd.codec.kernels import kernels
from ckzd.codec.kernels.plain import NEAREST

LAMBDA = 0.13  # squared steps of error that a bit less costs, measured where levels are coefficients in bases
_ESCAPE_BITS = 6.0


@dataclass(frozen=True, slots=True)
class RateDistortion:
    """What is lost of a residual in squared steps, and about how many bits its code takes."""

    distortion: float
    bits: float

    @property
    def cost(self) -> float:
        """Distortion + lambda * rate, in squared steps."""
        return self.distortion + LAMBDA * self.bits


def estimated(lost: Float64, levels: Plane, more_bits: int = 0) -> RateDistortion:
    """About what it costs to lose `lost` (in steps, any shape), and to code levels (R, C) and bits beside them."""
    return RateDistortion(float(np.vdot(lost, lost)), more_bits + _estimated_bits(levels))


def _estimated_bits(levels: Plane) -> float:
    """About what levels take in contexts that tell how large their row and their column are."""
    sums = kernels.near_sums(levels)
    if not (total := int(sums.rows.sum())):
        return 0.0
    mean, half = total / levels.size, np.log2(total / levels.size) / 2
    rows, columns = (
        np.log2(np.maximum(each / length, mean / 64)) - half
        for each, length in ((sums.rows, levels.shape[1]), (sums.columns, levels.shape[0]))
    )
    counts = kernels.class_counts(levels, rows, columns)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    magnitudes = -float((counts * np.log2(np.maximum(shares, 1e-12))).sum())
    signs = float(counts[:, 1:].sum())
    return magnitudes + signs + _ESCAPE_BITS * float(counts[:, NEAREST].sum())
