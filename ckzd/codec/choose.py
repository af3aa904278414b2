"""Tensors -> levels: every tensor's method is chosen, and what is lost is lost here.

Decoded weights go to the reconstruction, levels to scratch. Each weight is held to the preset's budget as it is coded;
all together they are in `within_budget`.

# R = rows, C = columns of a tensor seen as a matrix
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.survey import Survey
from ckzd.codec.arrays import Plane
from ckzd.codec.budget import EXACT, TRIES, Loss, Pace, too_much
from ckzd.codec.choose_moments import ChosenMoment, MomentChooser
from ckzd.codec.choose_weights import ChosenWeight, WeightChooser
from ckzd.codec.entropy.planes import PlaneToCode
from ckzd.codec.methods.method import PLANE_KIND, Coded, KnownMoments
from ckzd.codec.methods.momentum_scale import MomentumScale, share_for
from ckzd.codec.methods.registry import moment_method, weight_method
from ckzd.codec.methods.trend import trend_bytes
from ckzd.codec.methods.zeros import decode_zeros, expected_in_moments, without
from ckzd.codec.parallel import in_batches, in_order
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Role, Triple, plane_shape
from ckzd.codec.records.reconstruction import ArrayFile
from ckzd.codec.records.reference_tensors import ReferenceTensor, basis_of, put_reference_tensor, with_tracked_bases


@dataclass(slots=True)
class Chooser:
    """Chooses every tensor's method and quantizes; then gives the planes, and what a decoder will make of them."""

    inputs: Inputs
    survey: Survey
    preset: Preset
    reconstruction: ArrayFile
    scratch: ArrayFile
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
        weights = in_batches(partial(self._weights, lossy), self.inputs.reference_tensors, self._elements)
        for number, weight in zip(self.inputs.reference_tensors, weights, strict=True):
            if weight is None:
                self._keep_exact(number)
            else:
                self._keep_weight(number, weight)
        moment_scales: dict[int, MomentumScale] = {}
        moments_of = in_order(self._moments, self.survey.lossy, lambda triple: self._elements(triple.weight))
        for moment in chain.from_iterable(moments_of):
            self._keep_moment(moment)
            if moment.scale is not None:
                moment_scales[moment.number] = moment.scale
        self._follow(moment_scales)
        for number in range(len(self.inputs.checkpoint.tensors)):
            self.methods.setdefault(number, Method.EXACT)

    def _weights(self, lossy: Mapping[int, Triple], numbers: list[int]) -> list[ChosenWeight | None]:
        """Weights within the budget, with bases that have learned; None for one that must be coded exactly."""
        chooser = WeightChooser(self.inputs, self.survey, self.preset, self.step_exponents)
        found = [chooser.chosen(lossy[number]) if number in lossy else None for number in numbers]
        restored = with_tracked_bases([weight.restored if weight else None for weight in found])
        return [replace(w, restored=r) if w and r else None for w, r in zip(found, restored, strict=True)]

    def _keep_exact(self, number: int) -> None:
        """A reference tensor that loses nothing: as a copy, as in the reference, against it, or by itself."""
        tensor = self.inputs.tensor(number)
        values = self.inputs.stored(number)
        if number in self.survey.copies:
            self.methods[number] = Method.COPY
            copied = self.reconstruction.get(self.inputs.tensor(self.survey.copies[number]).path, "weights")
            assert copied is not None, "the first of them came before"
            values = copied
        elif number in self.survey.same:
            self.methods[number] = Method.SAME
        else:
            self.methods[number] = Method.EXACT if self.inputs.before(number) is None else Method.DELTA
        restored = ReferenceTensor(values, basis=basis_of(tensor, self.inputs.reference))
        put_reference_tensor(self.reconstruction, tensor, restored, self.survey.scales.get(number))

    def _keep_weight(self, number: int, weight: ChosenWeight) -> None:
        self.losses[number] = weight.loss
        self._keep_coded(number, weight.method, weight.coded)
        put_reference_tensor(
            self.reconstruction, self.inputs.tensor(number), weight.restored, self.survey.scales[number]
        )
        if weight.zeros is not None:
            self.zeros[number] = weight.zeros

    def _keep_moment(self, moment: ChosenMoment) -> None:
        self._keep_coded(moment.number, moment.method, moment.coded)
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

    def _elements(self, number: int) -> int:
        return self.inputs.tensor(number).elements

    def _moments(self, triple: Triple) -> list[ChosenMoment]:
        return self._moment_chooser(triple).chosen(self._levels(triple.weight))

    def _moment_chooser(self, triple: Triple) -> MomentChooser:
        first_levels = partial(self._first_levels, triple)
        return MomentChooser(self.inputs, self.survey, self.preset, self.reconstruction, triple, first_levels)

    def _first_levels(self, triple: Triple) -> Plane:
        levels = self._levels(triple.first)
        assert levels is not None, "a second moment has a codebook where the first has one"
        return levels

    def _levels(self, number: int) -> Plane | None:
        found = self.scratch.get(self.inputs.tensor(number).path, "levels")
        return None if found is None else found.astype(np.int16)

    def planes(self) -> Iterator[PlaneToCode]:
        """Every plane that is to be coded, by tensor number."""
        chooser = WeightChooser(self.inputs, self.survey, self.preset, self.step_exponents)
        triple_of = {n: t for t in self.survey.lossy for n in (t.weight, *t.moments)}
        for number in range(len(self.inputs.checkpoint.tensors)):
            levels = self._levels(number)
            if levels is None:
                continue
            triple = triple_of[number]
            role, name = triple.role_of(number), self.methods[number]
            if role is Role.WEIGHT:
                side_information = weight_method(name).side_information(self.heads[number], chooser.known(number))
            else:
                side_information = moment_method(name, role).side_information(self._moment_chooser(triple).known)
            yield PlaneToCode(number, PLANE_KIND[role], levels, side_information)

    def restored_moment(self, number: int, triple: Triple) -> RawArray:
        """What a decoder yields for a moment of a lossy weight (R, C), from the levels in hand."""
        known = self._moment_chooser(triple).known
        restored = self._restored(number, triple, known)
        if self.methods[number] is Method.EXACT or triple.first not in self.zeros:
            return restored
        second = None if triple.second is None else self._restored(triple.second, triple, known)
        return without(restored, decode_zeros(self.zeros[triple.first], expected_in_moments(known, second)))

    def _restored(self, number: int, triple: Triple, known: KnownMoments) -> RawArray:
        """A restored moment (R, C), but for its exact zeros."""
        if self.methods[number] is Method.EXACT:
            return self.inputs.stored(number).reshape(plane_shape(self.inputs.tensor(number).shape))
        method = moment_method(self.methods[number], triple.role_of(number))
        return method.restored(Coded(self.heads[number], self._levels(number)), known)


def within_budget(
    inputs: Inputs, surveyed: Survey, preset: Preset, reconstruction: ArrayFile, scratch: ArrayFile
) -> Chooser:
    """Choose for a checkpoint, again with finer steps where its weights lose more than the preset's budget in all."""
    step_exponents: dict[int, int] = {}
    allowed = preset.budget.max_weight_error * surveyed.weight_energy
    for attempt in count(1):
        chooser = Chooser(inputs, surveyed, preset, reconstruction, scratch, step_exponents)
        chooser.run()
        exactly = preset.scheme is Scheme.KMEANS or attempt >= TRIES
        over = too_much(chooser.losses, allowed, exactly=exactly)
        if not over:
            return chooser
        for number in over:
            step_exponents[number] = EXACT if exactly else min(EXACT, step_exponents.get(number, 0) + 1)
        reconstruction.clear()
        scratch.clear()
    raise AssertionError("what is exact loses nothing")
