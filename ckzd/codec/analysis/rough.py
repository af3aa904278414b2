"""Steps of weights that an optimizer moves as far in all directions, as Muon does: relative to their own size alone.

How large their gradients are tells nothing of what an error costs. A checkpoint has one step, and a weight that times
2 to the minus its exponent: so the step is the coarsest that any wants, and all others begin with an exponent.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ckzd.codec.records.index import QuantizationSteps

_FRACTIONS = 16  # of an octave that are tried: powers of two reach no step exactly


@dataclass(frozen=True, slots=True)
class Wanted:
    """The step that some weights would have by themselves, and of how many elements they are."""

    step: float
    elements: int


def coarsened(
    steps: QuantizationSteps, others: int, wanted: Mapping[int, Wanted]
) -> tuple[QuantizationSteps, dict[int, int], int]:
    """Steps, the exponents of rough tensors, by number, and that of `others`, which had the steps as they were.

    `others` are their elements. At a base, where there is no step, what is wanted is relative to that of whole weights.
    """
    base = steps.step or steps.whole_step
    if not (base and wanted):
        return steps, {}, 0
    all_wanted = [Wanted(base, others), *wanted.values()]
    fractions = [base * 2.0 ** (n / _FRACTIONS) for n in range(_FRACTIONS)]
    fraction = min(fractions, key=lambda step: sum(one.elements * _lost_bits(step, one) for one in all_wanted))
    coarsest = fraction * 2.0 ** max(_exponent(one.step, fraction) for one in all_wanted)
    times = coarsest / base
    found = replace(steps, step=times * steps.step, whole_step=times * steps.whole_step)
    exponents = {number: _exponent(coarsest, one.step) for number, one in wanted.items()}
    return found, exponents, _exponent(coarsest, base)


def _exponent(step: float, wanted: float) -> int:
    """Halvings that make a step no coarser than what is wanted; below 0 of a finer one."""
    return math.ceil(math.log2(step / wanted) - 1e-9)


def _lost_bits(step: float, one: Wanted) -> float:
    return _exponent(step, one.step) - math.log2(step / one.step)
