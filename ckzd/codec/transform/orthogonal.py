"""Orthonormal bases in exact arithmetic: matrices of integers in float64, whose sums no order of summation can change.

Every product below adds integers whose partial sums stay under 2**53, so that any BLAS on any number of threads gives
the same bits; everything else is elementwise IEEE arithmetic with an explicit rounding. A matrix "in 2**-k" holds
integers that count units of 2**-k.

# N = directions, at most `MAX_DIRECTIONS`
"""

import numpy as np

from ckzd.codec.arrays import Float64
from ckzd.codec.kernels.plain import shifted


def refined(vectors: Float64, bits: int, slack: int | None = None) -> tuple[Float64, bool]:
    """Nearly orthonormal columns (N, N), in 2**-bits, brought closer by one Newton-Schulz step.

    And whether that is enough: no product of two columns is off by more than 1/16. Where none is off by more than
    2**-slack they stay as they are.
    """
    unit = np.eye(len(vectors))
    off = shifted(vectors.T @ vectors, -bits) - 2.0**bits * unit
    most = float(np.abs(off).max())
    if slack is not None and most <= 2.0 ** (bits - slack):
        return vectors, True
    return shifted(vectors @ (2.0 ** (bits + 1) * unit - off), -bits - 1), most <= 2.0 ** (bits - 4)
