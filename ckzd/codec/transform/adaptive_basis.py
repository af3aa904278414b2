"""Adaptive bases: in which directions a tensor moves, learned from its decoded residuals, so that they cost no byte.

A two-sided KLT (Karhunen-Loeve transform) that is tracked: the residuals of one matrix keep their leading directions
from checkpoint to checkpoint (activations and gradients of a layer span few), on both sides. In a basis that both
directions of the codec know, most of a residual's variance falls on few coefficients, and the directions that carry it
are the ones the loss feels: they get finer steps. A side longer than 256 is cut into even blocks, each with directions
of its own, so that the cost an element does not grow with the matrix.

Each archive turns the basis of its reference by one step of orthogonal iteration on what it decoded: all in integers
(`algebra`), because a basis decides which value every level stands for.

# R = rows, C = columns of a tensor seen as a matrix, N = length of a side, B = width of its widest block
# K = blocks that are turned together, M = length of the other side
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Self

import numpy as np
import numpy.typing as npt

from ckzd.checkpoint import RawArray
from ckzd.codec.algebra.exact import A, Algebra, diagonal, refine
from ckzd.codec.algebra.on_cores import CORES
from ckzd.codec.arrays import Float64, Plane, Scale
from ckzd.codec.kernels.plain import MAX_DIRECTIONS, ROW_BITS
from ckzd.codec.scales import nearest_code, value_of

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

    def blocks(self, algebra: Algebra[A]) -> Iterator[tuple[slice, A]]:
        """Place of each block in its side, and its vectors."""
        vectors = algebra.put(self.vectors)
        for start, stop in _blocks(len(self.codes)):
            yield slice(start, stop), vectors[start:stop, : stop - start]

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

    @property
    def sides(self) -> tuple[BasisSide, BasisSide]:
        """That of the rows, that of the columns."""
        return self.left, self.right

    @cached_property
    def gains(self) -> Float64:
        """(R, C): what multiplies each coefficient before it is quantized."""
        return self.left.gains[:, None] * self.right.gains

    def coefficients(self, fixed: Float64, algebra: Algebra[Any] = CORES) -> Float64:
        """Coefficients (R, C) of a residual in `in_fine_units`, in the same unit, exactly."""
        return self._turned(fixed, algebra, lambda vectors: vectors.mT)

    def gained(self, fixed: Float64, algebra: Algebra[Any] = CORES) -> Float64:
        """Likewise, in steps and times their gains (R, C): what is quantized."""
        gained = self.coefficients(fixed, algebra)
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

    def residual(self, fixed: Float64, algebra: Algebra[Any] = CORES) -> Float64:
        """The weighted residual (R, C) of coefficients in 2**-12 steps, in steps, exactly."""
        residual = self._turned(fixed, algebra, lambda vectors: vectors)
        residual *= 2.0**-FINE_BITS
        return residual

    def _turned(self, fixed: Float64, algebra: Algebra[A], by: Callable[[A], A]) -> Float64:
        """Integers (R, C), turned by all blocks of the left side and then of the right."""
        matrix = algebra.put(fixed)
        half, whole = algebra.empty_like(matrix), algebra.empty_like(matrix)
        for place, vectors in self.left.blocks(algebra):
            half[place] = algebra.shifted(by(vectors) @ matrix[place], -_VECTOR_BITS)
        for place, vectors in self.right.blocks(algebra):
            whole[:, place] = algebra.shifted(half[:, place] @ by(vectors).mT, -_VECTOR_BITS)
        return algebra.get(whole)


def in_fine_units(weighted: Float64, step: float) -> Float64 | None:
    """A weighted residual (R, C) in 2**-12 steps, the nearest integers; None if its sums would not be exact."""
    fixed = weighted / step
    fixed *= 2.0**FINE_BITS
    np.rint(fixed, out=fixed)
    return fixed if np.abs(fixed).max(initial=0.0) <= _MAX_ELEMENT else None


def has_basis(shape: tuple[int, int]) -> bool:
    """Whether both sides are long enough for directions to be learned."""
    return min(shape) >= MIN_SIDE


# Tracking


@dataclass(frozen=True, slots=True)
class Observed:
    """A basis, and the coefficients (R, C) in 2**-12 steps of the last residual as seen in it."""

    basis: AdaptiveBasis
    fixed: Float64


def tracked(
    observed: Iterable[Observed], slack: int | None = SLACK, algebra: Algebra[Any] = CORES
) -> list[AdaptiveBasis]:
    """The bases for the next residuals, in order. Blocks of all of them are turned together: see `_turn`.

    `slack` is None in formats before 7: see `algebra.exact.refine`.
    """
    bases: list[AdaptiveBasis] = []
    alike: dict[tuple[int, int, int], list[_Block[Any]]] = {}  # by passes, width, and length of the other side
    for each in observed:
        basis = AdaptiveBasis(each.basis.left.copied(), each.basis.right.copied())
        limit = float(min(2**17, math.isqrt(2**44 // max(each.fixed.shape))))  # squares of a row sum to at most 2**44
        seen = algebra.shifted(algebra.put(each.fixed), _LEARNING_BITS - FINE_BITS).clip(-limit, limit)
        passes = 1 if each.basis.settled else _COLD_PASSES
        for side, coefficients in zip(basis.sides, (seen, seen.mT), strict=True):
            for start, stop in _blocks(len(side.codes)):
                vectors, codes = side.vectors[start:stop, : stop - start], side.codes[start:stop]
                block = _Block(vectors, codes, coefficients[start:stop])
                alike.setdefault((passes, stop - start, coefficients.shape[1]), []).append(block)
        bases.append(basis)
    for (passes, width, _), blocks in alike.items():
        together = algebra.together(width)
        for first in range(0, len(blocks), together):
            _turn(blocks[first : first + together], passes, slack, algebra)
    return bases


@dataclass(frozen=True, slots=True)
class _Block(Generic[A]):
    """Views of a block's directions (B, B) and codes (B,), to be turned, and coefficients (B, M) seen in them."""

    vectors: Vectors
    codes: Scale
    seen: A


