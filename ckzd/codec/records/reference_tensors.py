"""Reference tensors: what a dependent archive is coded against, and what its contexts see of it.

# R = rows, C = columns of a tensor seen as a matrix
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ckzd.checkpoint import STORED_AS, RawArray, TensorSpec
from ckzd.codec.algebra.exact import Algebra
from ckzd.codec.algebra.on_cores import CORES
from ckzd.codec.arrays import ContextLevels, Float64, Plane, Trend
from ckzd.codec.dtypes import from_float64, is_finite, to_float64
from ckzd.codec.entropy.context import SideInformation
from ckzd.codec.records.index import LinearPrediction
from ckzd.codec.records.layout import layer_before, plane_shape
from ckzd.codec.records.reconstruction import (
    ArrayFile,
    Arrays,
    HeldArrays,
    Reconstruction,
    ReconstructionWriter,
)
from ckzd.codec.scales import REACH, Scales, checked_scales
from ckzd.codec.transform.adaptive_basis import SLACK, AdaptiveBasis, BasisSide, Observed, tracked


@dataclass(frozen=True, slots=True)
class ReferenceTensor:
    """What dependents need of one tensor: its values in their stored dtype, and of a weight with levels the rest."""

    values: RawArray
    levels: Plane | ContextLevels | None = None  # (R, C)
    basis: AdaptiveBasis | None = None
    trend: Trend | None = None  # (R, C)
    observed: Observed | None = None  # what the basis is yet to learn from


def with_tracked_bases(
    found: Sequence[ReferenceTensor | None], slack: int | None = SLACK, algebra: Algebra[Any] = CORES
) -> list[ReferenceTensor | None]:
    """Tensors with the bases that their coefficients lead to, None for None: of many together they cost less."""
    bases = iter(tracked([tensor.observed for tensor in found if tensor and tensor.observed], slack, algebra))
    return [
        replace(tensor, basis=next(bases), observed=None) if tensor and tensor.observed else tensor for tensor in found
    ]


def put_reference_tensor(
    into: ArrayFile | HeldArrays, spec: TensorSpec, tensor: ReferenceTensor, scales: Scales | None
) -> None:
    """Store a tensor in the canonical order of fields."""
    assert tensor.observed is None, "its basis has learned"
    into.put(spec.path, "weights", tensor.values.reshape(spec.shape))
    if tensor.levels is not None:
        into.put(spec.path, "levels", levels_for_context(tensor.levels))
    if scales is not None:
        put_scales(into, spec, scales)
    if tensor.basis is not None:
        for name, side in (("left", tensor.basis.left), ("right", tensor.basis.right)):
            into.put(spec.path, name, side.vectors)
            into.put(spec.path, f"{name}_energy", side.codes)
    if tensor.trend is not None:
        into.put(spec.path, "trend", tensor.trend)


def put_scales(into: ArrayFile | HeldArrays, spec: TensorSpec, scales: Scales) -> None:
    """Store a weight's scales."""
    into.put(spec.path, "rows", scales.rows)
    into.put(spec.path, "columns", scales.columns)


def seal(writer: ReconstructionWriter, lstm: bytes, skeleton: bytes, layout: bytes) -> str:
    """Add the blobs that dependents need and close the reconstruction; returns its id."""
    for field, data in (("lstm", lstm), ("skeleton", skeleton), ("layout", layout)):
        writer.put_blob(field, data)
    return writer.finish()


# Values


def reference_values(tensor: TensorSpec, reference: Reconstruction | None) -> RawArray | None:
    """The reference's stored values of this tensor, if it has them in the same dtype and shape."""
    found = reference.get(tensor.path, "weights") if reference is not None else None
    if found is None or found.shape != tensor.shape or found.dtype != STORED_AS.get(tensor.dtype):
        return None
    return found


def finite_reference(tensor: TensorSpec, reference: Reconstruction | None) -> RawArray | None:
    """The reference's values unless one is an infinity or a NaN: no residual can be taken against that."""
    found = reference_values(tensor, reference)
    return found if found is not None and is_finite(found, tensor.dtype) else None


