"""What both directions of a coding method know of a tensor, made up for one tensor alone."""

import numpy as np

from ckzd.checkpoint import TensorSpec
from ckzd.codec.methods.method import KnownMoments, KnownWeight
from ckzd.codec.records.index import QuantizationSteps
from ckzd.codec.scales import Scales


class Arrays:
    """A reconstruction of one tensor."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self._arrays = arrays

    def get(self, _path, field):
        return self._arrays.get(field)


def spec(scales: Scales, dtype: str, name: str = "w") -> TensorSpec:
    shape = scales.rows.size, scales.columns.size
    return TensorSpec(("model", name), dtype, shape, 0)


def known_weight(before: np.ndarray, scales: Scales, dtype: str) -> KnownWeight:
    return KnownWeight(spec(scales, dtype), Arrays(weights=before), scales)


def known_moments(scales: Scales, dtype: str, *, lone: bool = False, **steps: float) -> KnownMoments:
    weight, first, second = (spec(scales, dtype, name) for name in ("w", "exp_avg", "exp_avg_sq"))
    return KnownMoments(
        weight, first, None if lone else second, scales, QuantizationSteps(**steps), Arrays(), lambda: None
    )
