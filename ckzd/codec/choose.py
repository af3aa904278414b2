"""Tensors -> levels: every tensor's method is chosen, and what is lost is lost here.

Decoded weights go to the reconstruction, levels to scratch. Each weight is held to the preset's budget as it is coded;
all together they are in `within_budget`.

# R = rows, C = columns of a tensor seen as a matrix
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from ckzd.checkpoint import Bytes, RawArray
from ckzd.codec.ahead import Announcer
from ckzd.codec.algebra.exact import Algebra
from ckzd.codec.algebra.on_cores import CORES
from ckzd.codec.analysis.inputs import Inputs, TripleValues
from ckzd.codec.analysis.survey import Survey
from ckzd.codec.arrays import Plane
from ckzd.codec.budget import EXACT, TRIES, Loss, Pace, too_much
from ckzd.codec.choose_exact import ChosenExact, ExactChooser
from ckzd.codec.choose_moments import ChosenMoment, MomentChooser, known_moments
from ckzd.codec.choose_states import StateChooser
from ckzd.codec.choose_weights import ChosenWeight, WeightChooser
from ckzd.codec.entropy.context import SideInformation
from ckzd.codec.entropy.planes import PlaneToCode
from ckzd.codec.methods.coding import ByUlps, CastOf, CopyOf, Exactly, Predicted, TensorCoding, Way, WithLoss, following
from ckzd.codec.methods.method import Coded, KnownMoments, plane_kind
from ckzd.codec.methods.momentum_scale import MomentumScale, share_for
from ckzd.codec.methods.registry import moment_method, state_method, weight_method
from ckzd.codec.methods.trend import trend_bytes
from ckzd.codec.methods.ulps import ULPS, KnownBits
from ckzd.codec.methods.zeros import decode_zeros, expected_in_moments, without
from ckzd.codec.parallel import in_batches
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.records.index import Method, in_turn
from ckzd.codec.records.layout import Role, Triple
from ckzd.codec.records.reconstruction import ArrayFile, HeldArrays, Key
from ckzd.codec.records.reference_tensors import ReferenceTensor, put_reference_tensor, with_tracked_bases


@dataclass(slots=True)
class Chooser:
    """Chooses every tensor's method and quantizes; then gives the planes, and what a decoder will make of them."""

    inputs: Inputs
    survey: Survey
    preset: Preset
    reconstruction: ArrayFile
    scratch: ArrayFile
    algebra: Algebra[Any] = CORES  # where bases are worked with: it decides how long that takes, and nothing else
    announcer: Announcer | None = None  # of reference tensors as they are kept
    step_exponents: dict[int, int] = field(default_factory=dict)  # of weights whose step is halved; `run` adds to them
    methods: dict[int, Method] = field(default_factory=dict)
    heads: dict[int, bytes] = field(default_factory=dict)  # of lossy tensors' streams, before their planes
    zeros: dict[int, bytes] = field(default_factory=dict)  # masks of exact zeros, by weight and by first moment
    losses: dict[int, Loss] = field(default_factory=dict)  # of each lossy weight
    paces: dict[int, Pace] = field(default_factory=dict)  # of each weight with a second moment
    regained: float = 0.0  # of the first-order loss, by first moments that follow their weights; where that is known

    def run(self) -> None:
        """Fill all of it. Threads at work on single weights write nothing but their own step exponents."""
        lossy = {triple.weight: triple for triple in self.survey.lossy}
        scales: dict[int, MomentumScale] = {}
        for numbers in self._turns:
            with closing(in_batches(partial(self._chosen, lossy), numbers, self._elements)) as chosen:
                for number, each in zip(numbers, chosen, strict=True):
                    self._keep(number, each)
                    for moment in each.moments:
                        self._keep_moment(moment)
                        if moment.scale is not None:
                            scales[moment.number] = moment.scale
            if self.announcer is not None:
                self.announcer.end_turn()
        self._follow(scales)
        for state in self._state_chooser.chosen():
            self._keep_coded(state.number, state.method, state.coded)
            if state.pace is not None:
                self.paces[state.number] = state.pace
        for number in range(len(self.inputs.checkpoint.tensors)):
            self.methods.setdefault(number, Method.EXACT)

    @property
    def _turns(self) -> tuple[list[int], list[int]]:
        """Reference tensors in the order of their decoding."""
        dependent = self.survey.casts.keys() | self.survey.predictions.keys()
        return in_turn(self.inputs.reference_tensors, dependent, self.survey.copies)

    def _prediction(self, number: int) -> Predicted | None:
        found = self.survey.predictions.get(number)
        return None if found is None else Predicted(found, self.inputs.tensor(found.other))

    def _predicted(self, number: int) -> RawArray | None:
        """A weight's linear prediction from what is restored already, if it has one."""
        found, tensor = self._prediction(number), self.inputs.tensor(number)
        return None if found is None else found.values(tensor, self.inputs.reference, self._restored_before)

    def _restored_before(self, path: Key) -> RawArray | None:
        """What a reference tensor restores to that has had its turn."""
        return self.reconstruction.get(path, "weights")

    def _chosen(self, lossy: Mapping[int, Triple], numbers: list[int]) -> list["_Chosen"]:
        """Reference tensors within the budget, with bases that have learned, and their moments; each is read once."""
        chooser = self._weight_chooser(self.algebra)
        values = [self.inputs.values(lossy[number]) if number in lossy else None for number in numbers]
        weights = [chooser.chosen(lossy[n], v) if v is not None else None for n, v in zip(numbers, values, strict=True)]
        exacts = [self._exact(*each, chooser) for each in zip(numbers, values, weights, strict=True)]
        weights = [None if exact else weight for weight, exact in zip(weights, exacts, strict=True)]
        restored = with_tracked_bases([weight.restored if weight else None for weight in weights], algebra=self.algebra)
        found = []
        for number, value, weight, exact, tracked in zip(numbers, values, weights, exacts, restored, strict=True):
            kept = tracked if exact is None else exact.restored
            assert kept is not None, "with a loss or exactly"
            moments = [] if value is None else self._moments(lossy[number], value, weight, kept)
            found.append(_Chosen(weight, exact, kept, moments))
        return found

    def _weight_chooser(self, algebra: Algebra[Any]) -> WeightChooser:
        return WeightChooser(self.inputs, self.survey, self.preset, self.step_exponents, self._predicted, algebra)

    @property
    def _state_chooser(self) -> StateChooser:
        return StateChooser(self.inputs, self.survey, self.preset)

    def _exact(
        self, number: int, values: TripleValues | None, weight: ChosenWeight | None, weights: WeightChooser
    ) -> ChosenExact | None:
        """A reference tensor that loses nothing, because it must or because it takes no more; None if it takes more."""
        chooser = ExactChooser(self.inputs, self.survey, self.preset)
        stored = self.inputs.stored(number) if values is None else values.weight.stored
        if weight is None:
            return chooser.chosen(number, stored)
        is_alone = number in self.survey.alone
        return chooser.instead_of(weight, weights.known(number), number, stored, is_alone=is_alone)

    def _moments(
        self, triple: Triple, values: TripleValues, weight: ChosenWeight | None, restored: ReferenceTensor
    ) -> list[ChosenMoment]:
        """A weight's moments, if it has some, by what a decoder knows once it has the weight."""
        if not triple.moments:
            return []
        known = HeldArrays()
        put_reference_tensor(known, self.inputs.tensor(triple.weight), restored, self.survey.scales[triple.weight])
        first_levels = partial(self._first_levels, triple)
        chooser = MomentChooser(
            self.inputs, self.survey, self.preset, known, triple, values, first_levels, self.algebra
        )
        return chooser.chosen(weight.coded.levels if weight is not None else None)

    def _keep(self, number: int, chosen: "_Chosen") -> None:
        weight, exact, restored = chosen.weight, chosen.exact, chosen.restored
        coding = TensorCoding(self.inputs.tensor(number), self.survey.scales.get(number), self._way(number, chosen))
        if weight is not None:
            self.losses[number] = weight.loss
            self._keep_coded(number, weight.method, weight.coded)
            if weight.zeros is not None:
                self.zeros[number] = weight.zeros
        if exact is not None:
            self._keep_exact(number, exact)
        if isinstance(coding.way, CopyOf | CastOf):
            restored = following(coding, self.inputs.reference, self._restored_before)
        put_reference_tensor(self.reconstruction, coding.tensor, restored, coding.scales)
        if self.announcer is not None:
            self.announcer.announce(coding)

    def _way(self, number: int, chosen: "_Chosen") -> Way:
        """What a decoder will be told of a reference tensor."""
        weight, exact, steps = chosen.weight, chosen.exact, self.survey.steps
        if weight is not None:
            step = weight_method(weight.method).step_of(steps, self.step_exponents.get(number, 0))
            return WithLoss(weight.method, weight.coded, step, weight.zeros, self._prediction(number))
        assert exact is not None, "with a loss or exactly"
        if exact.method is Method.CAST:
            master = self.inputs.tensor(self.survey.casts[number])
            return CastOf(master.path, master.dtype)
        if exact.method is Method.COPY:
            return CopyOf(self.inputs.tensor(self.survey.copies[number]).path)
        return Exactly(exact.restored.values) if exact.coded is None else ByUlps(exact.coded, steps.step)

    def _keep_exact(self, number: int, exact: ChosenExact) -> None:
        self.methods[number] = exact.method
        if exact.coded is not None:
            self._keep_coded(number, exact.method, exact.coded)
        if exact.stream is not None:
            self.scratch.put(self.inputs.tensor(number).path, "stream", np.frombuffer(exact.stream, np.uint8))

    def _keep_moment(self, moment: ChosenMoment) -> None:
        self._keep_coded(moment.number, moment.method, moment.coded)
        if moment.exact is not None:
            self.scratch.put(self.inputs.tensor(moment.number).path, "exact", moment.exact)
        if moment.zeros is not None:
            self.zeros[moment.number] = moment.zeros
        if moment.pace is not None:
            self.paces[moment.number] = moment.pace

    def _keep_coded(self, number: int, method: Method, coded: Coded) -> None:
        self.methods[number] = method
        if method is Method.EXACT:
            return
        self.heads[number] = coded.head
        if coded.levels is not None:
            self.scratch.put(self.inputs.tensor(number).path, "levels", coded.levels)

    def _follow(self, scales: Mapping[int, MomentumScale]) -> None:
        """Make first moments that follow their weights so long that they regain what was lost, as far as they may."""
        share = share_for(self.first_order_loss, scales.values())
        for number, scale in scales.items():
            self.heads[number] = trend_bytes(scale.unit * scale.length(share))
        self.regained = sum(scale.regained(share) for scale in scales.values())

    @property
    def first_order_loss(self) -> float:
        """What the errors of weights with two moments add to the training loss, to first order and in its own units."""
        return sum(loss.first_order for loss in self.losses.values())

    @property
    def finer(self) -> dict[int, int]:
        """Step exponents of the weights that have levels with a finer step than the checkpoint's."""
        lossy = sorted(self.step_exponents.keys() & self.losses.keys())
        return {number: self.step_exponents[number] for number in lossy}

    @property
    def tightened(self) -> int:
        """How many weights took more bits than their step alone would, to keep to the budget."""
        return sum(exponent > self.survey.exponents.get(number, 0) for number, exponent in self.finer.items())

    def _elements(self, number: int) -> int:
        return self.inputs.tensor(number).elements

    def _known_moments(self, triple: Triple) -> KnownMoments:
        first_levels = partial(self._first_levels, triple)
        places = self.inputs, self.survey, self.reconstruction, triple
        return known_moments(*places, first_levels, algebra=self.algebra)

    def _first_levels(self, triple: Triple) -> Plane:
        levels = self._levels(triple.first_moment)
        assert levels is not None, "a second moment has a codebook where the first has one"
        return levels

    def _levels(self, number: int) -> Plane | None:
        found = self.scratch.get(self.inputs.tensor(number).path, "levels")
        return None if found is None else found.astype(np.int16)

    def planes(self) -> Iterator[PlaneToCode]:
        """Every plane that is to be coded, by tensor number."""
        chooser = self._weight_chooser(CORES)
        triple_of = {n: t for t in self.survey.lossy for n in (t.weight, *t.moments)}
        roles = dict.fromkeys(self.inputs.reference_tensors, Role.REFERENCE)
        roles |= {number: triple.role_of(number) for number, triple in triple_of.items()}
        for number in range(len(self.inputs.checkpoint.tensors)):
            levels = self._levels(number)
            if levels is None:
                continue
            name = self.methods[number]
            if number in self.survey.states:
                yield PlaneToCode(number, plane_kind(name, Role.STATE), levels, SideInformation())
                continue
            role = roles[number]
            if name is Method.ULPS:
                known = KnownBits(self.inputs.tensor(number), self.inputs.reference)
                side_information = ULPS.side_information(self.heads[number], known)
            elif role is Role.WEIGHT:
                side_information = weight_method(name).side_information(self.heads[number], chooser.known(number))
            else:
                side_information = moment_method(name, role).side_information(self._known_moments(triple_of[number]))
            yield PlaneToCode(number, plane_kind(name, role), levels, side_information)

    def payload(self, number: int) -> Bytes:
        """The original bytes of a tensor that loses nothing, from where they are at hand."""
        path = self.inputs.tensor(number).path
        for place, name in ((self.reconstruction, "weights"), (self.scratch, "exact")):
            if (found := place.get(path, name)) is not None:
                return found.tobytes()
        return self.inputs.payload(number)

    def restored_state(self, number: int) -> RawArray:
        """What a decoder yields for a lossy state (R, C)."""
        coded = Coded(self.heads[number], self._levels(number))
        return state_method(self.methods[number]).restored(coded, self._state_chooser.known(number))

    def stream(self, number: int) -> bytes | None:
        """The stream of a tensor that loses nothing, where it had to be made to choose."""
        found = self.scratch.get(self.inputs.tensor(number).path, "stream")
        return None if found is None else found.tobytes()

    def restored_moment(self, number: int, triple: Triple) -> RawArray:
        """What a decoder yields for a moment of a lossy weight (R, C), from the levels in hand."""
        known = self._known_moments(triple)
        restored = self._restored(number, triple, known)
        if self.methods[number] is Method.EXACT or triple.first_moment not in self.zeros:
            return restored
        second = None if triple.second is None else self._restored(triple.second, triple, known)
        return without(restored, decode_zeros(self.zeros[triple.first_moment], expected_in_moments(known, second)))

    def _restored(self, number: int, triple: Triple, known: KnownMoments) -> RawArray:
        """A restored moment (R, C), but for its exact zeros."""
        if self.methods[number] is Method.EXACT:
            exact = self.scratch.get(self.inputs.tensor(number).path, "exact")
            assert exact is not None, "it was kept"
            return exact
        method = moment_method(self.methods[number], triple.role_of(number))
        return method.restored(Coded(self.heads[number], self._levels(number)), known)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A reference tensor as it is coded, with a loss or exactly, what it restores to, and its moments."""

    weight: ChosenWeight | None
    exact: ChosenExact | None
    restored: ReferenceTensor
    moments: list[ChosenMoment]


def within_budget(
    inputs: Inputs,
    surveyed: Survey,
    preset: Preset,
    reconstruction: ArrayFile,
    scratch: ArrayFile,
    *,
    algebra: Algebra[Any] = CORES,
    announcer: Announcer | None = None,
) -> Chooser:
    """Choose for a checkpoint, again with finer steps where its weights lose more than the preset's budget in all."""
    step_exponents = dict(surveyed.exponents)
    allowed = preset.budget.max_weight_error * surveyed.weight_energy
    for attempt in count(1):
        chooser = Chooser(inputs, surveyed, preset, reconstruction, scratch, algebra, announcer, step_exponents)
        chooser.run()
        exactly = preset.scheme is Scheme.KMEANS or attempt >= TRIES
        felt = {number: loss for number, loss in chooser.losses.items() if number not in surveyed.rough}
        over = too_much(felt, allowed, exactly=exactly)
        if not over:
            return chooser
        for number in over:
            step_exponents[number] = EXACT if exactly else min(EXACT, step_exponents.get(number, 0) + 1)
        if announcer is not None:
            announcer.begin_again()
        reconstruction.clear()
        scratch.clear()
    raise AssertionError("what is exact loses nothing")
