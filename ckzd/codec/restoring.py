"""What a decoder makes of decoded integers: the functions that both directions call, so that they cannot drift apart.

The encoder calls them to know what a restore will yield; the decoder calls them to restore.

# R = rows, C = columns of a tensor seen as a matrix
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ckzd.checkpoint import STORED_AS, RawArray, TensorSpec
from ckzd.codec import scales as moments
from ckzd.codec.arrays import ContextLevels, Float64, Plane, Trend
from ckzd.codec.dtypes import SMALLEST, SMALLEST_NORMAL, from_float64, is_finite, to_float64
from ckzd.codec.entropy.context import Guide
from ckzd.codec.records.index import Steps
from ckzd.codec.records.layout import Triple, layer_before, plane_shape
from ckzd.codec.records.reconstruction import ArrayFile, Reconstruction, ReconstructionWriter
from ckzd.codec.scales import Scales
from ckzd.codec.transform import quantize
from ckzd.codec.transform.adaptive_basis import FINE_BITS, Basis, Coded, Frame, learned_frames
from ckzd.codec.transform.factors import Factors
from ckzd.codec.transform.quantize import KmeansCode, ScalarCode

# Guides: what a plane's contexts see of other planes


def levels_for_context(levels: Plane) -> ContextLevels:
    """What later planes see of these levels."""
    return np.clip(levels, -127, 127).astype(np.int8)


def weight_guide(tensor: TensorSpec, reference: Reconstruction | None) -> Guide:
    """The reference's residual at the same place, and one layer earlier."""
    if reference is None:
        return Guide()
    shape = plane_shape(tensor.shape)
    before = layer_before(tensor.path)
    return Guide(_levels(reference, tensor.path, shape), _levels(reference, before, shape) if before else None)


def moment_guide(weight: TensorSpec, kept: ArrayFile | Reconstruction) -> Guide:
    """The weight's own levels guide its first moment's."""
    return Guide(_levels(kept, weight.path, plane_shape(weight.shape)))


def first_guide(weight: TensorSpec, kept: ArrayFile | Reconstruction, scales: Scales) -> Guide:
    """The same for one that is coded by a codebook."""
    return replace(moment_guide(weight, kept), second=moments.half_octaves(scales))


def second_guide(first: Plane, scales: Scales) -> Guide:
    """The levels (R, C) of the first moment guide the second's, which its scales foretell."""
    return Guide(levels_for_context(first), second=moments.half_octaves(scales))


def _levels(arrays: Reconstruction | ArrayFile, path: tuple[str, ...], shape: tuple[int, int]) -> ContextLevels | None:
    found = arrays.get(path, "levels")
    return found.astype(np.int8) if found is not None and found.shape == shape else None


# Values


def itemsize_of(tensor: TensorSpec) -> int:
    """Bytes an element; 1 for an opaque dtype."""
    return STORED_AS[tensor.dtype].itemsize if tensor.dtype in STORED_AS else 1


def reference_values(tensor: TensorSpec, reference: Reconstruction | None) -> RawArray | None:
    """The reference's stored values of this tensor, if it has them in the same dtype and shape."""
    found = reference.get(tensor.path, "weights") if reference is not None else None
    if found is None or found.shape != tensor.shape or found.dtype != STORED_AS.get(tensor.dtype):
        return None
    return found


def finite_reference(tensor: TensorSpec, reference: Reconstruction | None) -> RawArray | None:
    """The same unless one of them is an infinity or a NaN: no residual can be taken against that."""
    found = reference_values(tensor, reference)
    return found if found is not None and is_finite(found, tensor.dtype) else None


def finite_or_zero(stored: RawArray, dtype: str) -> Float64:
    """Values to take a delta against: one that is not finite counts as 0, so that it does not spread."""
    values = to_float64(stored, dtype)
    return np.where(np.isfinite(values), values, 0.0)


def add_residual(before: RawArray, residual: Float64, dtype: str) -> RawArray:
    """Reference + residual in float64, rounded once."""
    return from_float64(finite_or_zero(before, dtype) + residual.reshape(before.shape), dtype)


