"""Rank 1: a second moment as the product of its scales, the fill. It has no stream.

The fill is 0 only where both original moments were 0 throughout the row or column, else at least the smallest number
that its dtype has (before format 6 the smallest normal one, which in float16 is more than most second moments are): a
zero there would make the first resumed steps several times too long.

# R = rows, C = columns of a tensor seen as a matrix
"""

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec.arrays import Float64
from ckzd.codec.dtypes import SMALLEST, SMALLEST_NORMAL, from_float64, to_float64
from ckzd.codec.methods.method import Coded, KnownMoments, MomentMethod, MomentsToCode, Streams
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Role
from ckzd.codec.scales import Scales, product_of


def fill(scales: Scales, dtype: str) -> RawArray:
    """The restored second moment (R, C) in its stored dtype."""
    product, floor = product_of(scales), (SMALLEST_NORMAL if scales.reach is None else SMALLEST)[dtype]
    return from_float64(np.where(product > 0, np.maximum(product, floor), 0.0), dtype)


def fill_of(known: KnownMoments) -> Float64:
    """The fill (R, C) as its stored dtype holds it: what first moments are in units of."""
    assert known.second is not None, "there is a second moment"
    return to_float64(fill(known.scales, known.second.dtype), known.second.dtype)


class Rank1(MomentMethod):
    """The fill."""

    name = Method.FILL
    roles = frozenset({Role.SECOND})
    streams = Streams.NONE
    has_plane = False

    def may_stand_beside(self, first: Method) -> bool:
        """Beside a codebook's first moment a second one has a codebook too, or is coded finer."""
        return first is not Method.KMEANS

    def coded(self, moments: MomentsToCode) -> Coded:  # noqa: ARG002  # scales are known
        """Nothing."""
        return Coded()

    def restored(self, coded: Coded, known: KnownMoments) -> RawArray:  # noqa: ARG002  # scales are known
        """The fill."""
        assert known.second is not None, "it is of the second moment"
        return fill(known.scales, known.second.dtype)
