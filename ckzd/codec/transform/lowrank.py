"""Finds factors of a weighted residual, and tells whether they are worth it; only the encoder comes here.

A component is worth what it takes from the squared error, less lambda times the bits that its entries cost. Every entry
of `U S` and of `V S` is quantized with the step (reverse water-filling).

# R = rows, C = columns of a tensor seen as a matrix, K = components
"""

import numpy as np

from ckzd.codec.arrays import MAX_LEVEL, Float64
from ckzd.codec.scales import nearest_code
from ckzd.codec.svd import leading
from ckzd.codec.transform.adaptive_basis import FINE_BITS, MAX_COEFFICIENT
from ckzd.codec.transform.factors import FACTOR_BITS, MAX_FACTOR_CODE, Factors, unit_of
from ckzd.codec.transform.rate_distortion import LAMBDA, RateDistortion, estimated

_MOST_COMPONENTS = 128  # components that are looked for, at most
_MORE = 8  # directions of the sketch beside them
_ROUNDS = 2  # of subspace iteration
_FURTHEST = MAX_COEFFICIENT / 2**FINE_BITS


def fitted(residual: Float64) -> tuple[Factors, RateDistortion] | None:
    """Factors of a residual (R, C) in steps, as many as pay; None if none do, or if it is beyond the format."""
    if not np.abs(residual).max(initial=0.0) <= _FURTHEST:  # float32 would not reach much further either
        return None
    count = min(_MOST_COMPONENTS + _MORE, *residual.shape)
    left, sizes, right = (each[..., :_MOST_COMPONENTS] for each in leading(residual.astype(np.float32), count, _ROUNDS))
    codes = np.clip(nearest_code(np.maximum(sizes, 1.0)), 0, MAX_FACTOR_CODE)
    lengths = np.sqrt(np.ldexp(sizes, FACTOR_BITS) / unit_of(codes))  # of each vector of integers
    count = _paying(residual.shape, sizes, lengths)
    sides = [np.rint(vectors[:, :count] * lengths[:count]) for vectors in (left, right)]
    if not count or max(np.abs(side).max() for side in sides) > MAX_LEVEL:
        return None
    factors = Factors(sides[0].astype(np.int16), sides[1].astype(np.int16), codes[:count])
    try:
        lost = residual - factors.fixed * 2.0**-FINE_BITS
    except ValueError:  # further than the format reaches
        return None
    return factors, estimated(lost, factors.plane, 8 * factors.head_bytes)


def _paying(shape: tuple[int, ...], sizes: Float64, lengths: Float64) -> int:
    """How many of the leading components, in vectors of integers so long, save more than they cost."""
    bits, noise = np.zeros(sizes.size), np.zeros(sizes.size)
    for entries in shape:
        bits += entries / 2 * np.log2(1 + 2 * np.pi * np.e * lengths**2 / entries)  # Gaussian
        noise += np.minimum(entries / 12, lengths**2) * (sizes / np.maximum(lengths, 1.0)) ** 2
    saved = np.cumsum(sizes**2 - noise - LAMBDA * bits)
    return int(np.argmax(saved)) + 1 if saved.max(initial=0.0) > 0 else 0