def restore_scalar(before: RawArray, code: ScalarCode, scales: Scales, step: float, dtype: str) -> RawArray:
    """A weight from its Fisher-weighted scalar residual."""
    weighted = quantize.dequantize_scalar(code, step)
    return add_residual(before, quantize.weigher_of(scales).unweigh(weighted), dtype)


def restore_whole(levels: Plane, scales: Scales, step: float, dtype: str) -> RawArray:
    """A weight (R, C) from levels of its own: there was no reference."""
    return from_float64(quantize.weigher_of(scales).unweigh(levels.astype(np.float64) * step), dtype)


_TREND_UNITS = 32  # of a step
_TREND = struct.Struct("<h")  # what a first moment that follows it stores: a code of how much


def restore_framed(
    before: RawArray, code: ScalarCode, frame: Frame, scales: Scales, *, step: float, dtype: str
) -> "Kept":
    """A weight from its residual's coefficients; its frame is still to be `learned`."""
    fixed = frame.fixed(quantize.dequantize_scalar(code, 1.0))
    weighted = frame.residual(fixed)
    values = add_residual(before, quantize.weigher_of(scales).unweigh(weighted * step), dtype)
    return Kept(values, code.levels, trend=_trend_of(weighted), coded=Coded(frame, fixed))


def restore_factored(
    before: RawArray, factors: Factors, frame: Frame, scales: Scales, *, step: float, dtype: str
) -> "Kept":
    """A weight from its residual's factors. Dependents see it as if it had been coded in its frame."""
    fixed = factors.fixed()
    weighted = np.ldexp(fixed, -FINE_BITS)
    values = add_residual(before, quantize.weigher_of(scales).unweigh(weighted * step), dtype)
    turned = frame.turned(fixed)
    levels = np.clip(np.rint(np.ldexp(turned, -FINE_BITS) * frame.gains), -127, 127).astype(np.int16)
    return Kept(values, levels, trend=_trend_of(weighted), coded=Coded(frame, turned))


def _trend_of(weighted: Float64) -> Trend:
    return np.clip(np.rint(weighted * _TREND_UNITS), -127, 127).astype(np.int8)


def trend_bytes(times: float) -> bytes:
    """How much of the trend, to the nearest eighth of an octave."""
    return _TREND.pack(*moments.code_of(np.array([times])).tolist())


def restore_trend(data: bytes, trend: Trend, scales: Scales, dtype: str) -> RawArray:
    """A first moment (R, C) that moves its weight as the weight moved: against it; 0 where the second moment is.

    ValueError or struct.error for bytes that `trend_bytes` does not write.
    """
    (code,) = _TREND.unpack(data)
    if abs(code) > moments.MAX_CODE:
        raise ValueError(f"a trend of {code} eighths of an octave")
    times = moments.value_of(np.array(code, np.int16))
    against = times * quantize.weigher_of(scales).weigh(trend.astype(np.float64))
    return from_float64(np.where(moments.product_of(scales) > 0, 0.0 - against, 0.0), dtype)


def trend_kept(weight: TensorSpec, kept: ArrayFile | Reconstruction) -> Trend | None:
    """What a weight that has a frame moved since its reference."""
    found = kept.get(weight.path, "trend")
    return found.astype(np.int8) if found is not None and found.shape == plane_shape(weight.shape) else None


def framed_moment_step(steps: Steps, triple: Triple, scales: Scales) -> float:
    """Of Adam's first moments one for all; a lone momentum has a unit of its own, so that no layer's is too small."""
    if triple.second is not None:
        return steps.framed_moment_step
    return steps.framed_momentum_step * moments.typical_root(scales)


def restore_framed_moment(code: ScalarCode, frame: Frame, scales: Scales, step: float, dtype: str) -> RawArray:
    """A first moment or lone momentum (R, C) from coefficients in its weight's frame."""
    fixed = frame.fixed(quantize.dequantize_scalar(code, 1.0))
    return from_float64(quantize.weigher_of(scales).weigh(frame.residual(fixed) * step), dtype)


