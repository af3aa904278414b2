"""Rank 1: a second moment as the product of its scales, the fill. It has no stream."""

from ckzd.checkpoint import RawArray
from ckzd.codec.methods.method import Coded, KnownMoments, MomentMethod, MomentsToCode, Streams
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Role


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
        return known.fill
