"""Finds factors of a weighted residual, and tells whether they are worth it; only the encoder comes here.

Both ways to code a matrix have the same step, so an error weighs as much against a bit: a component is worth what it
takes from the squared error, less what its entries cost. Every entry of `U S` and of `V S` is quantized with the step
(reverse water-filling).

# R = rows, C = columns of a tensor seen as a matrix, K = components
"""

from dataclasses import dataclass

import numpy as np

from ckzd.codec.arrays import Float64, Plane
from ckzd.codec.scales import MAX_LEVEL, nearest_code
from ckzd.codec.transform.adaptive_basis import FINE_BITS, MAX_COEFFICIENT
from ckzd.codec.transform.factors import MAX_CODE, UNIT_BITS, Factors, unit_of

_BIT_PRICE = 0.13  # squared steps of error that a bit less costs, measured where levels are coefficients in frames
_SKETCH = 128  # components that are looked for, at most
_MORE = 8  # directions of the sketch beside them
_ROUNDS = 2  # of subspace iteration
_FURTHEST = MAX_COEFFICIENT / 2**FINE_BITS
_NEAR, _CLASSES = 9, 48  # magnitudes and classes that the estimate tells apart
_ESCAPE_BITS = 6.0


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to code a residual: what is lost of it in squared steps, and about how many bits it takes."""

    error: float
    bits: float

    @property
    def cost(self) -> float:
        """Both together, in squared steps."""
        return self.error + _BIT_PRICE * self.bits


def offer_of(lost: Float64, levels: Plane, more_bits: int = 0) -> Offer:
    """What is lost, in steps, and levels that are coded as a plane."""
    return Offer(float((lost**2).sum()), more_bits + _estimated_bits(levels))


def fitted(residual: Float64) -> tuple[Factors, Offer] | None:
    """Factors of a residual (R, C) in steps, as many as pay; None if none do, or if it is beyond the format."""
    if not np.abs(residual).max(initial=0.0) <= _FURTHEST:  # float32 would not reach much further either
        return None
    left, sizes, right = _leading(residual)
    codes = np.clip(nearest_code(np.maximum(sizes, 1.0)), 0, MAX_CODE)
    lengths = np.sqrt(np.ldexp(sizes, UNIT_BITS) / unit_of(codes))  # of each vector of integers
    count = _paying(residual.shape, sizes, lengths)
    sides = [np.rint(vectors[:, :count] * lengths[:count]) for vectors in (left, right)]
    if not count or max(np.abs(side).max() for side in sides) > MAX_LEVEL:
        return None
    factors = Factors(sides[0].astype(np.int16), sides[1].astype(np.int16), codes[:count])
    try:
        lost = residual - np.ldexp(factors.fixed(), -FINE_BITS)
    except ValueError:  # further than the format reaches
        return None
    head, plane = factors.split
    return factors, offer_of(lost, plane, 8 * len(head))


def _leading(matrix: Float64) -> tuple[Float64, Float64, Float64]:
    """About the leading singular vectors and values, (R, K), (K,) descending, (C, K): randomized SVD (Halko 2011)."""
    if matrix.shape[0] < matrix.shape[1]:
        right, sizes, left = _leading(matrix.T)
        return left, sizes, right
    count = min(_SKETCH + _MORE, matrix.shape[1])
    working = matrix.astype(np.float32)
    basis = np.random.default_rng(0).standard_normal((matrix.shape[1], count), np.float32)
    for _ in range(_ROUNDS):  # on the shorter side
        basis, _ = np.linalg.qr(working.T @ (working @ basis))
    seen = (working @ basis).astype(np.float64)
    squares, turn = np.linalg.eigh(seen.T @ seen)
    sizes, turn = np.sqrt(np.maximum(squares[::-1], 0.0))[:_SKETCH], turn[:, ::-1][:, :_SKETCH]
    return seen @ (turn / np.maximum(sizes, 1e-30)), sizes, basis.astype(np.float64) @ turn


def _paying(shape: tuple[int, ...], sizes: Float64, lengths: Float64) -> int:
    """How many of the leading components, in vectors of integers so long, save more than they cost."""
    bits, noise = np.zeros(sizes.size), np.zeros(sizes.size)
    for entries in shape:
        bits += entries / 2 * np.log2(1 + 2 * np.pi * np.e * lengths**2 / entries)  # Gaussian
        noise += np.minimum(entries / 12, lengths**2) * (sizes / np.maximum(lengths, 1.0)) ** 2
    saved = np.cumsum(sizes**2 - noise - _BIT_PRICE * bits)
    return int(np.argmax(saved)) + 1 if saved.max(initial=0.0) > 0 else 0


def _estimated_bits(levels: Plane) -> float:
    """About what levels take in contexts that tell how large their row and their column are."""
    near = np.minimum(np.abs(levels.astype(np.int64)), _NEAR)
    mean = near.mean()
    if not mean:
        return 0.0
    rows, columns = (np.log2(np.maximum(near.mean(axis), mean / 64)) for axis in (1, 0))
    classes = np.floor(4 * (np.add.outer(rows, columns) - np.log2(mean))) + _CLASSES // 2
    cells = np.clip(classes, 0, _CLASSES - 1).astype(np.int64) * (_NEAR + 1) + near
    counts = np.bincount(cells.ravel(), minlength=_CLASSES * (_NEAR + 1)).reshape(_CLASSES, -1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    magnitudes = -float((counts * np.log2(np.maximum(shares, 1e-12))).sum())
    return magnitudes + np.count_nonzero(near) + _ESCAPE_BITS * float(counts[:, _NEAR].sum())
