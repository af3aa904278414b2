"""Ulps: a 16-bit float that hardly changes, exactly, by how many steps of its dtype each element moved.

What a restore of bf16 or fp16 weights must get right is mostly that nothing happened. Where something did follows from
what a decoder knows: how fine the reference's ulps are there (an update of one size is many of a small number and none
of a large one), what moved in the archives before (a rounded number that moved is near the edge to where it came from),
and which rows and columns move at all.

Stream: u8, the exponent of numbers that move as their rows and columns do; the plane of differences in ulps.

# R = rows, C = columns of a tensor seen as a matrix
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ckzd.checkpoint import STORED_AS, RawArray, TensorSpec
from ckzd.codec.arrays import ContextLevels, HalfOctaves, Plane, Trend
from ckzd.codec.dtypes import is_finite, to_numbers
from ckzd.codec.entropy.context import SideInformation
from ckzd.codec.kernels import elementwise
from ckzd.codec.lossless.exact import from_ordered, ordered
from ckzd.codec.methods.method import Coded, PlaneMethod
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Role, plane_shape
from ckzd.codec.records.reconstruction import Reconstruction
from ckzd.codec.records.reference_tensors import ReferenceTensor, basis_of, reference_levels, reference_values
from ckzd.codec.scales import Scales, fisher_weighting

Bits = npt.NDArray[np.uint16]

_FRACTION_BITS = {"bfloat16": 7, "float16": 10}  # of the dtypes that are coded so
_UNSIGNED = np.uint16(0x7FFF)
_SAMPLED = 1 << 14  # elements
_A_FACTOR_OF_TWO = 4  # classes of energy that an exponent is worth: they are a quarter of an octave apart
_NEVER = -64  # of a number that is 0: what is pruned stays so
_JUST_MOVED = 3  # the trace of a change, one less in each archive that follows: contexts tell 3, 1 to 2 and 0 apart
_FADED = np.array([np.sign(n) * max(min(abs(n), _JUST_MOVED) - 1, 0) for n in [*range(128), *range(-128, 0)]], np.int8)
_BELOW = 2  # exponents below their mean is the centre


@dataclass(frozen=True)
class KnownBits:
    """What both directions know of a tensor before its stream."""

    tensor: TensorSpec
    reference: Reconstruction | None
    scales: Scales | None = None  # of a weight with moments
    step: float = 0.0  # of all weights' levels

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return plane_shape(self.tensor.shape)

    @property
    def before(self) -> Bits:
        """The reference's bits (R, C); ValueError if it has none, or the dtype has more."""
        found = reference_values(self.tensor, self.reference)
        if found is None or self.tensor.dtype not in _FRACTION_BITS:
            raise ValueError(f"tensor {self.tensor.path}: the reference does not have it in 16 bits")
        return found.view(np.uint16).reshape(self.shape)

    @property
    def trace(self) -> ContextLevels | None:
        """What changes left in the reference's contexts, (R, C)."""
        return reference_levels(self.tensor, self.reference)


class Ulps(PlaneMethod):
    """Against the reference's values, exactly."""

    name = Method.ULPS
    roles = frozenset({Role.REFERENCE, Role.WEIGHT})

    def coded(self, stored: RawArray, known: KnownBits) -> Coded | None:
        """The encoder's direction; None for a tensor that the reference does not have in 16 bits."""
        if known.tensor.dtype not in _FRACTION_BITS or reference_values(known.tensor, known.reference) is None:
            return None
        moved = ordered(stored.view(np.uint16).reshape(known.shape)) - ordered(known.before)
        return Coded(bytes([_centre(known)]), moved.view(np.int16))

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:  # noqa: ARG002  # of any shape
        """The exponent."""
        return 1

    def side_information(self, head: bytes, known: KnownBits) -> SideInformation:
        """What the contexts of its plane see; ValueError if the reference does not have it."""
        (centre,) = head
        before = known.before
        return SideInformation(known.trace, second=_fineness(centre, known.tensor.dtype)[before])

    def restored(self, coded: Coded, known: KnownBits) -> ReferenceTensor:
        """What it is, and the trace of what changed."""
        assert coded.levels is not None, "it has a plane"
        bits = from_ordered(ordered(known.before) + coded.levels.view(np.uint16))
        values = bits.view(STORED_AS[known.tensor.dtype]).reshape(known.tensor.shape)
        trace, basis = _trace(coded.levels, known.trace), basis_of(known.tensor, known.reference)
        return ReferenceTensor(values, trace, basis, _trend(values, known))


ULPS = Ulps()


def _exponents(bits: Bits, dtype: str) -> npt.NDArray[np.int16]:
    """As the dtype biases them."""
    exponents: npt.NDArray[np.int16] = ((bits & _UNSIGNED) >> np.uint16(_FRACTION_BITS[dtype])).astype(np.int16)
    return exponents


def _centre(known: KnownBits) -> int:
    """A little below the mean exponent of a sample of what is not 0."""
    every = known.before.ravel()[:: max(1, known.before.size // _SAMPLED)]
    used = _exponents(every[(every & _UNSIGNED) != 0], known.tensor.dtype)
    return max(int(used.sum(dtype=np.int64)) // used.size - _BELOW, 0) if used.size else 0


@lru_cache(64)
def _fineness(centre: int, dtype: str) -> HalfOctaves:
    """How many classes of energy each of the 2**16 patterns of bits is above its row and column, (65536,)."""
    every = np.arange(1 << 16, dtype=np.uint16)
    finer = _A_FACTOR_OF_TWO * (np.int16(centre) - _exponents(every, dtype))
    classes: HalfOctaves = np.clip(finer, -64, 63).astype(np.int8)
    classes[(every & _UNSIGNED) == 0] = _NEVER
    return classes


def _trend(values: RawArray, known: KnownBits) -> Trend | None:
    """What a weight with moments moved, as if levels said so: its first moment may follow it."""
    before, dtype = known.before.view(values.dtype), known.tensor.dtype
    if known.scales is None or known.step == 0 or not (is_finite(before, dtype) and is_finite(values, dtype)):
        return None
    now, earlier = (to_numbers(each.reshape(known.shape), dtype) for each in (values, before))
    weighed = elementwise.weighed(now, earlier, fisher_weighting(known.scales))
    return elementwise.trend(weighed / known.step)


def _trace(moved: Plane, before: ContextLevels | None) -> ContextLevels:
    """The sign of the last change of each element, times how fresh it is."""
    trace: ContextLevels = np.sign(moved).astype(np.int8)
    trace *= np.int8(_JUST_MOVED)
    if before is not None:
        np.copyto(trace, _FADED[before.view(np.uint8)], where=trace == 0)
    return trace
