"""Factored: a weight's residual as a sum of few outer products, where these cost less than its coefficients.

A basis knows nothing at the first delta of a chain, and where a few directions carry nearly all, two thin matrices are
smaller. What the residual was is told to the basis all the same, so that it learns.
Stream: see `transform/factors.py`.

# R = rows, C = columns of a tensor seen as a matrix
"""

from functools import partial

import numpy as np

from ckzd.codec.entropy.context import SideInformation
from ckzd.codec.kernels import elementwise
from ckzd.codec.methods.method import Candidate, Coded, KnownWeight, Quantizer, WeightMethod, WeightToCode
from ckzd.codec.records.index import Method
from ckzd.codec.records.reference_tensors import ReferenceTensor
from ckzd.codec.transform.adaptive_basis import FINE_BITS, Observed, has_basis
from ckzd.codec.transform.factors import Factors, Head
from ckzd.codec.transform.lowrank import fitted


class Factored(WeightMethod):
    """Integer factors of the Fisher-weighted residual."""

    name = Method.FACTORED

    def quantizer(self, weight: WeightToCode) -> Quantizer | None:
        """For a residual of a matrix."""
        if weight.before is None or not has_basis(weight.known.shape):
            return None

        def at(step: float) -> Candidate | None:
            if (found := fitted(weight.weighted / step)) is None:
                return None
            factors, estimate = found
            restored = partial(_restored, factors, weight.known, step)
            return Candidate(lambda: Coded(factors.head(), factors.plane), restored, estimate.cost)

        return at

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:
        """Codes and low bits."""
        return Head.of(data, shape).nbytes

    def form(self, head: bytes, shape: tuple[int, int]) -> tuple[int, int]:
        """Left above right, a column a component."""
        return sum(shape), Head.of(head, shape).codes.size

    def side_information(self, head: bytes, known: KnownWeight) -> SideInformation:
        """How large each component's integers are likely to be."""
        return Head.of(head, known.shape).side_information(known.shape)

    def restored(self, coded: Coded, known: KnownWeight, step: float) -> ReferenceTensor:
        """Reference + residual. Dependents see it as if it had been coded in its basis, which is yet to learn."""
        assert coded.levels is not None, "it has a plane"
        rows, _ = known.shape
        return _restored(Head.of(coded.head, known.shape).joined(coded.levels, rows), known, step)


def _restored(factors: Factors, known: KnownWeight, step: float) -> ReferenceTensor:
    fixed = factors.fixed
    weighted = fixed * 2.0**-FINE_BITS
    turned = known.basis.coefficients(fixed, known.algebra)
    levels = np.clip(np.rint(turned * 2.0**-FINE_BITS * known.basis.gains), -127, 127).astype(np.int16)
    trend, observed = elementwise.trend(weighted), Observed(known.basis, turned)
    return ReferenceTensor(known.moved(weighted, step), levels, trend=trend, observed=observed)
