"""Tensors -> levels: what is lost is lost here. Decoded weights go to the reconstruction, levels to scratch.

Each weight is held to the preset's budget as it is quantized; all together they are in `within_budget`.

# R = rows, C = columns of a tensor seen as a matrix
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec import scales as moments
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.survey import Survey
from ckzd.codec.arrays import Float64, Plane
from ckzd.codec.budget import EXACT, TRIES, Loss, Pace, too_much
from ckzd.codec.choose_moments import Moment, MomentCoder
from ckzd.codec.course import Course, share_for
from ckzd.codec.dtypes import to_float64
from ckzd.codec.entropy.context import FIRST, SECOND, WEIGHTS, Guide
from ckzd.codec.parallel import in_batches, in_order
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Triple, plane_shape
from ckzd.codec.records.reconstruction import ArrayFile
from ckzd.codec.restoring import (
    Kept,
    add_residual,
    first_guide,
    frame_kept,
    has_frame,
    learned,
    moment_guide,
    put_kept,
    restore_factored,
    restore_framed,
    restore_scalar,
    restore_whole,
    second_guide,
    trend_bytes,
    weight_guide,
)
from ckzd.codec.scales import MAX_LEVEL
from ckzd.codec.transform import quantize, wide
from ckzd.codec.transform.adaptive_basis import Frame
from ckzd.codec.transform.factors import Head
from ckzd.codec.transform.lowrank import fitted, offer_of
from ckzd.codec.zeros import (
    decode_zeros,
    encode_zeros,
    expected_in_weight,
    masked_weight,
    without,
)


@dataclass(frozen=True, slots=True)
class PlaneToCode:
    """A tensor's levels and what their contexts may see."""

    number: int
    kind: int
    levels: Plane
    guide: Guide