def _turn(blocks: Sequence[_Block[A]], passes: int, slack: int | None, algebra: Algebra[A]) -> None:
    """Turn blocks of one form, each towards what it has seen, by steps of orthogonal iteration.

    Whatever has B numbers a block is worked on by the host, whatever has more stays where the algebra is.
    """
    seen = algebra.stacked([block.seen for block in blocks])
    vectors = algebra.put(np.stack([block.vectors for block in blocks]))
    codes = np.stack([block.codes for block in blocks])
    for number in range(passes):
        covariance, energy = _covariance(seen, codes, algebra)
        # squares alone would spread over more than the 22 bits of a row; they are symmetric: their rows are columns
        rows = algebra.orthonormal(covariance @ covariance.mT + covariance * 2.0**_VARIANCE_BITS)
        along = algebra.get((rows * algebra.shifted(rows @ covariance, -ROW_BITS)).sum(-1))
        variances = np.maximum(np.ldexp(along, -ROW_BITS - _VARIANCE_BITS), 2.0**-10)
        order = np.argsort(-variances, axis=1, kind="stable")
        turned = algebra.shifted(vectors @ algebra.ordered(rows, order).mT, -ROW_BITS)
        is_near = refine(turned, _VECTOR_BITS, slack, algebra)
        turned = turned.clip(-32767, 32767)
        # else a direction got lost and would never be coded again, or nothing was seen
        is_turned = is_near & (energy > 0)
        if stays := np.flatnonzero(~is_turned).tolist():
            turned[stays] = vectors[stays]
        descending = np.take_along_axis(variances, order, 1)
        codes = np.where(is_turned[:, None], np.maximum(nearest_code(descending), _FLOOR), codes).astype(np.int16)
        if number + 1 < passes:
            turn = algebra.shifted(vectors.mT @ turned, -_VECTOR_BITS)
            seen = algebra.shifted(turn.mT @ seen, -_VECTOR_BITS)
        vectors = turned
    for block, found, found_codes in zip(blocks, algebra.get(vectors), codes, strict=True):
        block.vectors[...], block.codes[...] = found, found_codes


def _covariance(seen: A, codes: Scale, algebra: Algebra[A]) -> tuple[A, Float64]:
    """What directions have in common (K, B, B), in 2**-14 of the mean variance: in what was seen and before.

    And the energy of what was seen (K,).
    """
    covariance = seen @ seen.mT  # a symmetric product is faster
    energy = algebra.get(diagonal(covariance).sum(-1))
    scale = codes.shape[1] / np.maximum(energy, 1.0)
    covariance = covariance * algebra.put(scale[:, None, None]) * (1 - _REMEMBERED)
    of_each = diagonal(covariance)
    of_each += algebra.put(_REMEMBERED * value_of(codes) + _REGULAR)
    return algebra.shifted(covariance, _VARIANCE_BITS), energy
