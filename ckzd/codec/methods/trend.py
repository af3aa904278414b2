"""Trend: a first moment that moves its weight on as the weight moved since its reference.

What a weight moved is the mean of all first moments in between: their noise is averaged, their drift is not.
Stream: i16, how much of the trend, in eighths of an octave.

# R = rows, C = columns of a tensor seen as a matrix
"""

import struct
from dataclasses import dataclass

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec.dtypes import from_numbers, is_single
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.methods.method import Coded, KnownMoments, MomentMethod, MomentsToCode
from ckzd.codec.methods.momentum_scale import MomentumScale
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Role
from ckzd.codec.scales import MAX_SCALE_CODE, code_of, used_by, value_of

_TIMES = struct.Struct("<h")


@dataclass(frozen=True, slots=True)
class Following(Coded):
    """As long as the original, until all weights' losses are known: `scale` says what a shorter one regains."""

    scale: MomentumScale | None = None


def trend_bytes(times: float) -> bytes:
    """How much of the trend, to the nearest eighth of an octave."""
    return _TIMES.pack(*code_of(np.array([times])).tolist())


class FollowTrend(MomentMethod):
    """Two bytes for a moment that is hardly more than noise."""

    name = Method.TREND
    roles = frozenset({Role.FIRST})
    has_plane = False

    def coded(self, moments: MomentsToCode) -> Following | None:
        """For one that is not worth its bits, if trend and moment agree at all."""
        trend = moments.known.trend
        if trend is None or moments.is_young:
            return None
        known = moments.known
        seen = elementwise.along_trend(Moments(moments.first, known.filled), trend, known.weighting)
        scale = MomentumScale.of(seen, moments.rate)
        return Following(trend_bytes(scale.unit), scale=scale) if scale is not None else None

    def restored(self, coded: Coded, known: KnownMoments) -> RawArray:
        """Against what the weight moved; 0 where the second moment is. ValueError or struct.error for other bytes."""
        if (trend := known.trend) is None:
            raise ValueError(f"tensor {known.first.path}: its weight has no trend")
        (code,) = _TIMES.unpack(coded.head)
        if abs(code) > MAX_SCALE_CODE:
            raise ValueError(f"a trend of {code} eighths of an octave")
        times, dtype = float(value_of(np.array(code, np.int16))), known.first.dtype
        used, single = used_by(known.scales), is_single(dtype)
        return from_numbers(elementwise.against_trend(trend, times, known.weighting, used, single=single), dtype)