@dataclass(slots=True)
class Transform:
    """Chooses every tensor's method and quantizes; then gives the planes, and what a decoder will make of them."""

    inputs: Inputs
    survey: Survey
    preset: Preset
    kept: ArrayFile
    scratch: ArrayFile
    halvings: dict[int, int] = field(default_factory=dict)  # of the step, by weight; `run` adds to them
    methods: dict[int, Method] = field(default_factory=dict)
    prefixes: dict[int, bytes] = field(default_factory=dict)  # before a plane, or a trend's code
    zeros: dict[int, bytes] = field(default_factory=dict)  # masks of exact zeros, by weight and by first moment
    losses: dict[int, Loss] = field(default_factory=dict)  # of each lossy weight
    paces: dict[int, Pace] = field(default_factory=dict)  # of each weight with a second moment
    regained: float = 0.0  # of the first-order loss, by first moments that follow their weights; where that is known

    def run(self) -> None:
        """Fill all of it. Threads at work on single weights write nothing but their own halvings."""
        lossy = {triple.weight: triple for triple in self.survey.lossy}
        weights = in_batches(partial(self._weights, lossy), self.inputs.kept, self._elements)
        for number, weight in zip(self.inputs.kept, weights, strict=True):
            if weight is None:
                self._exact_weight(number)
            else:
                self._lossy_weight(number, *weight)
        courses: dict[int, Course] = {}
        moments_of = in_order(self._moments, self.survey.lossy, lambda triple: self._elements(triple.weight))
        for moment in chain.from_iterable(moments_of):
            self._lossy_moment(moment)
            if moment.course is not None:
                courses[moment.number] = moment.course
        self._follow(courses)
        for number in range(len(self.inputs.checkpoint.tensors)):
            self.methods.setdefault(number, Method.EXACT)

    def _follow(self, courses: Mapping[int, Course]) -> None:
        """Make first moments that follow their weights so long that they regain what was lost, as far as they may."""
        share = share_for(self.first_order_loss, courses.values())
        for number, course in courses.items():
            self.prefixes[number] = trend_bytes(course.unit * course.length(share))
        self.regained = sum(course.regained(share) for course in courses.values())

    @property
    def first_order_loss(self) -> float:
        """What the errors of weights with two moments add to the training loss, to first order and in its own units."""
        return sum(loss.first_order for loss in self.losses.values())

    def _elements(self, number: int) -> int:
        return self.inputs.tensor(number).elements

    def _exact_weight(self, number: int) -> None:
        tensor = self.inputs.tensor(number)
        values = self.inputs.stored(number)
        if number in self.survey.copies:
            self.methods[number] = Method.COPY
            copied = self.kept.get(self.inputs.tensor(self.survey.copies[number]).path, "weights")
            assert copied is not None
            values = copied
        elif number in self.survey.same:
            self.methods[number] = Method.SAME
        else:
            self.methods[number] = Method.EXACT if self.inputs.before(number) is None else Method.DELTA
        kept = Kept(values, frame=frame_kept(tensor, self.inputs.reference))
        put_kept(self.kept, tensor, kept, self.survey.scales.get(number))

    def _lossy_weight(self, number: int, quantized: "_Quantized", loss: Loss) -> None:
        self.losses[number] = loss
        self.methods[number], self.prefixes[number] = quantized.method, quantized.prefix
        tensor = self.inputs.tensor(number)
        self.scratch.put(tensor.path, "levels", quantized.levels)
        put_kept(self.kept, tensor, quantized.kept, self.survey.scales[number])
        if quantized.zeros is not None:
            self.zeros[number] = quantized.zeros

    def _lossy_moment(self, moment: Moment) -> None:
        number = moment.number
        self.methods[number], self.prefixes[number] = moment.method, moment.prefix
        if moment.levels is not None:
            self.scratch.put(self.inputs.tensor(number).path, "levels", moment.levels)
        if moment.zeros is not None:
            self.zeros[number] = moment.zeros
        if moment.pace is not None:
            self.paces[number] = moment.pace

    def _weights(self, lossy: Mapping[int, Triple], numbers: list[int]) -> "list[tuple[_Quantized, Loss] | None]":
        """Weights within the budget, with frames that have learned; None for one that must be coded exactly."""
        found = [self._quantized(lossy.get(number)) for number in numbers]
        kept = learned([weight[0].kept if weight else None for weight in found])
        return [(replace(w[0], kept=k), w[1]) if w and k else None for w, k in zip(found, kept, strict=True)]

    def _quantized(self, triple: Triple | None) -> "tuple[_Quantized, Loss] | None":
        """A weight within the budget; None if it must be coded exactly."""
        quantizer = self._quantizer(triple) if triple is not None else None
        return self._within_budget(triple, quantizer) if triple is not None and quantizer is not None else None

    def _quantizer(self, triple: Triple) -> "_Quantizer | None":
        """How this weight loses precision, if it may."""
        number = triple.weight
        before, residual = self.inputs.finite_before(number), self._residual(number)
        kmeans_only = self.preset.scheme is Scheme.KMEANS
        if number in self.survey.same or (before is None and (kmeans_only or self.inputs.before(number) is not None)):
            return None
        if before is None or residual is None:
            return partial(self._whole, triple)
        if kmeans_only:
            return partial(self._codebook, triple, before, residual)
        if not has_frame(self.inputs.tensor(number)):
            return partial(self._scalar, triple, before, residual)
        tensor, scales = self.inputs.tensor(number), self.survey.scales[number]
        frame = frame_kept(tensor, self.inputs.reference) or Frame.unknown(*residual.shape)
        weighted = quantize.weigher_of(scales).weigh(residual)
        return partial(self._matrix, triple, before, frame, weighted, frame.coefficients(weighted) * frame.gains)

    def _residual(self, number: int) -> Float64 | None:
        """What there is to code of a weight that has a reference: nothing where it is 0, whatever it was before."""
        residual = self.inputs.residual(number)
        return None if residual is None else np.where(self.inputs.matrix(number) == 0, 0.0, residual)

    def _within_budget(self, triple: Triple, quantizer: "_Quantizer") -> "tuple[_Quantized, Loss] | None":
        """With a step as fine as the budget for one weight asks; None if none is."""
        number, budget = triple.weight, self.preset.budget
        while self.halvings.get(number, 0) < EXACT:
            quantized = quantizer()
            if quantized is None:
                return None
            quantized = self._masked(number, quantized)
            loss = self._loss(triple, quantized.kept.values)
            over = budget.excess(loss)
            if over <= 1:
                return quantized, loss
            kmeans = quantized.method is Method.KMEANS
            more = EXACT if kmeans else loss.halvings_for(over, self._step(number, quantized.method))
            self.halvings[number] = min(EXACT, self.halvings.get(number, 0) + more)
        return None

    def _masked(self, number: int, quantized: "_Quantized") -> "_Quantized":
        """With its exact zeros, if it has any."""
        weight = self.inputs.matrix(number)
        zeros = weight == 0
        if not zeros.any():
            return quantized
        data = encode_zeros(zeros, expected_in_weight(self.inputs.before(number), weight.shape))
        values = masked_weight(quantized.kept.values, zeros, self.inputs.tensor(number).dtype)
        return replace(quantized, kept=replace(quantized.kept, values=values), zeros=data)

    def _step(self, number: int, method: Method) -> float:
        """Of one weight's levels."""
        steps = self.survey.steps
        return (steps.whole_step if method is Method.WHOLE else steps.step) * 2.0 ** -self.halvings.get(number, 0)

    def _whole(self, triple: Triple) -> "_Quantized | None":
        scales, step = self.survey.scales[triple.weight], self._step(triple.weight, Method.WHOLE)
        if not step:
            return None
        exactly = np.rint(quantize.weigher_of(scales).weigh(self.inputs.matrix(triple.weight)) / step)
        if np.abs(exactly).max() >= MAX_LEVEL:
            return None
        levels = exactly.astype(np.int16)
        low, high = wide.split(levels)
        values = restore_whole(levels, scales, step, self.inputs.tensor(triple.weight).dtype)
        return _Quantized(Method.WHOLE, high, low, Kept(values))

    def _scalar(self, triple: Triple, before: RawArray, residual: Float64) -> "_Quantized | None":
        scales, step = self.survey.scales[triple.weight], self._step(triple.weight, Method.SCALAR)
        if not step:
            return None
        weighted = quantize.weigher_of(scales).weigh(residual)
        code = quantize.quantize_scalar(weighted, step, self.preset.dead_zone)
        if np.abs(code.levels).max() >= MAX_LEVEL:  # it jumped further than levels reach
            return None
        tensor = self.inputs.tensor(triple.weight)
        values = restore_scalar(before, code, scales, step, tensor.dtype)
        kept = Kept(values, code.levels, frame_kept(tensor, self.inputs.reference))
        return _Quantized(Method.SCALAR, code.levels, code.centres, kept)

    def _matrix(
        self, triple: Triple, before: RawArray, frame: Frame, weighted: Float64, coefficients: Float64
    ) -> "_Quantized | None":
        """In its frame or as factors, whichever costs less."""
        scales, step = self.survey.scales[triple.weight], self._step(triple.weight, Method.FRAMED)
        if not step:
            return None
        dtype = self.inputs.tensor(triple.weight).dtype
        code = quantize.quantize_scalar(coefficients, step, self.preset.dead_zone)
        reaches = frame.reaches(code.levels)
        framed = offer_of((coefficients / step - quantize.dequantize_scalar(code, 1.0)) / frame.gains, code.levels)
        found = fitted(weighted / step)
        if found is not None and (found[1].cost < framed.cost or not reaches):
            head, plane = found[0].split
            kept = restore_factored(before, found[0], frame, scales, step=step, dtype=dtype)
            return _Quantized(Method.FACTORED, plane, head, kept)
        if not reaches:
            return None
        kept = restore_framed(before, code, frame, scales, step=step, dtype=dtype)
        return _Quantized(Method.FRAMED, code.levels, code.centres, kept)

    def _codebook(self, triple: Triple, before: RawArray, residual: Float64) -> "_Quantized":
        from ckzd.codec.paper import kmeans  # noqa: PLC0415  # a second of scikit-learn, for the one preset with codebooks

        scales, tensor = self.survey.scales[triple.weight], self.inputs.tensor(triple.weight)
        second = moments.product_of(scales) if triple.second is None else self.inputs.matrix(triple.second)
        code = kmeans.quantize_kmeans(residual, kmeans.kept_weights(residual, second))
        values = add_residual(before, quantize.dequantize_kmeans(code), tensor.dtype)
        kept = Kept(values, code.levels, frame_kept(tensor, self.inputs.reference))
        return _Quantized(Method.KMEANS, code.levels, code.codebook.to_bytes(), kept)

    def finer(self) -> dict[int, int]:
        """Halvings of the step of each weight that has levels with a finer one."""
        lossy = sorted(self.halvings.keys() & self.losses.keys())
        return {number: self.halvings[number] for number in lossy}

    def _loss(self, triple: Triple, restored: RawArray) -> Loss:
        """What a weight loses if this is what it restores to."""
        weight = self.inputs.matrix(triple.weight)
        error = to_float64(restored, self.inputs.tensor(triple.weight).dtype).reshape(weight.shape) - weight
        weigher = quantize.weigher_of(self.survey.scales[triple.weight])
        first, residual = self.inputs.matrix(triple.first), self.inputs.residual(triple.weight)
        first_order, progress = float((first * error).sum()), 0.0
        if residual is not None and self.survey.is_young:
            progress = -float((first * residual).sum())
        lost, energy = (float((weigher.weigh(values) ** 2).sum()) for values in (error, weight))
        return Loss(
            error=lost,
            energy=energy,
            elements=weight.size,
            first_order=0.0 if triple.second is None else first_order,  # a lone momentum has no unit of the loss
            lost_progress=first_order / progress if progress > 0 else 0.0,
            own_error=float((error**2).sum()),
            own_energy=float((weight**2).sum()),
            is_vector=min(weight.shape) == 1,
        )

    def _moments(self, triple: Triple) -> list[Moment]:
        return self._coder.coded(triple, self._levels(triple.weight))

    def _levels(self, number: int) -> Plane | None:
        found = self.scratch.get(self.inputs.tensor(number).path, "levels")
        return None if found is None else found.astype(np.int16)

    def planes(self) -> Iterator[PlaneToCode]:
        """Every plane that is to be coded, by tensor number."""
        triple_of = {n: t for t in self.survey.lossy for n in t.moments}
        for number in range(len(self.inputs.checkpoint.tensors)):
            levels = self._levels(number)
            if levels is None:
                continue
            if number not in triple_of:
                yield PlaneToCode(number, WEIGHTS, levels, self._weight_guide(number))
            else:
                kind = FIRST if number == triple_of[number].first else SECOND
                yield PlaneToCode(number, kind, levels, self._moment_guide(number, triple_of[number]))

    def _weight_guide(self, number: int) -> Guide:
        tensor = self.inputs.tensor(number)
        if self.methods[number] is Method.FACTORED:
            shape = plane_shape(tensor.shape)
            return Head.of(self.prefixes[number], shape).guide(shape)
        return weight_guide(tensor, self.inputs.reference)

    def _moment_guide(self, number: int, triple: Triple) -> Guide:
        weight, scales = self.inputs.tensor(triple.weight), self.survey.scales[triple.weight]
        if number == triple.second and self.methods[number] is Method.SCALED:
            return Guide()
        if self.methods[number] is not Method.KMEANS:
            return moment_guide(weight, self.kept)
        if number == triple.first:
            return first_guide(weight, self.kept, scales)
        first = self._levels(triple.first)
        assert first is not None, "a second moment has a codebook where the first has one"
        return second_guide(first, scales)

    def restored_moment(self, number: int, triple: Triple) -> RawArray:
        """What a decoder yields for a moment of a lossy weight (R, C), from the levels in hand."""
        moment = self._moment(number)
        restored = self._coder.restored(triple, moment)
        if moment.method is Method.EXACT or triple.first not in self.zeros:
            return restored
        second = None if triple.second is None else self._coder.restored(triple, self._moment(triple.second))
        expected = self._coder.expected_zeros(triple, second)
        return without(restored, decode_zeros(self.zeros[triple.first], expected))

    def _moment(self, number: int) -> Moment:
        return Moment(number, self.methods[number], self._levels(number), self.prefixes.get(number, b""))

    @property
    def _coder(self) -> MomentCoder:
        return MomentCoder(self.inputs, self.survey, self.preset, self.kept)


@dataclass(frozen=True, slots=True)
class _Quantized:
    method: Method
    levels: Plane
    prefix: bytes
    kept: Kept
    zeros: bytes | None = None  # its mask, if it has one


_Quantizer = Callable[[], _Quantized | None]  # with the step that the weight has by then


def within_budget(inputs: Inputs, surveyed: Survey, preset: Preset, kept: ArrayFile, scratch: ArrayFile) -> Transform:
    """Transform a checkpoint, again with finer steps where its weights lose more than the preset's budget in all."""
    halvings: dict[int, int] = {}
    allowed = preset.budget.max_weight_error * surveyed.weight_energy
    for attempt in count(1):
        transform = Transform(inputs, surveyed, preset, kept, scratch, halvings)
        transform.run()
        exactly = preset.scheme is Scheme.KMEANS or attempt >= TRIES
        over = too_much(transform.losses, allowed, exactly=exactly)
        if not over:
            return transform
        for number in over:
            halvings[number] = EXACT if exactly else min(EXACT, halvings.get(number, 0) + 1)
        kept.clear()
        scratch.clear()
    raise AssertionError("what is exact loses nothing")
