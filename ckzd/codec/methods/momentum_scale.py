"""How long a first moment is that follows its weight: so long that it makes up for what the weights lost.

exp_avg is the averaged gradient, so the loss of a restored checkpoint is higher, to first order, by the sum of exp_avg
times (restored - original weight). It is progress since the reference that was too fine for the step; KL, which is of
second order, does not see it. A first moment m moves its weight by lr * beta1 / (1 - beta1) * m / sqrt(exp_avg_sq)
before it has faded. Along the trend (what the weight moved since the reference) that takes off the loss what exp_avg
says of this way. The original would have gone a part of it, its length along the trend; what is longer makes up for
the weights. No first moment gets longer than the original, but for the rounding of its code.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from math import fsum

from ckzd.checkpoint import ParamGroup
from ckzd.codec.budget import filled_up
from ckzd.codec.kernels.plain_elementwise import AlongTrend

_UNKNOWN_LENGTH = 0.5  # where no learning rate is known: what three restores had chosen on the ruler
_HALVINGS = 30  # of the interval that a share is looked for in


@dataclass(frozen=True, slots=True)
class MomentumScale:
    """A first moment that may follow its weight. Lengths are of updates, exp_avg / sqrt(exp_avg_sq)."""

    # times the trend: as long as the original
    unit: float
    # length of the original along the trend, of its own: their correlation
    along: float
    # what one along the trend, as long as the original, takes off the loss; None if unknown
    reach: float | None

    @classmethod
    def of(cls, seen: AlongTrend, rate: float | None) -> "MomentumScale | None":
        """The scale of one first moment; None where trend and exp_avg do not agree that the weight moved down the loss.

        `seen` is of its updates, by exp_avg_sq as restored, and of the trend as one; `rate` is how far the optimizer
        moves a weight, in all, for an update of 1.
        """
        agreement, fall = fsum(seen.agreement), fsum(seen.fall)
        if not (agreement > 0 and fall > 0):
            return None
        own, trend = math.sqrt(fsum(seen.of_update)), math.sqrt(fsum(seen.of_trend))
        return cls(own / trend, agreement / (own * trend), None if rate is None else rate * own / trend * fall)

    def length(self, share: float) -> float:
        """Its length over the original's: what that had along the trend, and this share more; 1 at most."""
        return max(self.along, _UNKNOWN_LENGTH) if self.reach is None else min(1.0, self.along + share)

    def regained(self, share: float) -> float:
        """What this share takes off the loss; 0 where that is not known."""
        return 0.0 if self.reach is None else (self.length(share) - self.along) * self.reach


def share_for(lost: float, scales: Collection[MomentumScale]) -> float:
    """The smallest share, of 1 at most, that makes up for `lost`; both are in units of the loss."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if sum(scale.regained(middle) for scale in scales) < lost:
            low = middle
        else:
            high = middle
    return high


def rate_of(group: ParamGroup | None, step: int | None) -> float | None:
    """How far Adam moves a weight for an update of 1 that fades; None if unknown. A step of 0 counts as unknown."""
    if group is None or group.betas is None or group.learning_rate is None:
        return None
    beta1, beta2 = group.betas
    if max(beta1, beta2) >= 1:
        return None
    return group.learning_rate * beta1 / (1 - beta1) * math.sqrt(filled_up(beta2, step))
