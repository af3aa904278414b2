"""What every coding method has: the roles that it may code, its stream's parts, and both directions of it.

A stream is a head and, of most methods, the plane of its levels. The encoder makes both of values; what they restore
to is said by one function, `restored`, that encoder and decoder call, so that the two cannot drift apart.

# R = rows, C = columns of a tensor seen as a matrix
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, ClassVar

from ckzd.checkpoint import RawArray, TensorSpec
from ckzd.codec.algebra.exact import Algebra
from ckzd.codec.algebra.on_cores import CORES
from ckzd.codec.arrays import Float64, Numbers, Plane, Trend
from ckzd.codec.dtypes import from_numbers, is_single, to_numbers
from ckzd.codec.entropy.context import EXACT, FIRST, SECOND, WEIGHTS, SideInformation
from ckzd.codec.kernels import elementwise
from ckzd.codec.presets import Scheme
from ckzd.codec.records.index import Method, QuantizationSteps
from ckzd.codec.records.layout import Role, plane_shape
from ckzd.codec.records.reconstruction import Arrays, Reconstruction
from ckzd.codec.records.reference_tensors import (
    ReferenceTensor,
    basis_of,
    moment_side_information,
    reference_values,
    trend_of,
    weight_side_information,
)
from ckzd.codec.scales import FisherWeighting, Scales, fill_of, fisher_weighting
from ckzd.codec.transform.adaptive_basis import AdaptiveBasis

_KIND_OF_ROLE = {Role.WEIGHT: WEIGHTS, Role.FIRST: FIRST, Role.MOMENTUM: FIRST, Role.SECOND: SECOND}
_KIND_OF_METHOD = {Method.ULPS: EXACT, Method.STATE_MEAN: FIRST, Method.STATE_VARIANCE: SECOND}  # of any role


def plane_kind(name: Method, role: Role) -> int:
    """The kind of the plane of a tensor that is coded so."""
    return _KIND_OF_METHOD[name] if name in _KIND_OF_METHOD else _KIND_OF_ROLE[role]


class Streams(Enum):
    """What an index names of a tensor that is coded so."""

    NONE = "none"
    ONE = "one"
    OTHER = "another tensor's"


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor as its method codes it: the head of its stream, and the levels of the plane behind it."""

    head: bytes = b""
    levels: Plane | None = None


class CodingMethod:
    """What the index and the decoder's stream reader ask of every method."""

    name: ClassVar[Method]
    roles: ClassVar[frozenset[Role]]
    streams: ClassVar[Streams] = Streams.ONE

    def may_stand_beside(self, first: Method) -> bool:  # noqa: ARG002  # most do not care
        """Whether a second moment may be coded by this method where the first is coded by `first`."""
        return True


class PlaneMethod(CodingMethod):
    """A method whose stream is a head and a plane, unless it says else."""

    has_plane: ClassVar[bool] = True

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:  # noqa: ARG002  # most have none
        """How much of a stream stands before its plane; ValueError or IndexError if it cannot be one."""
        return 0

    def form(self, head: bytes, shape: tuple[int, int]) -> tuple[int, int]:  # noqa: ARG002  # most code every element
        """Rows and columns of the plane."""
        return shape


class LossyMethod(PlaneMethod):
    """A method whose tensors do not come back bit for bit."""

    schemes: ClassVar[frozenset[Scheme]] = frozenset({Scheme.UNIFORM})  # of presets that choose it


# Weights


@dataclass(frozen=True)
class KnownWeight:
    """What both directions know of a weight before its stream."""

    tensor: TensorSpec
    reference: Reconstruction | None
    scales: Scales
    algebra: Algebra[Any] = CORES  # where its basis is worked with
    predicted: RawArray | None = None  # its linear prediction, if it has one, in its own shape

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return plane_shape(self.tensor.shape)

    @property
    def weighting(self) -> FisherWeighting:
        """What its residual is multiplied with before it is quantized."""
        return fisher_weighting(self.scales)

    @cached_property
    def before(self) -> RawArray:
        """What its residual is against: its prediction, or the reference's values; ValueError if there is neither."""
        if self.predicted is not None:
            return self.predicted
        found = reference_values(self.tensor, self.reference)
        if found is None:
            raise ValueError(f"tensor {self.tensor.path}: the reference does not have it")
        return found

    def moved(self, weighted: Float64, step: float) -> RawArray:
        """The reference's values, moved by a Fisher-weighted residual (R, C) in steps and rounded once, (R, C)."""
        dtype = self.tensor.dtype
        before = to_numbers(self.before, dtype).reshape(self.shape)
        moved = elementwise.restored(before, weighted, step, self.weighting, single=is_single(dtype))
        return from_numbers(moved, dtype)

    @cached_property
    def stored_basis(self) -> AdaptiveBasis | None:
        """The adaptive basis that the reference has of it."""
        return basis_of(self.tensor, self.reference)

    @cached_property
    def basis(self) -> AdaptiveBasis:
        """The reference's, or one that has seen nothing yet."""
        return self.stored_basis or AdaptiveBasis.unknown(*self.shape)


