"""How much an archive may lose, what it loses, and what is done where that is more.

A weight's quantization step is the checkpoint's times 2 to the minus its step exponent, which is as large as it takes.
A weight that no exponent brings into the budget is coded exactly, and so is a second moment that would change the
optimizer's steps: every budget can be met.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import fsum
from typing import Self

import numpy as np

from ckzd.codec.arrays import Numbers
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain_elementwise import Moments, Updates

EXACT = 16  # a step exponent: so many more bits an element cost as much as the element itself
FINER = 4  # the exponent that vectors without moments begin with
TRIES = 3  # of all weights with halved steps, before what is still too much is coded exactly
_LEFT_OF_HALVED = 0.4  # of a weight's error when its step is halved: 1/4 for fine steps, more for coarse ones
_MARGIN = 0.99  # far more than sums in another order differ by
_LONGER, _FAR_LONGER = 1.25, 3.0  # of restored updates
_UPDATE = 1.0  # of a gradient that always points one way; shorter ones have room up to it
MIN_EPS = 2.0**-149  # beside a second moment of 0 an eps of 0 is none
_MEDIAN_OF = 1 << 14  # elements
DEFAULT_EPS, DEFAULT_BETAS = 1e-8, (0.9, 0.999)  # Adam's, where the checkpoint does not say them


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one archive may lose, as the encoder sees it; it spends bits until that holds. Errors are squared.

    Fisher-weighted errors say what training feels. What it does not feel evaluation may (a bias before a batch norm),
    so weights have bounds of their own scale too.
    """

    max_weight_error: float  # Fisher-weighted: error of all lossy weights over the energy of all of them
    max_worst_tensor_error: float  # Fisher-weighted: error of any one weight over its own energy
    max_matrix_error: float = math.inf  # unweighted: the same
    max_vector_error: float = math.inf  # unweighted: the same of biases, norms and the like
    max_lost_progress: float = math.inf  # first-order loss of a weight over its progress since the reference
    max_second_moment_ratio: float = 2.0  # factor, up or down, of the sum of a second moment
    max_update_length_ratio: float = 1.25  # factor, up or down, of how long updates by a given first moment are

    def stated(self) -> dict[str, float]:
        """The bounds that there are, by name."""
        return {name: bound for name, bound in asdict(self).items() if math.isfinite(bound)}

    def excess(self, loss: "Loss") -> float:
        """How many times more a weight loses than it may; 1 or less: it is within the budget."""
        own = self.max_vector_error if loss.is_vector else self.max_matrix_error
        over = [_over(loss.relative, self.max_worst_tensor_error), _over(loss.own_relative, own)]
        over.append(_over(loss.lost_progress, self.max_lost_progress))  # no square, but it falls as fast as one
        return max(over)

    def keeps_pace(self, pace: "Pace") -> bool:
        """Whether a restored second moment leaves the optimizer as it was."""
        total, length = pace.worst
        return total <= self.max_second_moment_ratio and length <= self.max_update_length_ratio


def _over(found: float, limit: float) -> float:
    if found <= 0:
        return 0.0
    return found / limit if limit else math.inf


def _factor(ratio: float) -> float:
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Pace:
    """What a restored second moment does to its optimizer."""

    total: float  # its sum over the original's
    median: float  # of (sqrt(original) + eps) / (sqrt(restored) + eps): how long an element's update is
    norm: float  # of all updates by the original first moment, likewise

    @classmethod
    def of(cls, moments: Moments, restored: Numbers, before: Updates, *, eps: float) -> Self:
        """The pace that a restored second moment (R, C) leaves, given the original moments and their updates; eps > 0.

        Elements that are 0 in both second moments say nothing. The median is that of some elements of a large tensor.
        """
        after = elementwise.updates(Moments(moments.first, restored), eps)
        if before.zeros.any() and after.zeros.any():
            unused = (moments.second == 0) & (restored == 0)
            first = np.where(unused, moments.first.dtype.type(0), moments.first)
            before, after = (elementwise.updates(Moments(first, each), eps) for each in (moments.second, restored))
        total, again = fsum(before.second), fsum(after.second)
        length, later = (math.sqrt(fsum(each.length)) for each in (before, after))
        return cls(
            total=again / total if total else (math.inf if again else 1.0),
            median=_median(moments.second, restored, eps),
            norm=later / length if length else 1.0,
        )

    @classmethod
    def unchanged(cls) -> Self:
        """The pace of a second moment that is exact."""
        return cls(1.0, 1.0, 1.0)

    @property
    def worst(self) -> tuple[float, float]:
        """Factors of 1 or more: of the sum, and of lengths."""
        return _factor(self.total), max(_factor(self.median), _factor(self.norm))


