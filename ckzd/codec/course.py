"""How long a first moment is that follows its weight: as long as it takes to make up for what the weights lost.

exp_avg is the averaged gradient, so the loss of a restored checkpoint is higher, to first order, by the sum of exp_avg
times (restored - original weight). It is progress since the reference that was too fine for the step; KL, which is of
second order, does not see it. A first moment m moves its weight by lr * beta1 / (1 - beta1) * m / sqrt(exp_avg_sq)
before it has faded. Along the trend (what the weight moved since the reference) that lowers the loss by the sum of
exp_avg times this movement, and the length for which both sums are equal resumes where the original would be.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ckzd.checkpoint import ParamGroup
from ckzd.codec.arrays import Float64

_UNKNOWN = 0.5  # of the original's length, where an optimizer does not say its learning rate


@dataclass(frozen=True, slots=True)
class Course:
    """A first moment that may follow its weight. "As long" is of update = exp_avg / sqrt(exp_avg_sq)."""

    unit: float  # times the trend: as long as the original
    along: float  # length of the original along the trend, of its own: their correlation
    reach: (
        float | None
    )  # None: unknown. How much lower the loss will be by a first moment along the trend as long as the original

    @classmethod
    def of(cls, first: Float64, energy: Float64, moved: Float64, rate: float | None) -> "Course | None":
        """From exp_avg, exp_avg_sq > 0 and the trend of the weight, all of one shape; None if they do not agree at all.

        `rate` is how far the optimizer moves a weight, in all, for a first moment as large as its second moment's root.
        """
        root = np.sqrt(energy)
        update = first / root
        against = -float((update * moved).sum())
        if not against > 0:
            return None
        length, way = math.sqrt((update**2).sum()), math.sqrt((moved**2).sum())
        reach = None if rate is None else -rate * length / way * float((first * moved).sum())
        return cls(length / way, against / (length * way), reach)

    def length(self, share: float) -> float:
        """Of the original's: what it had along the trend, and this share more; but no longer than it was."""
        return _UNKNOWN if self.reach is None else min(1.0, self.along + share)

    def regained(self, share: float) -> float:
        """What this share makes up for, in units of the loss."""
        return 0.0 if self.reach is None else (self.length(share) - self.along) * self.reach


def share_for(lost: float, courses: Collection[Course]) -> float:
    """The share of their lengths that makes up for `lost`, in units of the loss."""
    reach = sum(course.reach for course in courses if course.reach is not None)
    return max(0.0, lost) / reach if reach > 0 else 0.0


def rate_of(group: ParamGroup | None, step: int | None) -> float | None:
    """What Adam multiplies exp_avg / sqrt(exp_avg_sq) with, over all steps until it has faded; None if unknown."""
    if group is None or group.betas is None or group.learning_rate is None:
        return None
    beta1, beta2 = group.betas
    if beta1 >= 1:
        return None
    filled = 1.0 if step is None else 1 - beta2**step  # exp_avg_sq starts at 0, and Adam allows for it
    return group.learning_rate * beta1 / (1 - beta1) * math.sqrt(filled)