def restore_second(code: KmeansCode | None, scales: Scales, dtype: str) -> RawArray:
    """The rank-1 fill (R, C), with codebook values where a second moment was kept."""
    filled = moments.fill(scales, dtype)
    if code is None:
        return filled
    kept = np.maximum(quantize.dequantize_kmeans(code), SMALLEST_NORMAL[dtype])  # also where it was 0 but the first not
    return np.where(code.levels != 0, from_float64(kept, dtype), filled)


def restore_relative(levels: Plane, scales: Scales, dtype: str) -> RawArray:
    """A second moment (R, C) from its levels relative to the fill."""
    return from_float64(moments.restore_second(levels, filled(scales, dtype), SMALLEST[dtype]), dtype)


def filled(scales: Scales, dtype: str) -> Float64:
    """The rank-1 second moment (R, C) as it is restored in its stored dtype: what first moments are in units of."""
    return to_float64(moments.fill(scales, dtype), dtype)


def restore_first(levels: Plane, second: Float64, step: float, dtype: str) -> RawArray:
    """A first moment (R, C) from its levels and the filled second moment (R, C)."""
    return from_float64(moments.restore_first(levels, second, step), dtype)


def restore_momentum(levels: Plane, scales: Scales, step: float, dtype: str) -> RawArray:
    """A momentum (R, C) that has no second moment beside it, from its levels and its own scales."""
    return from_float64(moments.restore_first(levels, moments.product_of(scales), step), dtype)


# Frames

MIN_SIDE = 16  # of a matrix that has a frame: directions of fewer numbers say little


def has_frame(tensor: TensorSpec) -> bool:
    """Whether both sides are long enough for directions to be learned."""
    return min(plane_shape(tensor.shape)) >= MIN_SIDE


def frame_kept(tensor: TensorSpec, kept: Reconstruction | ArrayFile | None) -> Frame | None:
    """The frame that a reconstruction has of a tensor of this shape, if it has one."""
    if kept is None:
        return None
    found = [kept.get(tensor.path, name) for name in ("left", "left_energy", "right", "right_energy")]
    left, left_energy, right, right_energy = found
    if left is None or left_energy is None or right is None or right_energy is None:
        return None
    if (left_energy.size, right_energy.size) != plane_shape(tensor.shape):
        return None
    return Frame(Basis.checked(left, left_energy), Basis.checked(right, right_energy))


# Reconstructions


@dataclass(frozen=True, slots=True)
class Kept:
    """What dependents need of one tensor: its values in their stored dtype, and of a weight with levels the rest."""

    values: RawArray
    levels: Plane | None = None
    frame: Frame | None = None
    trend: Trend | None = None
    coded: Coded | None = None  # what a frame is yet to be learned from


def learned(found: Sequence[Kept | None]) -> list[Kept | None]:
    """The same, with the frames that their coefficients lead to: of many tensors together they cost less."""
    frames = iter(learned_frames([kept.coded for kept in found if kept and kept.coded]))
    return [replace(kept, frame=next(frames), coded=None) if kept and kept.coded else kept for kept in found]


def put_kept(into: ArrayFile, tensor: TensorSpec, kept: Kept, scales: Scales | None) -> None:
    """Store it in the canonical order of fields."""
    assert kept.coded is None, "its frame has learned"
    values, levels = kept.values, kept.levels
    into.put(tensor.path, "weights", values.reshape(tensor.shape))
    if levels is not None:
        into.put(tensor.path, "levels", levels_for_context(levels))
    if scales is not None:
        into.put(tensor.path, "rows", scales.rows)
        into.put(tensor.path, "columns", scales.columns)
    if kept.frame is not None:
        for side, basis in (("left", kept.frame.left), ("right", kept.frame.right)):
            into.put(tensor.path, side, basis.vectors)
            into.put(tensor.path, f"{side}_energy", basis.codes)
    if kept.trend is not None:
        into.put(tensor.path, "trend", kept.trend)


def seal(writer: ReconstructionWriter, lstm: bytes, skeleton: bytes, layout: bytes) -> str:
    """Add the blobs that dependents need and close the reconstruction; returns its id."""
    for field, data in (("lstm", lstm), ("skeleton", skeleton), ("layout", layout)):
        writer.put_blob(field, data)
    return writer.finish()