def filled_up(beta2: float, step: int | None) -> float:
    """How much of exp_avg_sq, which starts at 0, has filled up; a step of None or 0 is not known and counts as late."""
    return 1 - beta2**step if step else 1.0


def _median(original: Numbers, restored: Numbers, eps: float) -> float:
    """Of how much longer an element's update is with a restored second moment (R, C), where one of both is not 0."""
    some = slice(None, None, -(-original.size // _MEDIAN_OF))
    ours, theirs = (second.ravel()[some].astype(np.float64) for second in (original, restored))
    used = (ours > 0) | (theirs > 0)
    ratios = (np.sqrt(ours[used]) + eps) / (np.sqrt(theirs[used]) + eps)
    return float(np.median(ratios)) if ratios.size else 1.0


def is_overshooting(before: Updates, after: Updates) -> bool:
    """Whether restored updates are longer than the original ones, together or any one of them far longer than all."""
    longest = max(float(before.longest.max(initial=0.0)), _UPDATE)
    together = fsum(after.length) > _LONGER**2 * fsum(before.length)
    return together or float(after.longest.max(initial=0.0)) > _FAR_LONGER * longest


def is_falling_short(before: Updates, after: Updates) -> bool:
    """Whether restored updates are far shorter than the original ones, together."""
    return _LONGER**2 * fsum(after.length) < fsum(before.length)


@dataclass(frozen=True, slots=True)
class Loss:
    """What one weight loses, Fisher-weighted and squared."""

    error: float
    energy: float  # its own
    elements: int
    first_order: float  # of the training loss, in its own units: see `methods/momentum_scale.py`
    own_error: float = 0.0  # unweighted
    own_energy: float = 0.0
    lost_progress: float = 0.0  # share of its first-order progress since the reference, where nothing regains it
    is_vector: bool = False

    @property
    def relative(self) -> float:
        """Error over weight; 0 for a weight that is 0."""
        return self.error / self.energy if self.energy else 0.0

    @property
    def own_relative(self) -> float:
        """Unweighted error over unweighted weight; 0 for a weight that is 0."""
        return self.own_error / self.own_energy if self.own_energy else 0.0

    def exponents_for(self, over: float, step: float) -> int:
        """What to add to the step exponent, at the least, where the error is so many times too large with `step`."""
        if not math.isfinite(over) or not self.energy:
            return EXACT
        near = math.log2(over) / 2
        far = math.log2(step / math.sqrt(self.energy / self.elements)) - 1  # a step far above all values loses them all
        return min(EXACT, max(1, math.ceil(near), math.floor(far)))


def too_much(losses: Mapping[int, Loss], allowed: float, *, exactly: bool) -> list[int]:
    """Weights to code with half the step, or `exactly`, to bring the sum of all errors under `allowed`.

    None if it is there; else those that lose most an element, down to a little under it.
    """
    numbers = sorted(losses, key=lambda number: losses[number].error / losses[number].elements)
    errors = [losses[number].error for number in numbers]
    if sum(errors) <= allowed:
        return []
    as_it_is = list(accumulate(errors, initial=0.0))
    left = list(accumulate(reversed(errors), initial=0.0))[::-1]
    share = 0.0 if exactly else _LEFT_OF_HALVED
    enough = [k for k in range(len(errors)) if as_it_is[k] + share * left[k] <= _MARGIN * allowed]
    return numbers[max(enough, default=0) :]
