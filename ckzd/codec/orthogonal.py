"""Orthonormal bases in exact arithmetic: matrices of integers in float64, whose sums no order of summation can change.

Every product below adds integers whose partial sums stay under 2**53, so that any BLAS on any number of threads gives
the same bits; everything else is elementwise IEEE arithmetic with an explicit rounding. A matrix "in 2**-k" holds
integers that count units of 2**-k.

# K = matrices that are worked on together, N = directions, at most `MAX_DIRECTIONS`
"""

import numpy as np

from ckzd.codec.arrays import Float64, Mask

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
    """The rows (K, N, N), of full rank, made orthonormal from the first to the last (Gram-Schmidt, each panel twice).

    In 2**-18. Of rows of lower rank some may come out alike: `refined` tells.
    """
    done = np.zeros_like(rows)
    for start in range(0, rows.shape[1], _PANEL):
        panel, before = _scaled(rows[:, start : start + _PANEL]), done[:, :start]
        for _ in range(2):
            shares = shifted(panel @ before.swapaxes(1, 2), -UNIT_BITS)
            panel = _gram_schmidt(_scaled(panel - shifted(shares @ before, -UNIT_BITS)), start)
        done[:, start : start + _PANEL] = panel
    return done


def _scaled(rows: Float64) -> Float64:
    """Each row times a power of two, so that its largest magnitude is a number of 22 bits."""
    _, exponents = np.frexp(np.abs(rows).max(-1, keepdims=True))
    scaled = np.ldexp(rows, _WORK_BITS - exponents)
    return np.asarray(np.rint(scaled, out=scaled), np.float64)


def _gram_schmidt(panel: Float64, start: int) -> Float64:
    """The panel's rows, orthonormal among themselves, in 2**-18. One that vanishes becomes a unit vector."""
    scratch = np.empty_like(panel)  # `shifted` would go over these numbers twice as often
    for number in range(panel.shape[1]):
        row, rest = panel[:, number], panel[:, number + 1 :]
        energy = (row * row).sum(-1, keepdims=True)
        if not energy.all():
            row[energy[:, 0] == 0, start + number] = 1.0
            energy = np.maximum(energy, 1.0)
        row *= 2.0**UNIT_BITS / np.sqrt(energy)
        np.rint(row, out=row)
        shares = 2.0**-UNIT_BITS * shifted(rest @ row[..., None], -UNIT_BITS)
        along = np.multiply(shares, row[:, None], out=scratch[:, number + 1 :])
        rest -= np.rint(along, out=along)
    return panel


def refined(vectors: Float64, bits: int) -> tuple[Float64, Mask]:
    """Nearly orthonormal columns (K, N, N), in 2**-bits, brought closer by one Newton-Schulz step.

    And for which of the K that is enough: no product of two columns is off by more than 1/16.
    """
    unit = np.eye(vectors.shape[1])
    off = shifted(vectors.swapaxes(1, 2) @ vectors, -bits) - 2.0**bits * unit
    near = np.abs(off).max((1, 2)) <= 2.0 ** (bits - 4)
    return shifted(vectors @ (2.0 ** (bits + 1) * unit - off), -bits - 1), near