@dataclass(frozen=True)
class WeightToCode:
    """A weight as the encoder has it."""

    known: KnownWeight
    values: Numbers  # (R, C)
    before: Numbers | None  # (R, C): the reference's, if a residual can be taken against them
    second: Callable[[], Float64]  # (R, C): its second moment, or the rank-1 variance of its momentum
    dead_zone: float
    in_basis: bool  # if it is a matrix: the preset is one of bases

    @cached_property
    def weighted(self) -> Float64:
        """The Fisher-weighted residual (R, C); where there is no reference the weight itself.

        A residual is 0 where the weight is, whatever that was before, for its mask says so.
        """
        return elementwise.weighed(self.values, self.before, self.known.weighting)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to code a weight, and what it costs; the stream and what a decoder makes of it if it is the cheapest."""

    coded: Callable[[], Coded]
    restored: Callable[[], ReferenceTensor]
    cost: float = 0.0  # distortion + lambda * rate, in squared steps; 0 where no other method competes


Quantizer = Callable[[float], Candidate | None]  # with a step; None if levels do not reach so far


class WeightMethod(LossyMethod, ABC):
    """A way to code weights."""

    roles = frozenset({Role.WEIGHT})

    def step(self, steps: QuantizationSteps) -> float | None:
        """The checkpoint's step for this method's levels, which weights may halve; None if it knows no step."""
        return steps.step

    def step_of(self, steps: QuantizationSteps, exponent: int) -> float:
        """What the levels of a weight with this step exponent are worth; 0 if the method knows no step."""
        return (self.step(steps) or 0.0) * 2.0**-exponent

    @abstractmethod
    def quantizer(self, weight: WeightToCode) -> Quantizer | None:
        """How the encoder codes it, whatever the step; None if this is not its case."""

    @abstractmethod
    def restored(self, coded: Coded, known: KnownWeight, step: float) -> ReferenceTensor:
        """What a decoder makes of it, but for exact zeros; ValueError for what no encoder writes."""

    def side_information(self, head: bytes, known: KnownWeight) -> SideInformation:  # noqa: ARG002  # most see the reference
        """What the contexts of its plane see."""
        return weight_side_information(known.tensor, known.reference)


# Moments


@dataclass(frozen=True)
class KnownMoments:
    """What both directions know of a weight's moments once the weight is decoded."""

    weight: TensorSpec
    first: TensorSpec
    second: TensorSpec | None
    scales: Scales
    steps: QuantizationSteps
    reconstruction: Arrays  # this archive's own
    first_levels: Callable[[], Plane]  # for a second moment whose contexts see them
    algebra: Algebra[Any] = CORES  # where the weight's basis is worked with

    @property
    def weighting(self) -> FisherWeighting:
        """What the weight's residual was multiplied with."""
        return fisher_weighting(self.scales)

    @property
    def basis(self) -> AdaptiveBasis | None:
        """The weight's adaptive basis after this archive, if it has one."""
        return basis_of(self.weight, self.reconstruction)

    @property
    def trend(self) -> Trend | None:
        """What the weight moved since its reference (R, C), if that is known."""
        return trend_of(self.weight, self.reconstruction)

    @cached_property
    def fill(self) -> RawArray:
        """The rank-1 second moment (R, C) in its stored dtype."""
        assert self.second is not None, "there is a second moment"
        return fill_of(self.scales, self.second.dtype)

    @cached_property
    def filled(self) -> Numbers:
        """The rank-1 second moment (R, C) as kernels take it: what first moments are in units of."""
        assert self.second is not None, "there is a second moment"
        return to_numbers(self.fill, self.second.dtype)

    @property
    def restored_weight(self) -> RawArray:
        """The weight as decoded; ValueError if it is not there."""
        found = self.reconstruction.get(self.weight.path, "weights")
        if found is None:
            raise ValueError(f"tensor {self.weight.path}: it is not decoded yet")
        return found


@dataclass(frozen=True)
class MomentsToCode:
    """A weight's moments as the encoder has them."""

    known: KnownMoments
    first: Numbers  # (R, C)
    second: Numbers | None  # (R, C)
    weight_levels: Plane | None  # (R, C): of the weight, if it has some
    dead_zone: float
    is_young: bool
    rate: float | None  # how far the optimizer moves a weight for an update of 1 that fades


class MomentMethod(LossyMethod, ABC):
    """A way to code moments of one role."""

    @abstractmethod
    def coded(self, moments: MomentsToCode) -> Coded | None:
        """The encoder's direction; None if this is not its case."""

    @abstractmethod
    def restored(self, coded: Coded, known: KnownMoments) -> RawArray:
        """What a decoder makes of it (R, C), but for exact zeros; ValueError for what no encoder writes."""

    def side_information(self, known: KnownMoments) -> SideInformation:
        """What the contexts of its plane see."""
        return moment_side_information(known.weight, known.reconstruction)
