"""Intra: a weight by levels of its own, without a reference or past one that is no help.

Stream: the low bits of all levels (`wide`), and the plane of the rest.

# R = rows, C = columns of a tensor seen as a matrix
"""

import math
from functools import partial

import numpy as np

from ckzd.codec.arrays import MAX_LEVEL, Plane
from ckzd.codec.dtypes import from_numbers, is_single
from ckzd.codec.kernels import elementwise
from ckzd.codec.methods.method import Candidate, Coded, KnownWeight, Quantizer, WeightMethod, WeightToCode
from ckzd.codec.presets import Scheme
from ckzd.codec.records.index import Method, QuantizationSteps
from ckzd.codec.records.reference_tensors import ReferenceTensor
from ckzd.codec.transform import wide


class Intra(WeightMethod):
    """Fisher-weighted values in steps."""

    name = Method.WHOLE
    schemes = frozenset({Scheme.UNIFORM, Scheme.PLAIN})

    def step(self, steps: QuantizationSteps) -> float:
        """The step of weights without a reference, which is finer than a residual's."""
        return steps.whole_step

    def quantizer(self, weight: WeightToCode) -> Quantizer | None:
        """For a weight that no residual is taken of."""
        if weight.before is not None:
            return None
        weighted = weight.weighted

        def at(step: float) -> Candidate | None:
            exactly = np.rint(weighted / step)
            if np.abs(exactly).max() >= MAX_LEVEL:
                return None
            levels = exactly.astype(np.int16)
            low, high = wide.split(levels)
            return Candidate(lambda: Coded(low, high), partial(_restored, levels, weight.known, step))

        return at

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:
        """The low bits."""
        return wide.packed_bytes(data, math.prod(shape))

    def restored(self, coded: Coded, known: KnownWeight, step: float) -> ReferenceTensor:
        """Values alone: there is no residual that a dependent could learn from."""
        assert coded.levels is not None, "it has a plane"
        return _restored(wide.joined(coded.head, coded.levels), known, step)


def _restored(levels: Plane, known: KnownWeight, step: float) -> ReferenceTensor:
    dtype, weighted = known.tensor.dtype, levels.astype(np.float64)
    values = elementwise.restored(None, weighted, step, known.weighting, single=is_single(dtype))
    return ReferenceTensor(from_numbers(values, dtype))
