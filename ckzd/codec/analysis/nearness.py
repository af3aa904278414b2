"""How far a checkpoint is from what it may be a delta against: read from a few of its tensors, decides no bits."""

import math
from typing import Protocol

import numpy as np

from ckzd.checkpoint import STORED_AS, Checkpoint, RawArray, TensorSpec
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.dtypes import to_float64
from ckzd.codec.records.reconstruction import Key

NEAR = 0.5  # of the weights' energy: two initializations are 2 apart, two checkpoints of a run rarely a tenth
_TENSORS = 8  # that are read: what is another model differs everywhere
_SHARED = 0.5  # of the elements, at least: less of a model is another one


class Before(Protocol):
    """What a checkpoint may be a delta against: a reconstruction, or what one would be made of."""

    def form(self, key: Key, field: str) -> tuple[np.dtype[np.generic], tuple[int, ...]] | None:
        """Dtype and shape of a tensor's values, without reading them."""
        ...

    def get(self, key: Key, field: str) -> RawArray | None:
        """The values, or None."""
        ...


def nearness(checkpoint: Checkpoint, before: Before) -> float:
    """Energy of the difference over that of the checkpoint's weights: 0 is the same, 2 or so another initialization.

    Infinite where they share too few names and shapes, or one of them in another shape. NaN where there is nothing to
    compare, or not all of it is finite.
    """
    inputs = Inputs(checkpoint, None)
    tensors = [inputs.tensor(number) for number in inputs.reference_tensors]
    alike = [number for number in inputs.reference_tensors if has_form(inputs.tensor(number), before)]
    shared = sum(inputs.tensor(number).elements for number in alike)
    if changed_shape(checkpoint, before) or shared < _SHARED * sum(tensor.elements for tensor in tensors):
        return math.inf
    matrices = [number for number in alike if len(inputs.tensor(number).shape) > 1] or alike
    energies = [_energies(inputs, before, number) for number in matrices[:: -(-len(matrices) // _TENSORS) or 1]]
    difference, own = (sum(of_each) for of_each in zip((0.0, 0.0), *energies, strict=True))
    return difference / own if own else math.nan


def has_form(tensor: TensorSpec, before: Before) -> bool:
    """Whether the reference holds this tensor in the same shape and dtype."""
    return before.form(tensor.path, "weights") == (STORED_AS.get(tensor.dtype), tensor.shape)


def changed_shape(checkpoint: Checkpoint, before: Before) -> str | None:
    """The path of a tensor that the reference holds in another shape or dtype."""
    for tensor in checkpoint.tensors:
        if before.form(tensor.path, "weights") is not None and not has_form(tensor, before):
            return "/".join(tensor.path)
    return None


def _energies(inputs: Inputs, before: Before, number: int) -> tuple[float, float]:
    """Of the difference, and of the weight itself."""
    tensor = inputs.tensor(number)
    values = before.get(tensor.path, "weights")
    assert values is not None, "they have one form"
    now = to_float64(inputs.stored(number), tensor.dtype)
    with np.errstate(invalid="ignore", over="ignore"):  # an infinity less an infinity
        return float(np.sum((now - to_float64(values, tensor.dtype)) ** 2)), float(np.sum(now**2))