def reference_scales(tensor: TensorSpec, reference: Reconstruction | None) -> Scales | None:
    """The reference's scales of a weight of this shape, if it has some; ValueError if damaged."""
    if reference is None:
        return None
    rows, columns = reference.get(tensor.path, "rows"), reference.get(tensor.path, "columns")
    if rows is None or columns is None or (rows.size, columns.size) != plane_shape(tensor.shape):
        return None
    return checked_scales(rows, columns, REACH)


def add_residual(before: RawArray, residual: Float64, dtype: str) -> RawArray:
    """Reference + residual in float64, rounded once, in the reference's shape.

    A reference that is not finite counts as 0, so that it does not spread.
    """
    values = to_float64(before, dtype)
    return from_float64(np.where(np.isfinite(values), values, 0.0) + residual.reshape(before.shape), dtype)


def predicted_values(
    tensor: TensorSpec, prediction: LinearPrediction, reference: Reconstruction | None, other: TensorSpec, now: RawArray
) -> RawArray:
    """A tensor's linear prediction in its own shape; `now` are the other's values as this archive restores them.

    ValueError where the reference has not what a coefficient is of, or anything is not finite.
    """
    if not is_finite(now, other.dtype):
        raise ValueError(f"tensor {tensor.path}: what it is predicted from is not finite")
    total = prediction.now * to_float64(now, other.dtype).reshape(tensor.shape)
    for coefficient, spec in ((prediction.own, tensor), (prediction.before, other)):
        if coefficient:
            values = finite_reference(spec, reference)
            if values is None:
                raise ValueError(f"tensor {spec.path}: the reference does not have it as finite numbers")
            total = total + coefficient * to_float64(values, spec.dtype).reshape(tensor.shape)
    return from_float64(total, tensor.dtype)


def cast_values(values: RawArray, dtype: str, to: TensorSpec) -> RawArray:
    """A tensor that is another one of `dtype` in its own narrower dtype: every value rounded once."""
    return from_float64(to_float64(values, dtype), to.dtype).reshape(to.shape)


# What contexts and moments see


def levels_for_context(levels: Plane | ContextLevels) -> ContextLevels:
    """What later planes see of these levels."""
    return np.clip(levels, -127, 127).astype(np.int8)


def weight_side_information(tensor: TensorSpec, reference: Reconstruction | None) -> SideInformation:
    """What a weight's contexts see: the reference's residual at the same place, and one layer earlier."""
    if reference is None:
        return SideInformation()
    shape = plane_shape(tensor.shape)
    before = layer_before(tensor.path)
    return SideInformation(
        _levels(reference, tensor.path, shape), _levels(reference, before, shape) if before else None
    )


def reference_levels(tensor: TensorSpec, reference: Reconstruction | None) -> ContextLevels | None:
    """What contexts see of the reference's levels of this tensor (R, C), if it has some."""
    return None if reference is None else _levels(reference, tensor.path, plane_shape(tensor.shape))


def moment_side_information(weight: TensorSpec, reconstruction: Arrays) -> SideInformation:
    """What a first moment's contexts see: the levels of its weight in the same archive."""
    return SideInformation(_levels(reconstruction, weight.path, plane_shape(weight.shape)))


def _levels(arrays: Arrays, path: tuple[str, ...], shape: tuple[int, int]) -> ContextLevels | None:
    found = arrays.get(path, "levels")
    return found.astype(np.int8) if found is not None and found.shape == shape else None


def trend_of(weight: TensorSpec, reconstruction: Arrays) -> Trend | None:
    """What a weight that has an adaptive basis moved since its reference, (R, C)."""
    found = reconstruction.get(weight.path, "trend")
    return found.astype(np.int8) if found is not None and found.shape == plane_shape(weight.shape) else None


def basis_of(tensor: TensorSpec, reconstruction: Arrays | None) -> AdaptiveBasis | None:
    """The adaptive basis that a reconstruction has of a tensor of this shape, if it has one; ValueError if damaged."""
    if reconstruction is None:
        return None
    found = [reconstruction.get(tensor.path, name) for name in ("left", "left_energy", "right", "right_energy")]
    left, left_codes, right, right_codes = found
    if left is None or left_codes is None or right is None or right_codes is None:
        return None
    if (left_codes.size, right_codes.size) != plane_shape(tensor.shape):
        return None
    return AdaptiveBasis(BasisSide.checked(left, left_codes), BasisSide.checked(right, right_codes))
