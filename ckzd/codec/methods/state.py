"""States: what an optimizer keeps of a weight beside its moments: AMSGrad's maximum, RMSprop's or Adagrad's variance.

Each has scales of its own, coded as differences to those of its weight. A variance restores as the product of its
scales, or as that times levels of half an octave; a mean of gradients as levels times the root of the product.
Stream: u32 length of the scales, the scales (a plane of differences, rows before columns); of a mean f32, the step;
the plane of levels, if there is one.

# R = rows, C = columns of a tensor seen as a matrix
"""

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ckzd.checkpoint import RawArray, TensorSpec
from ckzd.codec.dtypes import SMALLEST, from_float64, from_numbers, is_single, to_numbers
from ckzd.codec.entropy.context import WEIGHTS, SideInformation
from ckzd.codec.entropy.models import Models
from ckzd.codec.entropy.planes import PlaneToCode, decode_plane, encode_plane
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.methods.method import Coded, LossyMethod
from ckzd.codec.methods.scaled import DEAD_ZONE, quantize_second, restore_second
from ckzd.codec.records.index import MAX_STEP, Method
from ckzd.codec.records.layout import Role, plane_shape
from ckzd.codec.scales import REACH, Scales, checked_scales, fill_of, product_of, scales_of, scales_of_momentum

_LENGTH, _STEP = struct.Struct("<I"), struct.Struct("<f")


@dataclass(frozen=True, slots=True)
class KnownState:
    """What both directions know of a state before its stream."""

    tensor: TensorSpec
    expected: Scales | None  # those of its weight

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return plane_shape(self.tensor.shape)


class StateMethod(LossyMethod, ABC):
    """A way to code a state by scales of its own."""

    roles = frozenset({Role.STATE})

    @abstractmethod
    def coded(self, stored: RawArray, known: KnownState, step: float) -> Coded:
        """The encoder's direction, of finite values (R, C); `step` is relative to the rms of all."""

    @abstractmethod
    def restored(self, coded: Coded, known: KnownState) -> RawArray:
        """What a decoder makes of it (R, C); ValueError or struct.error for what no encoder writes."""


class StateFill(StateMethod):
    """A variance as the product of its scales."""

    name = Method.STATE_FILL
    has_plane = False

    def coded(self, stored: RawArray, known: KnownState, step: float) -> Coded:  # noqa: ARG002  # it has none
        """Scales alone."""
        return Coded(_head(_scales_of_variance(stored, known), known))

    def restored(self, coded: Coded, known: KnownState) -> RawArray:
        """The fill."""
        scales, rest = _scales(coded.head, known)
        if rest:
            raise ValueError(f"{len(rest)} bytes behind the scales of a state")
        return fill_of(scales, known.tensor.dtype)


class StateVariance(StateMethod):
    """A variance that the product of its scales does not meet."""

    name = Method.STATE_VARIANCE

    def coded(self, stored: RawArray, known: KnownState, step: float) -> Coded:  # noqa: ARG002  # it is half an octave
        """Half octaves over the fill."""
        scales, dtype = _scales_of_variance(stored, known), known.tensor.dtype
        filled = to_numbers(fill_of(scales, dtype), dtype).astype(np.float64)
        return Coded(_head(scales, known), quantize_second(to_numbers(stored, dtype).astype(np.float64), filled))

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:  # noqa: ARG002  # of any shape
        """The scales."""
        return _scales_end(data)

    def restored(self, coded: Coded, known: KnownState) -> RawArray:
        """The fill times a power of the root of 2."""
        assert coded.levels is not None, "it has a plane"
        scales, dtype = _scales(coded.head, known)[0], known.tensor.dtype
        filled = to_numbers(fill_of(scales, dtype), dtype).astype(np.float64)
        return from_float64(restore_second(coded.levels, filled, SMALLEST[dtype]), dtype)


class StateMean(StateMethod):
    """A mean of gradients or updates, in steps of the root of its own rank-1 variance."""

    name = Method.STATE_MEAN

    def coded(self, stored: RawArray, known: KnownState, step: float) -> Coded:
        """Levels over the root of the variance."""
        values = to_numbers(stored, known.tensor.dtype)
        scales = scales_of_momentum(values.astype(np.float64))
        update = Moments(values, product_of(scales))
        # product_of is exact and in every element what the decoder divides by; the step is rounded once, here
        own = float(np.float32(step * _rms(update)))
        levels = elementwise.quantize_update(update, own, DEAD_ZONE) if own else np.zeros(known.shape, np.int16)
        return Coded(_head(scales, known) + _STEP.pack(own), levels)

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:  # noqa: ARG002  # of any shape
        """The scales and the step."""
        return _scales_end(data) + _STEP.size

    def restored(self, coded: Coded, known: KnownState) -> RawArray:
        """Levels times the root of the variance."""
        assert coded.levels is not None, "it has a plane"
        (scales, rest), dtype = _scales(coded.head, known), known.tensor.dtype
        (step,) = _STEP.unpack(rest)
        if not 0 <= step <= MAX_STEP:
            raise ValueError(f"a state with a step of {step}")
        single = is_single(dtype)
        return from_numbers(elementwise.restored_update(coded.levels, product_of(scales), step, single=single), dtype)


def _rms(update: Moments) -> float:
    root = np.sqrt(update.second)
    used = root > 0
    relative = np.where(used, update.first, 0.0) / np.where(used, root, 1.0)
    return float(np.sqrt((relative**2).sum() / max(int(used.sum()), 1)))


def _scales_of_variance(stored: RawArray, known: KnownState) -> Scales:
    values = to_numbers(stored, known.tensor.dtype)
    return scales_of(Moments(np.zeros_like(values), values), known.tensor.dtype)


def _head(scales: Scales, known: KnownState) -> bytes:
    expected = _expected(known)
    differences = np.concatenate([scales.rows - expected.rows, scales.columns - expected.columns])  # wraps, and back
    data, _ = encode_plane(PlaneToCode(0, WEIGHTS, differences[:, None], SideInformation()), Models())
    return _LENGTH.pack(len(data)) + data


def _scales_end(data: bytes) -> int:
    (length,) = _LENGTH.unpack_from(data)
    return _LENGTH.size + int(length)


def _scales(head: bytes, known: KnownState) -> tuple[Scales, bytes]:
    """The scales, and what of a head stands behind them."""
    end, (rows, columns) = _scales_end(head), known.shape
    if end > len(head):
        raise ValueError(f"scales of {end} bytes in a stream of {len(head)}")
    form, expected = (rows + columns, 1), _expected(known)
    plane = decode_plane(head[_LENGTH.size : end], form, WEIGHTS, SideInformation(), Models())[:, 0]
    return checked_scales(plane[:rows] + expected.rows, plane[rows:] + expected.columns, REACH), head[end:]


def _expected(known: KnownState) -> Scales:
    rows, columns = known.shape
    return known.expected or Scales(np.zeros(rows, np.int16), np.zeros(columns, np.int16))
