"""What adaptive bases ask of linear algebra, wherever it is done: products of integers, and orthonormal rows.

Matrices hold integers in float64. Every product adds integers whose partial sums stay under 2**53, so that no order of
summation, no fused multiply-add and no number of threads can change a bit; everything else is elementwise IEEE
arithmetic with explicit roundings. A matrix "in 2**-k" counts units of 2**-k.

An algorithm is written once, for arrays of any `Algebra`: with the operators that NumPy and torch have in common
(`Array`), and the few functions in which they differ. A division is no such operator: torch multiplies with the
reciprocal.

# K = matrices that are worked on together, N = directions of each, M = columns
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ckzd.codec.arrays import Float64

Order = npt.NDArray[np.intp]


class Array(Protocol):
    """Float64 of any shape, where its algebra keeps it: what NumPy's arrays and torch's tensors have in common."""

    @property
    def mT(self) -> Self:  # noqa: N802  # theirs
        """Each matrix transposed, a view."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of its axes."""

    def __matmul__(self, other: Self, /) -> Self:
        """Products of matrices."""

    def __mul__(self, other: Self | float, /) -> Self:
        """Elementwise."""

    def __add__(self, other: Self | float, /) -> Self:
        """Elementwise."""

    def __sub__(self, other: Self | float, /) -> Self:
        """Elementwise."""

    def __isub__(self, other: Self | float, /) -> Self:
        """In place."""

    def __iadd__(self, other: Self | float, /) -> Self:
        """In place."""

    def __getitem__(self, place: Any, /) -> Self:
        """Slices are views, matrices by a list of numbers are copied."""

    def __setitem__(self, place: Any, values: Self, /) -> None:
        """In place."""

    def sum(self, axis: int, /) -> Self:
        """Along an axis."""

    def clip(self, low: float, high: float, /) -> Self:
        """Between limits."""

    def reshape(self, rows: int, columns: int, /) -> Self:
        """A view of what is one piece of memory."""


A = TypeVar("A", bound=Array)


class Algebra(ABC, Generic[A]):
    """Where arrays are, and what of linear algebra differs there."""

    @abstractmethod
    def together(self, width: int) -> int:
        """How many square matrices of a width are worked on at once, at most."""

    @abstractmethod
    def put(self, values: npt.NDArray[np.generic]) -> A:
        """Values of the host, of any dtype whose numbers float64 holds."""

    @abstractmethod
    def get(self, values: A) -> Float64:
        """Values for the host."""

    @abstractmethod
    def empty_like(self, values: A) -> A:
        """An array of the same form, to be filled."""

    @abstractmethod
    def stacked(self, matrices: Sequence[A]) -> A:
        """Matrices of one shape (N, M) as one array (K, N, M)."""

    @abstractmethod
    def shifted(self, values: A, bits: int) -> A:
        """Integers times 2**bits, rounded to integers, ties to even; zeros positive."""

    @abstractmethod
    def orthonormal(self, rows: A) -> A:
        """Rows (K, N, N) made orthonormal, in 2**-18: `kernels.plain.orthonormal` says how."""

    @abstractmethod
    def largest(self, values: A) -> Float64:
        """The largest magnitude of each matrix (K, N, M), for the host (K,)."""

    @abstractmethod
    def ordered(self, rows: A, order: Order) -> A:
        """The rows of each matrix (K, N, M) in an order (K, N)."""

    def identity(self, length: int) -> A:
        """Ones on the diagonal (N, N)."""
        return self.put(np.eye(length))


def diagonal(matrices: A) -> A:
    """The diagonals (K, N) of matrices (K, N, N) in one piece of memory, a view."""
    count, length, _ = matrices.shape
    return matrices.reshape(count, length * length)[:, :: length + 1]


def refine(vectors: A, bits: int, slack: int | None, algebra: Algebra[A]) -> npt.NDArray[np.bool_]:
    """Bring nearly orthonormal columns (K, N, N), in 2**-bits, closer by one Newton-Schulz step, in place.

    And say of which that is enough (K,): no product of two columns was off by more than 1/16. Those of which none is
    off by more than 2**-slack stay as they are.
    """
    off = algebra.shifted(vectors.mT @ vectors, -bits)
    of_unit = diagonal(off)
    of_unit -= 2.0**bits
    most = algebra.largest(off)
    if far := np.flatnonzero(most > (0.0 if slack is None else 2.0 ** (bits - slack))).tolist():
        twice = algebra.identity(vectors.shape[-1]) * 2.0 ** (bits + 1)
        vectors[far] = algebra.shifted(vectors[far] @ (twice - off[far]), -bits - 1)
    near: npt.NDArray[np.bool_] = most <= 2.0 ** (bits - 4)
    return near
