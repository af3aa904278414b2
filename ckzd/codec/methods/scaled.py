"""Scaled: a moment relative to what scales tell of its size.

A first moment is in units of its own update, a second one in half octaves of its fill.
Stream: the plane alone.

# R = rows, C = columns of a tensor seen as a matrix
"""

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec.arrays import Float64, Numbers, Plane
from ckzd.codec.dtypes import SMALLEST, from_float64, from_numbers, is_single
from ckzd.codec.entropy.context import SideInformation
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.methods.method import Coded, KnownMoments, MomentMethod, MomentsToCode
from ckzd.codec.presets import Scheme
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Role
from ckzd.codec.scales import product_of, value_of

_MOST_HALF_OCTAVES = 400  # of a second moment from its fill
DEAD_ZONE = 0.6  # of a first moment in units of its step: below, it becomes 0


class ScaledFirst(MomentMethod):
    """exp_avg / sqrt(filled exp_avg_sq) in steps."""

    name = Method.SCALED
    roles = frozenset({Role.FIRST})
    schemes = frozenset({Scheme.UNIFORM, Scheme.PLAIN})

    def coded(self, moments: MomentsToCode) -> Coded:
        """Levels of the update; all are 0 if the step is 0, as where first moments are dropped."""
        if not (step := moments.known.steps.moment_step):
            return Coded(levels=np.zeros(moments.first.shape, np.int16))
        update = Moments(moments.first, moments.known.filled)
        return Coded(levels=elementwise.quantize_update(update, step, DEAD_ZONE))

    def restored(self, coded: Coded, known: KnownMoments) -> RawArray:
        """Levels times the root of the fill."""
        assert coded.levels is not None, "it has a plane"
        return _restored(coded.levels, known.filled, known.steps.moment_step, known.first.dtype)


class ScaledMomentum(MomentMethod):
    """A momentum without a second moment, in units of the root of its own rank-1 variance."""

    name = Method.SCALED
    roles = frozenset({Role.MOMENTUM})
    schemes = frozenset({Scheme.UNIFORM, Scheme.PLAIN, Scheme.KMEANS})  # codebooks are for two moments

    def coded(self, moments: MomentsToCode) -> Coded:
        """Levels of the momentum over the root of its rank-1 variance."""
        known = moments.known
        update = Moments(moments.first, product_of(known.scales))
        return Coded(levels=elementwise.quantize_update(update, known.steps.momentum_step, DEAD_ZONE))

    def restored(self, coded: Coded, known: KnownMoments) -> RawArray:
        """Levels times the root of the variance."""
        assert coded.levels is not None, "it has a plane"
        return _restored(coded.levels, product_of(known.scales), known.steps.momentum_step, known.first.dtype)


class ScaledSecond(MomentMethod):
    """A second moment that the fill does not meet."""

    name = Method.SCALED
    roles = frozenset({Role.SECOND})

    def coded(self, moments: MomentsToCode) -> Coded:
        """Half octaves over the fill."""
        assert moments.second is not None, "it is of the second moment"
        return Coded(levels=quantize_second(moments.second.astype(np.float64), moments.known.filled.astype(np.float64)))

    def restored(self, coded: Coded, known: KnownMoments) -> RawArray:
        """The fill times a power of the root of 2."""
        assert known.second is not None, "it is of the second moment"
        assert coded.levels is not None, "it has a plane"
        dtype = known.second.dtype
        return from_float64(restore_second(coded.levels, known.filled.astype(np.float64), SMALLEST[dtype]), dtype)

    def side_information(self, known: KnownMoments) -> SideInformation:  # noqa: ARG002  # levels are what nothing foretells
        """Nothing: levels are what scales did not foretell."""
        return SideInformation()


def _restored(levels: Plane, second: Numbers, step: float, dtype: str) -> RawArray:
    return from_numbers(elementwise.restored_update(levels, second, step, single=is_single(dtype)), dtype)


def quantize_second(second: Float64, filled: Float64) -> Plane:
    """Half octaves of a second moment (R, C) over the fill; 0 where the fill is 0, as little as can be where it is."""
    used = (filled > 0) & (second > 0)
    octaves = np.log2(np.where(used, second, 1.0) / np.where(used, filled, 1.0))
    levels = np.where(used, np.rint(2 * octaves), np.where(filled > 0, -_MOST_HALF_OCTAVES, 0))
    return np.clip(levels, -_MOST_HALF_OCTAVES, _MOST_HALF_OCTAVES).astype(np.int16)


def restore_second(levels: Plane, filled: Float64, smallest: float) -> Float64:
    """The inverse of `quantize_second` up to its loss (R, C), and at least `smallest` where the fill is not 0.

    ValueError for a level that it does not write.
    """
    if np.abs(levels.astype(np.int32)).max(initial=0) > _MOST_HALF_OCTAVES:
        raise ValueError(f"a second moment more than {_MOST_HALF_OCTAVES} half octaves from its fill")
    return np.where(filled > 0, np.maximum(filled * value_of(4 * levels), smallest), 0.0)
