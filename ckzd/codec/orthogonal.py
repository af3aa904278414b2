"""Orthonormal bases in exact arithmetic: matrices of integers in float64, whose sums no order of summation can change.

Every product below adds integers whose partial sums stay under 2**53, so that any BLAS on any number of threads gives
the same bits; everything else is elementwise IEEE arithmetic with an explicit rounding. A matrix "in 2**-k" holds
integers that count units of 2**-k.

# N = directions, at most `MAX_DIRECTIONS`
"""

import numpy as np

from ckzd.codec.arrays import Float64

MAX_DIRECTIONS = 256
UNIT_BITS = 18  # of the vectors that `orthonormal` returns
_WORK_BITS = 22  # of a row on its way there: 256 squares stay under 2**53
_PANEL = 16  # rows that are made orthogonal one by one; against earlier panels they are projected together


def shifted(values: Float64, bits: int) -> Float64:
    """Integers times 2**bits, rounded to integers, ties to even; zeros positive: BLAS does not say which it gives."""
    product = values * 2.0**bits
    np.rint(product, out=product)
    product += 0.0
    return product


def orthonormal(rows: Float64) -> Float64:
    """The rows (N, N), of full rank, made orthonormal from the first to the last (Gram-Schmidt, each panel twice).

    In 2**-18. Of rows of lower rank some may come out alike: `is_orthonormal` tells.
    """
    done = np.zeros_like(rows)
    for start in range(0, len(rows), _PANEL):
        panel, before = _scaled(rows[start : start + _PANEL]), done[:start]
        for _ in range(2):
            shares = shifted(panel @ before.T, -UNIT_BITS)
            panel = _gram_schmidt(_scaled(panel - shifted(shares @ before, -UNIT_BITS)), start)
        done[start : start + _PANEL] = panel
    return done


def _scaled(rows: Float64) -> Float64:
    """Each row times a power of two, so that its largest magnitude is a number of 22 bits."""
    _, exponents = np.frexp(np.abs(rows).max(1, keepdims=True))
    scaled = np.ldexp(rows, _WORK_BITS - exponents)
    return np.asarray(np.rint(scaled, out=scaled), np.float64)


def _gram_schmidt(panel: Float64, start: int) -> Float64:
    """The panel's rows, orthonormal among themselves, in 2**-18. One that vanishes becomes a unit vector."""
    for number in range(len(panel)):
        row, rest = panel[number], panel[number + 1 :]
        if not row.any():
            row[start + number] = 1.0
        row *= 2.0**UNIT_BITS / np.sqrt(row @ row)
        np.rint(row, out=row)
        shares = shifted(rest @ row, -UNIT_BITS)
        rest -= shifted(shares[:, None] * row, -UNIT_BITS)
    return panel


def refined(vectors: Float64, bits: int) -> Float64:
    """Nearly orthonormal columns, in 2**-bits, brought closer by one Newton-Schulz step."""
    gram = shifted(vectors.T @ vectors, -bits)
    correction = 3.0 * 2.0**bits * np.eye(len(gram)) - gram
    return shifted(vectors @ correction, -bits - 1)


def is_orthonormal(vectors: Float64, bits: int) -> bool:
    """Whether no product of two columns, in 2**-bits, is off by more than 1/16: `refined` does the rest."""
    gram = shifted(vectors.T @ vectors, -bits)
    return bool(np.abs(gram - 2.0**bits * np.eye(len(gram))).max() <= 2.0 ** (bits - 4))
