"""Adaptive bases: in which directions a tensor moves, learned from its decoded residuals, so that they cost no byte.

A two-sided KLT (Karhunen-Loeve transform) that is tracked: the residuals of one matrix keep their leading directions
from checkpoint to checkpoint (activations and gradients of a layer span few), on both sides. In a basis that both
directions of the codec know, most of a residual's variance falls on few coefficients, and the directions that carry it
are the ones the loss feels: they get finer steps. A side longer than 256 is cut into even blocks, each with directions
of its own, so that the cost an element does not grow with the matrix.

Each archive turns the basis of its reference by one step of orthogonal iteration on what it decoded: all in integers
(`orthogonal`), because a basis decides which value every level stands for.

# R = rows, C = columns of a tensor seen as a matrix, N = length of a side, B = width of its widest block
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from ckzd.checkpoint import RawArray
from ckzd.codec.arrays import Float64, Plane, Scale
from ckzd.codec.kernels import kernels
from ckzd.codec.kernels.plain import MAX_DIRECTIONS, ROW_BITS, shifted
from ckzd.codec.scales import nearest_code, value_of
from ckzd.codec.transform.orthogonal import refined

Vectors = npt.NDArray[np.int16]

MIN_SIDE = 16  # of a matrix that has a basis: directions of fewer numbers say little
FINE_BITS = 12  # of a coefficient in units of the quantizer's step, before it is turned back
MAX_COEFFICIENT = 2.0**26  # in 2**-12 steps: sums over 256 directions stay exact
_MAX_ELEMENT = 2.0**30  # of a residual, in the same unit: 16 times as much after one side, and sums of that under 2**53
_VECTOR_BITS = 14
_VARIANCE_BITS = 14
_LEARNING_BITS = 6  # of a coefficient in units of the step, when the basis learns from it
_MAX_VARIANCE_CODE = 80  # eighths of an octave: 256 directions share what they have
_FLOOR = -45  # eighths of an octave: no direction counts as weaker than 1/50 of the mean one
_REGULAR = 2.0**-4  # of the mean variance, added to every direction's: keeps the iteration well conditioned
_REMEMBERED = 0.25  # what a basis remembers of the variances it had
_TOGETHER = 16  # blocks that are turned at once: more are no faster and take memory
_COLD_PASSES = 3  # a basis that has seen no residual yet turns further
SLACK = 9  # directions are made orthonormal again when two of them are off by more than 2**-9: rounding takes long


@dataclass(frozen=True, slots=True)
class BasisSide:
    """Directions of one side: vectors (N, B) in 2**-14, block under block, and codes (N,) of their variances.

    A code is in eighths of an octave relative to the block's mean; directions of a block descend by variance.
    """

    vectors: Vectors
    codes: Scale

    @classmethod
    def checked(cls, vectors: RawArray, codes: RawArray) -> Self:
        """A basis that was stored; ValueError unless it is one of a side of that length."""
        width = max((stop - start for start, stop in _blocks(codes.size)), default=0)
        if vectors.dtype != np.int16 or codes.dtype != np.int16 or vectors.shape != (codes.size, width):
            raise ValueError(f"expected vectors of {codes.size} x {width}, got {vectors.shape}")
        if np.any(np.abs(codes.astype(np.int32)) > _MAX_VARIANCE_CODE):
            raise ValueError(f"a direction's variance outside -{_MAX_VARIANCE_CODE}..{_MAX_VARIANCE_CODE}")
        return cls(vectors.astype(np.int16), codes.astype(np.int16))

    @classmethod
    def identity(cls, length: int) -> Self:
        """Directions that are the coordinates."""
        vectors = np.zeros((length, max((stop - start for start, stop in _blocks(length)), default=0)), np.int16)
        for start, stop in _blocks(length):
            vectors[start:stop, : stop - start] = np.eye(stop - start) * 2**_VECTOR_BITS
        return cls(vectors, np.zeros(length, np.int16))

    def blocks(self) -> Iterator[tuple[slice, Float64]]:
        """Place of each block in its side, and its vectors."""
        for start, stop in _blocks(len(self.codes)):
            yield slice(start, stop), self.vectors[start:stop, : stop - start].astype(np.float64)

    def copied(self) -> Self:
        """A copy in memory of its own."""
        return type(self)(self.vectors.copy(), self.codes.copy())

    @property
    def gains(self) -> Float64:
        """What coefficients are multiplied with before they are quantized (N,): variance ** (1/4)."""
        return value_of(self.codes // np.int16(4))


def _blocks(length: int) -> list[tuple[int, int]]:
    """Where a side is cut: as few blocks of at most 256 as there can be, as even as they can be."""
    count = -(-length // MAX_DIRECTIONS)
    return [(length * number // count, length * (number + 1) // count) for number in range(count)]


@dataclass(frozen=True)
class AdaptiveBasis:
    """The directions of both sides of one matrix; `settled` once it has learned from a residual."""

    left: BasisSide
    right: BasisSide
    settled: bool = True

    @classmethod
    def unknown(cls, rows: int, columns: int) -> Self:
        """That of a matrix whose residuals nobody has seen."""
        return cls(BasisSide.identity(rows), BasisSide.identity(columns), settled=False)

    @cached_property
    def gains(self) -> Float64:
        """(R, C): what multiplies each coefficient before it is quantized."""
        return self.left.gains[:, None] * self.right.gains

    def coefficients(self, fixed: Float64) -> Float64:
        """Coefficients (R, C) of a residual in `in_fine_units`, in the same unit, exactly."""
        return _both(fixed, self, lambda vectors, part: shifted(vectors.T @ part, -_VECTOR_BITS))

    def gained(self, fixed: Float64) -> Float64:
        """Likewise, in steps and times their gains (R, C): what is quantized."""
        gained = self.coefficients(fixed)
        gained *= self.gains
        gained *= 2.0**-FINE_BITS
        return gained

    def reaches(self, levels: Plane) -> bool:
        """Whether coefficients of these levels can be coded."""
        return bool((np.abs(levels) / self.gains).max(initial=0.0) < MAX_COEFFICIENT / 2 ** (FINE_BITS + 1))

    def fixed(self, gained: Float64) -> Float64:
        """Coefficients (R, C) in 2**-12 steps from quantized ones (in steps, times their gains): the format's rounding.

        ValueError for one that no encoder writes.
        """
        fixed = np.rint(gained / self.gains * 2.0**FINE_BITS)
        if np.abs(fixed).max(initial=0.0) > MAX_COEFFICIENT:
            raise ValueError(f"a coefficient beyond {MAX_COEFFICIENT:g} / 4096 steps")
        return fixed

    def residual(self, fixed: Float64) -> Float64:
        """The weighted residual (R, C) of coefficients in 2**-12 steps, in the same unit, exactly."""
        return _both(fixed, self, lambda vectors, part: shifted(vectors @ part, -_VECTOR_BITS)) * 2.0**-FINE_BITS


def in_fine_units(weighted: Float64, step: float) -> Float64 | None:
    """A weighted residual (R, C) in 2**-12 steps, the nearest integers; None if its sums would not be exact."""
    fixed = weighted / step
    fixed *= 2.0**FINE_BITS
    np.rint(fixed, out=fixed)
    return fixed if np.abs(fixed).max(initial=0.0) <= _MAX_ELEMENT else None


def has_basis(shape: tuple[int, int]) -> bool:
    """Whether both sides are long enough for directions to be learned."""
    return min(shape) >= MIN_SIDE


def _both(matrix: Float64, basis: AdaptiveBasis, apply: Callable[[Float64, Float64], Float64]) -> Float64:
    """Apply to all blocks of the left side, then of the right."""
    half, whole = np.empty_like(matrix), np.empty_like(matrix)
    for place, vectors in basis.left.blocks():
        half[place] = apply(vectors, matrix[place])
    for place, vectors in basis.right.blocks():
        whole[:, place] = apply(vectors, half[:, place].T).T
    return whole


# Tracking


@dataclass(frozen=True, slots=True)
class Observed:
    """A basis, and the coefficients (R, C) in 2**-12 steps of the last residual as seen in it."""

    basis: AdaptiveBasis
    fixed: Float64


def tracked(observed: Iterable[Observed], slack: int | None = SLACK) -> list[AdaptiveBasis]:
    """The bases for the next residuals, in order. Blocks of all of them are turned together: see `_turn`.

    `slack` is None in formats before 7: see `orthogonal.refined`.
    """
    bases: list[AdaptiveBasis] = []
    alike: dict[tuple[int, int], list[_Block]] = {}  # by passes and width
    for each in observed:
        basis = AdaptiveBasis(each.basis.left.copied(), each.basis.right.copied())
        limit = float(min(2**17, math.isqrt(2**44 // max(each.fixed.shape))))  # squares of a row sum to at most 2**44
        seen = np.clip(shifted(each.fixed, _LEARNING_BITS - FINE_BITS), -limit, limit)
        passes = 1 if each.basis.settled else _COLD_PASSES
        for side, coefficients in ((basis.left, seen), (basis.right, seen.T)):
            for start, stop in _blocks(len(side.codes)):
                vectors, codes = side.vectors[start:stop, : stop - start], side.codes[start:stop]
                block = _Block(vectors, codes, coefficients[start:stop])
                alike.setdefault((passes, stop - start), []).append(block)
        bases.append(basis)
    for (passes, _), blocks in alike.items():
        for first in range(0, len(blocks), _TOGETHER):
            _turn(blocks[first : first + _TOGETHER], passes, slack)
    return bases


@dataclass(slots=True)
class _Block:
    """Views of a block's directions (B, B) and codes (B,), to be turned, and coefficients (B, M) seen in them."""

    vectors: Vectors
    codes: Scale
    seen: Float64

    def covariance(self) -> Float64:
        """What directions have in common (B, B), in 2**-14 of the mean variance: in what was seen and before."""
        size, seen = len(self.codes), self.seen @ self.seen.T
        covariance = (1 - _REMEMBERED) * (seen * (size / max(float(np.trace(seen)), 1.0)))
        np.einsum("bb->b", covariance)[...] += _REMEMBERED * value_of(self.codes) + _REGULAR
        return shifted(covariance, _VARIANCE_BITS)

    def turn(self, covariance: Float64, rows: Float64, slack: int | None) -> None:
        """Turn the directions by orthonormal rows (B, B), those of the highest variance first."""
        along = (rows * shifted(rows @ covariance, -ROW_BITS)).sum(1)
        variances = np.maximum(np.ldexp(along, -ROW_BITS - _VARIANCE_BITS), 2.0**-10)
        order = np.argsort(-variances, kind="stable")
        turned = shifted(self.vectors.astype(np.float64) @ rows[order].T, -ROW_BITS)
        turned, near = refined(turned, _VECTOR_BITS, slack)
        if near and self.seen.any():  # else a direction got lost and would never be coded again, or nothing was seen
            self.vectors[...] = np.clip(turned, -32767, 32767)
            self.codes[...] = np.maximum(nearest_code(variances[order]), _FLOOR)


def _turn(blocks: Sequence[_Block], passes: int, slack: int | None) -> None:
    """Turn blocks of one width, each towards what it has seen, by steps of orthogonal iteration.

    Gram-Schmidt takes all at once, for its calls are on few numbers; products are faster on one that fits a cache.
    """
    for number in range(passes):
        is_last = number + 1 == passes
        before = [] if is_last else [block.vectors.astype(np.float64) for block in blocks]
        covariances = [block.covariance() for block in blocks]
        # squares alone would spread over more than the 22 bits of a row
        powers = [each @ each.T + 2.0**_VARIANCE_BITS * each for each in covariances]  # a symmetric product is faster
        for block, covariance, rows in zip(blocks, covariances, kernels.orthonormal(np.stack(powers)), strict=True):
            block.turn(covariance, rows, slack)  # powers are symmetric: their rows are their columns
        for block, old in zip(blocks, before, strict=not is_last):
            turn = shifted(old.T @ block.vectors.astype(np.float64), -_VECTOR_BITS)
            block.seen = shifted(turn.T @ block.seen, -_VECTOR_BITS)
