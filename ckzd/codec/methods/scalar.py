"""Scalar: a weight's Fisher-weighted residual, element by element; for what has no adaptive basis.

Stream: u8[3], where levels of magnitude 1 to 3 restore inside their step; the plane.

# R = rows, C = columns of a tensor seen as a matrix
"""

from functools import partial

import numpy as np

from ckzd.codec.arrays import MAX_LEVEL
from ckzd.codec.kernels.plain import CENTRED_LEVELS
from ckzd.codec.methods.method import Candidate, Coded, KnownWeight, Quantizer, WeightMethod, WeightToCode
from ckzd.codec.presets import Scheme
from ckzd.codec.records.index import Method
from ckzd.codec.records.reference_tensors import ReferenceTensor
from ckzd.codec.transform.adaptive_basis import has_basis
from ckzd.codec.transform.quantize import ScalarCode, dequantize_scalar, quantize_scalar


class Scalar(WeightMethod):
    """Uniform steps with a dead zone."""

    name = Method.SCALAR
    schemes = frozenset({Scheme.UNIFORM, Scheme.PLAIN})

    def quantizer(self, weight: WeightToCode) -> Quantizer | None:
        """For a weight that is too narrow for a basis, as vectors are; without bases for all."""
        if weight.before is None or (weight.in_basis and has_basis(weight.known.shape)):
            return None

        def at(step: float) -> Candidate | None:
            code = quantize_scalar(weight.weighted, step, weight.dead_zone)
            if np.abs(code.levels).max() >= MAX_LEVEL:  # it jumped further than levels reach
                return None
            coded = Coded(code.centres, code.levels)
            return Candidate(lambda: coded, partial(self.restored, coded, weight.known, step))

        return at

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:  # noqa: ARG002  # of any shape
        """The centres."""
        return CENTRED_LEVELS

    def restored(self, coded: Coded, known: KnownWeight, step: float) -> ReferenceTensor:
        """Reference + residual."""
        assert coded.levels is not None, "it has a plane"
        weighted = dequantize_scalar(ScalarCode(coded.levels, coded.head), 1.0)
        return ReferenceTensor(known.moved(weighted, step), coded.levels, known.stored_basis)
