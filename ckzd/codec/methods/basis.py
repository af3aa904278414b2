"""Basis: coefficients in the weight's adaptive basis; of its residual, of its first moment, or of its lone momentum.

A weight is coded in the basis that its reference has, its moments in the one that this archive's residual has led to.
Stream: u8[3], where levels of magnitude 1 to 3 restore inside their step; the plane.

# R = rows, C = columns of a tensor seen as a matrix
"""

from functools import partial

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec.dtypes import from_float64
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain import CENTRED_LEVELS
from ckzd.codec.methods.method import (
    Candidate,
    Coded,
    KnownMoments,
    KnownWeight,
    MomentMethod,
    MomentsToCode,
    Quantizer,
    WeightMethod,
    WeightToCode,
)
from ckzd.codec.presets import Scheme
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Role
from ckzd.codec.records.reference_tensors import ReferenceTensor
from ckzd.codec.scales import typical_root
from ckzd.codec.transform.adaptive_basis import Observed, has_basis, in_fine_units
from ckzd.codec.transform.quantize import ScalarCode, dequantize_scalar, quantize_scalar
from ckzd.codec.transform.rate_distortion import estimated


class BasisWeight(WeightMethod):
    """The residual's coefficients, each with a gain by the variance of its two directions."""

    name = Method.FRAMED

    def quantizer(self, weight: WeightToCode) -> Quantizer | None:
        """For a residual of a matrix."""
        if weight.before is None or not has_basis(weight.known.shape):
            return None
        basis = weight.known.basis

        def at(step: float) -> Candidate | None:
            fixed = in_fine_units(weight.weighted, step)
            if fixed is None:
                return None
            gained = basis.gained(fixed, weight.known.algebra)
            code = quantize_scalar(gained, 1.0, weight.dead_zone)
            if not basis.reaches(code.levels):
                return None
            lost = (gained - dequantize_scalar(code, 1.0)) / basis.gains
            coded, cost = Coded(code.centres, code.levels), estimated(lost, code.levels).cost
            return Candidate(lambda: coded, partial(self.restored, coded, weight.known, step), cost)

        return at

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:  # noqa: ARG002  # of any shape
        """The centres."""
        return CENTRED_LEVELS

    def restored(self, coded: Coded, known: KnownWeight, step: float) -> ReferenceTensor:
        """Reference + residual; the basis is yet to learn from it."""
        assert coded.levels is not None, "it has a plane"
        fixed = known.basis.fixed(dequantize_scalar(ScalarCode(coded.levels, coded.head), 1.0))
        weighted = known.basis.residual(fixed, known.algebra)
        trend, observed = elementwise.trend(weighted), Observed(known.basis, fixed)
        return ReferenceTensor(known.moved(weighted, step), coded.levels, trend=trend, observed=observed)


class BasisMoment(MomentMethod):
    """A first moment's or lone momentum's coefficients."""

    name = Method.FRAMED
    roles = frozenset({Role.FIRST, Role.MOMENTUM})
    schemes = frozenset({Scheme.UNIFORM, Scheme.KMEANS})  # codebooks are for two moments; steps of one are 0 there

    def coded(self, moments: MomentsToCode) -> Coded | None:
        """For one whose weight has a basis."""
        step = _step(moments.known)
        if not step or (basis := moments.known.basis) is None:
            return None
        fixed = in_fine_units(moments.known.weighting.unweigh(moments.first.astype(np.float64)), step)
        if fixed is None:
            return None
        code = quantize_scalar(basis.gained(fixed, moments.known.algebra), 1.0, moments.dead_zone)
        return Coded(code.centres, code.levels) if basis.reaches(code.levels) else None

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:  # noqa: ARG002  # of any shape
        """The centres."""
        return CENTRED_LEVELS

    def restored(self, coded: Coded, known: KnownMoments) -> RawArray:
        """Turned back; ValueError if the weight has no basis."""
        assert coded.levels is not None, "it has a plane"
        if (basis := known.basis) is None:
            raise ValueError(f"tensor {known.first.path}: its weight has no adaptive basis")
        fixed = basis.fixed(dequantize_scalar(ScalarCode(coded.levels, coded.head), 1.0))
        weighted = basis.residual(fixed, known.algebra) * _step(known)
        return from_float64(known.weighting.weigh(weighted), known.first.dtype)


def _step(known: KnownMoments) -> float:
    """One for all of Adam's first moments; a lone momentum has a unit of its own, so that no layer's is too small."""
    if known.second is not None:
        return known.steps.framed_moment_step
    return known.steps.framed_momentum_step * typical_root(known.scales)
