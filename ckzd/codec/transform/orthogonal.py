"""Orthonormal bases in exact arithmetic: matrices of integers in float64, whose sums no order of summation can change.

Every product below adds integers whose partial sums stay under 2**53, so that any BLAS on any number of threads gives
the same bits; everything else is elementwise IEEE arithmetic with an explicit rounding. A matrix "in 2**-k" holds
integers that count units of 2**-k.

# K = matrices that are worked on together, N = directions, at most `MAX_DIRECTIONS`
"""

import numpy as np

from ckzd.codec.arrays import Float64

MAX_DIRECTIONS = 256
ROW_BITS = 18  # of the vectors that `orthonormal` returns
_WORK_BITS = 22  # of a row on its way there: 256 squares stay under 2**53
_PANEL = 16  # rows that are made orthogonal one by one; against earlier panels they are projected together


def shifted(values: Float64, bits: int) -> Float64:
    """Integers times 2**bits, rounded to integers, ties to even; zeros positive: BLAS does not say which it gives."""
    product = values * 2.0**bits
    np.rint(product, out=product)
    product += 0.0
    return product


def orthonormal(rows: Float64) -> Float64:
    """The rows (K, N, N), of full rank, made orthonormal from the first to the last (Gram-Schmidt, each panel twice).

    In 2**-18. Of rows of lower rank some may come out alike: `refined` tells.
    """
    done = np.zeros_like(rows)
    for start in range(0, rows.shape[1], _PANEL):
        panel, before = _scaled(rows[:, start : start + _PANEL]), done[:, :start]
        for _ in range(2):
            shares = shifted(panel @ before.swapaxes(1, 2), -ROW_BITS)
            panel = _gram_schmidt(_scaled(panel - shifted(shares @ before, -ROW_BITS)), start)
        done[:, start : start + _PANEL] = panel
    return done


def _scaled(rows: Float64) -> Float64:
    """Each row times a power of two, so that its largest magnitude is a number of 22 bits."""
    _, exponents = np.frexp(np.abs(rows).max(-1, keepdims=True))
    units = np.ldexp(1.0, _WORK_BITS - exponents)  # a product is exact, and a tenth of the time of an ldexp a number
    scaled: Float64 = rows * units
    np.rint(scaled, out=scaled)
    return scaled


def _gram_schmidt(panel: Float64, start: int) -> Float64:
    """The panel's rows, orthonormal among themselves, in 2**-18. One that vanishes becomes a unit vector."""
    rows = panel.swapaxes(0, 1).copy()  # those still to come are one piece of memory
    scratch = np.empty_like(rows)
    for number in range(len(rows)):
        row, rest, along = rows[number], rows[number + 1 :], scratch[number + 1 :]
        square = np.einsum("kn,kn->k", row, row)[:, None]
        if not square.all():
            row[square[:, 0] == 0, start + number] = 1.0
            square = np.maximum(square, 1.0)
        row *= 2.0**ROW_BITS / np.sqrt(square)
        np.rint(row, out=row)
        shares = shifted(rest.swapaxes(0, 1) @ row[..., None], -ROW_BITS)[..., 0]
        np.einsum("kr,kn->rkn", 2.0**-ROW_BITS * shares, row, out=along)  # broadcasting takes twice as long
        rest -= np.rint(along, out=along)
    return rows.swapaxes(0, 1)


def refined(vectors: Float64, bits: int) -> tuple[Float64, bool]:
    """Nearly orthonormal columns (N, N), in 2**-bits, brought closer by one Newton-Schulz step.

    And whether that is enough: no product of two columns is off by more than 1/16.
    """
    unit = np.eye(len(vectors))
    off = shifted(vectors.T @ vectors, -bits) - 2.0**bits * unit
    near = float(np.abs(off).max()) <= 2.0 ** (bits - 4)
    return shifted(vectors @ (2.0 ** (bits + 1) * unit - off), -bits - 1), near
