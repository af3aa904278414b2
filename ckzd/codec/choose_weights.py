"""How a weight is coded: by the cheapest method that is its case, with a step as fine as the budget asks.

# R = rows, C = columns of a tensor seen as a matrix
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import fsum
from typing import Any

from ckzd.checkpoint import RawArray
from ckzd.codec.algebra.exact import Algebra
from ckzd.codec.algebra.on_cores import CORES
from ckzd.codec.analysis.inputs import Inputs, TripleValues
from ckzd.codec.analysis.survey import Survey
from ckzd.codec.arrays import Float64, Numbers
from ckzd.codec.budget import EXACT, Loss
from ckzd.codec.dtypes import to_numbers
from ckzd.codec.kernels import elementwise
from ckzd.codec.methods.method import Candidate, Coded, KnownWeight, Quantizer, WeightMethod, WeightToCode
from ckzd.codec.methods.registry import weight_methods
from ckzd.codec.methods.zeros import encode_zeros, expected_in_weight, masked_weight
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Triple
from ckzd.codec.records.reference_tensors import ReferenceTensor, reference_values
from ckzd.codec.scales import product_of


@dataclass(frozen=True, slots=True)
class ChosenWeight:
    """A weight as it is coded, what it restores to, and what that loses."""

    method: Method
    coded: Coded
    restored: ReferenceTensor
    loss: Loss
    zeros: bytes | None = None  # its mask, if it has one


@dataclass(frozen=True, slots=True)
class _Cheapest:
    """What costs least with a step, and which step of its method that is (None: it knows no step)."""

    method: Method
    step: float | None
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class WeightChooser:
    """Codes weights one by one. `step_exponents` says how often the step of each is halved; `chosen` adds to it."""

    inputs: Inputs
    survey: Survey
    preset: Preset
    step_exponents: dict[int, int]
    predicted: Callable[[int], RawArray | None]  # a weight's linear prediction, if it has one
    algebra: Algebra[Any] = CORES  # where bases are worked with

    def chosen(self, triple: Triple, values: TripleValues) -> ChosenWeight | None:
        """A weight within the budget; None if it must be coded exactly."""
        number = triple.weight
        if number in self.survey.same or not self.inputs.contents.tensors[number].is_finite:
            return None
        weight = self._to_code(triple, values)
        ways = [(way, at) for way in weight_methods(self.preset.scheme) if (at := way.quantizer(weight)) is not None]
        while self.step_exponents.get(number, 0) < EXACT:
            cheapest = self._cheapest(ways, self.step_exponents.get(number, 0))
            if cheapest is None:
                return None
            found = self._restored(number, values, weight, cheapest)
            over = self.preset.budget.excess(found.loss)
            if over <= 1:
                return found
            more = EXACT if cheapest.step is None else found.loss.exponents_for(over, cheapest.step)
            self.step_exponents[number] = min(EXACT, self.step_exponents.get(number, 0) + more)
        return None

    def known(self, number: int) -> KnownWeight:
        """What a decoder knows of a weight before its stream, but for its prediction."""
        scales = self.survey.scales[number]
        return KnownWeight(self.inputs.tensor(number), self.inputs.reference, scales, self.algebra)

    def _to_code(self, triple: Triple, values: TripleValues) -> WeightToCode:
        known = replace(self.known(triple.weight), predicted=self.predicted(triple.weight))
        return WeightToCode(
            known=known,
            values=values.weight.numbers,
            before=self._before(known, triple.weight),
            second=partial(self._second, triple, values),
            dead_zone=self.preset.dead_zone,
            in_basis=self.preset.scheme is Scheme.UNIFORM,
        )

    def _before(self, known: KnownWeight, number: int) -> Numbers | None:
        """What a residual is taken against (R, C), if there is such."""
        if known.predicted is not None:
            return to_numbers(known.predicted, known.tensor.dtype).reshape(known.shape)
        return None if number in self.survey.intra else self.inputs.numbers_before(number)

    def _second(self, triple: Triple, values: TripleValues) -> Float64:
        if values.second is None:
            return product_of(self.survey.scales[triple.weight])
        return values.second.matrix

    def _cheapest(self, ways: Sequence[tuple[WeightMethod, Quantizer]], exponent: int) -> _Cheapest | None:
        """The way that costs least, the first of several; None if none reaches."""
        found: list[_Cheapest] = []
        for method, at in ways:
            step = method.step(self.survey.steps)
            if step == 0:
                continue  # nothing was learned yet that a step could be relative to
            if step is not None:
                step *= 2.0**-exponent
            candidate = at(step or 0.0)
            if candidate is not None:
                found.append(_Cheapest(method.name, step, candidate))
        return min(found, key=lambda way: way.candidate.cost, default=None)

    def _restored(self, number: int, values: TripleValues, weight: WeightToCode, cheapest: _Cheapest) -> ChosenWeight:
        """What a decoder makes of the cheapest way, with exact zeros if there are any, and what that loses."""
        restored, zeros = cheapest.candidate.restored(), weight.values == 0
        data = None
        if zeros.any():
            before = reference_values(weight.known.tensor, self.inputs.reference)
            data = encode_zeros(zeros, expected_in_weight(before, weight.values.shape))
            restored = replace(restored, values=masked_weight(restored.values, zeros, weight.known.tensor.dtype))
        loss = self._loss(values, weight, restored)
        if number in self.survey.rough:
            loss = replace(loss, lost_progress=0.0)  # it is not what bounds the step of such: DESIGN, Muon
        return ChosenWeight(cheapest.method, cheapest.candidate.coded(), restored, loss, data)

    def _loss(self, triple: TripleValues, weight: WeightToCode, restored: ReferenceTensor) -> Loss:
        """What a weight loses if this is what it restores to."""
        values, dtype = weight.values, weight.known.tensor.dtype
        after = to_numbers(restored.values, dtype).reshape(values.shape)
        before = weight.before if weight.before is not None else values  # without one it made no progress
        found = elementwise.losses(values, after, before, triple.first.numbers, weight.known.weighting)
        first_order, progress = fsum(found.first_order), -fsum(found.progress) if self.survey.is_young else 0.0
        return Loss(
            error=fsum(found.error),
            energy=fsum(found.own),
            elements=values.size,
            first_order=0.0 if triple.second is None else first_order,  # a lone momentum has no unit of the loss
            lost_progress=first_order / progress if progress > 0 else 0.0,
            own_error=fsum(found.plain_error),
            own_energy=fsum(found.plain_own),
            is_vector=min(values.shape) == 1,
        )
