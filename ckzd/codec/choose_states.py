"""How an optimizer's other states are coded: as the rank-1 product of their scales if that leaves its pace, else finer.

# R = rows, C = columns of a tensor seen as a matrix
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.survey import Survey
from ckzd.codec.budget import DEFAULT_EPS, MIN_EPS, Pace
from ckzd.codec.dtypes import to_numbers
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.methods.method import Coded
from ckzd.codec.methods.registry import state_method
from ckzd.codec.methods.state import KnownState
from ckzd.codec.parallel import in_order
from ckzd.codec.presets import Preset
from ckzd.codec.records.index import Method

_FACTOR_STEP = 0.9  # to the rms of a Kronecker factor or its eigenvectors, relative to row and column


@dataclass(frozen=True, slots=True)
class ChosenState:
    """One state as it is coded."""

    number: int
    method: Method
    coded: Coded
    pace: Pace | None = None  # of a variance


@dataclass(frozen=True, slots=True)
class StateChooser:
    """Codes states one by one."""

    inputs: Inputs
    survey: Survey
    preset: Preset

    def known(self, number: int) -> KnownState:
        """What a decoder knows of one before its stream."""
        weight = self.survey.states[number].weight
        expected = None if weight is None else self.survey.scales.get(weight)
        return KnownState(self.inputs.tensor(number), expected)

    def chosen(self) -> Iterator[ChosenState]:
        """All of them, in order."""
        numbers: Iterable[int] = sorted(self.survey.states)
        return in_order(self._chosen, numbers, lambda number: self.inputs.tensor(number).elements)

    def _chosen(self, number: int) -> ChosenState:
        known = self.known(number)
        stored = self.inputs.stored(number).reshape(known.shape)
        if self.survey.states[number].is_mean:
            if self.survey.is_young and min(known.shape) == 1:
                return ChosenState(number, Method.EXACT, Coded())
            mean = state_method(Method.STATE_MEAN)
            fine = self.preset.fresh_moment_step if self.survey.is_young else math.inf
            step = _FACTOR_STEP if self.survey.states[number].is_factor else min(self.preset.momentum_step, fine)
            return ChosenState(number, mean.name, mean.coded(stored, known, step))
        for name in (Method.STATE_FILL, Method.STATE_VARIANCE):
            method = state_method(name)
            coded = method.coded(stored, known, 0.0)
            pace = self._pace(number, stored, method.restored(coded, known))
            if self.preset.budget.keeps_pace(pace):
                return ChosenState(number, name, coded, pace)
        return ChosenState(number, Method.EXACT, Coded(), Pace.unchanged())

    def _pace(self, number: int, stored: RawArray, restored: RawArray) -> Pace:
        """How the optimizer's updates change if every gradient is as large as its variance says."""
        dtype, group = self.inputs.tensor(number).dtype, self.inputs.group_of(number)
        eps = max(group.eps if group is not None and group.eps is not None else DEFAULT_EPS, MIN_EPS)
        variance = to_numbers(stored, dtype)
        original = Moments(np.sqrt(variance), variance)
        return Pace.of(original, to_numbers(restored, dtype), elementwise.updates(original, eps), eps=eps)
