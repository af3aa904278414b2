"""What weights lose, and what is done where that is more than the preset's budget.

A weight's step is the checkpoint's, halved as often as needed; a weight that no number of halvings brings into the
budget is coded exactly, so that every budget can be met.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

EXACT = 16  # halvings: so many more bits an element cost as much as the element itself
TRIES = 3  # of the whole transform with halved steps, before what is still too much is coded exactly
_LEFT_OF_HALVED = 0.4  # of a weight's error when its step is halved: 1/4 for fine steps, more for coarse ones
_MARGIN = 0.99  # far more than sums in another order differ by


@dataclass(frozen=True, slots=True)
class Loss:
    """What one weight loses, Fisher-weighted and squared."""

    error: float
    energy: float  # its own
    elements: int
    first_order: float  # of the training loss, in its own units: see `course`

    @property
    def relative(self) -> float:
        """Error over weight; 0 for a weight that is 0."""
        return self.error / self.energy if self.energy else 0.0

    def halvings_for(self, limit: float, step: float) -> int:
        """How often `step` should be halved, at the least, to bring the relative error under `limit`."""
        if not limit or not self.energy:
            return EXACT
        near = math.log2(self.relative / limit) / 2
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
    kept = list(accumulate(errors, initial=0.0))
    left = list(accumulate(reversed(errors), initial=0.0))[::-1]
    share = 0.0 if exactly else _LEFT_OF_HALVED
    enough = [k for k in range(len(errors)) if kept[k] + share * left[k] <= _MARGIN * allowed]
    return numbers[max(enough, default=0) :]
