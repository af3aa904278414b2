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
from ckzd.codec import moments, quantize, wide
from ckzd.codec.arrays import Float64, Plane
from ckzd.codec.budget import EXACT, TRIES, Loss, too_much
from ckzd.codec.context import FIRST, SECOND, WEIGHTS, Guide
from ckzd.codec.course import Course, rate_of, share_for
from ckzd.codec.dtypes import from_float64, to_float64
from ckzd.codec.factors import Head
from ckzd.codec.frames import Frame
from ckzd.codec.index import Method
from ckzd.codec.inputs import Inputs
from ckzd.codec.layout import Triple, plane_shape
from ckzd.codec.lowrank import fitted, offer_of
from ckzd.codec.moments import MAX_LEVEL
from ckzd.codec.parallel import in_batches, in_order
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.quantize import Codebook, KmeansCode, ScalarCode
from ckzd.codec.reconstruction import ArrayFile
from ckzd.codec.restoring import (
    Kept,
    add_residual,
    first_guide,
    frame_kept,
    framed_moment_step,
    has_frame,
    learned,
    moment_guide,
    put_kept,
    restore_factored,
    restore_first,
    restore_framed,
    restore_framed_moment,
    restore_momentum,
    restore_scalar,
    restore_second,
    restore_trend,
    restore_whole,
    second_guide,
    trend_bytes,
    trend_kept,
    weight_guide,
)
from ckzd.codec.survey import Survey


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
    losses: dict[int, Loss] = field(default_factory=dict)  # of each lossy weight
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
            self.methods[moment.number], self.prefixes[moment.number] = moment.method, moment.prefix
            if moment.levels is not None:
                self.scratch.put(self.inputs.tensor(moment.number).path, "levels", moment.levels)
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
        before, residual = self.inputs.finite_before(number), self.inputs.residual(number)
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

    def _within_budget(self, triple: Triple, quantizer: "_Quantizer") -> "tuple[_Quantized, Loss] | None":
        """With a step as fine as the budget for one weight asks; None if none is."""
        number, limit = triple.weight, self.preset.budget.max_worst_tensor_error
        while self.halvings.get(number, 0) < EXACT:
            quantized = quantizer()
            if quantized is None:
                return None
            loss = self._loss(triple, quantized.kept.values)
            if loss.relative <= limit:
                return quantized, loss
            kmeans = quantized.method is Method.KMEANS
            more = EXACT if kmeans else loss.halvings_for(limit, self._step(number, quantized.method))
            self.halvings[number] = min(EXACT, self.halvings.get(number, 0) + more)
        return None

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
        from ckzd.codec import kmeans  # noqa: PLC0415  # a second of scikit-learn, for the one preset with codebooks

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
        first_order = 0.0 if triple.second is None else float((self.inputs.matrix(triple.first) * error).sum())
        lost, energy = (float((weigher.weigh(values) ** 2).sum()) for values in (error, weight))
        return Loss(lost, energy, weight.size, first_order)

    def _moments(self, triple: Triple) -> "list[_Moment]":
        """A weight's moments: in its frame where there is one, else by scales; or by codebooks."""
        if triple.second is None:
            return [self._framed_moment(triple) or self._momentum(triple)]
        if self.preset.scheme is Scheme.KMEANS:
            return self._codebook_moments(triple, triple.second)
        first = (
            self._trend(triple, triple.second)
            or self._framed_moment(triple)
            or self._scaled_moment(triple, triple.second)
        )
        return [_Moment(triple.second, Method.FILL), first]

    def _momentum(self, triple: Triple) -> "_Moment":
        """A momentum without a second moment, in units of its own rank-1 energy."""
        energy = moments.product_of(self.survey.scales[triple.weight])
        first, step = self.inputs.matrix(triple.first), self.survey.steps.momentum_step
        return _Moment(triple.first, Method.SCALED, moments.quantize_first(first, energy, step))

    def _scaled_moment(self, triple: Triple, second_number: int) -> "_Moment":
        """A first moment in units of its own update."""
        first, step = self.inputs.matrix(triple.first), self.survey.steps.moment_step
        levels = np.zeros(first.shape, np.int16)
        if step:
            dtype = self.inputs.tensor(second_number).dtype
            second = to_float64(moments.fill(self.survey.scales[triple.weight], dtype), dtype)
            levels = moments.quantize_first(first, second, step)
        return _Moment(triple.first, Method.SCALED, levels)

    def _framed_moment(self, triple: Triple) -> "_Moment | None":
        """A first moment in its weight's frame; None where there is none."""
        frame, scales = frame_kept(self.inputs.tensor(triple.weight), self.kept), self.survey.scales[triple.weight]
        step = framed_moment_step(self.survey.steps, triple, scales)
        if frame is None or not step:
            return None
        weigher = quantize.weigher_of(scales)
        gained = frame.coefficients(weigher.unweigh(self.inputs.matrix(triple.first))) * frame.gains
        code = quantize.quantize_scalar(gained, step, self.preset.dead_zone)
        if not frame.reaches(code.levels):
            return None
        return _Moment(triple.first, Method.FRAMED, code.levels, code.centres)

    def _trend(self, triple: Triple, second_number: int) -> "_Moment | None":
        """A first moment that is not worth its bits, from what its weight moved, if the two agree at all."""
        trend = trend_kept(self.inputs.tensor(triple.weight), self.kept)
        if trend is None or not self.survey.moments_follow:
            return None
        scales, dtype = self.survey.scales[triple.weight], self.inputs.tensor(second_number).dtype
        root = np.sqrt(to_float64(moments.fill(scales, dtype), dtype))
        used = root > 0
        moving = -quantize.weigher_of(scales).weigh(trend.astype(np.float64))[used] / root[used]
        rate = rate_of(self.inputs.group_of(triple.first), self.inputs.checkpoint.step)
        course = Course.of(self.inputs.matrix(triple.first)[used], root[used], moving, rate)
        return _Moment(triple.first, Method.TREND, course=course) if course is not None else None

    def _codebook_moments(self, triple: Triple, second: int) -> "list[_Moment]":
        """Both moments by codebooks, where the first is large and the weight was kept."""
        from ckzd.codec import kmeans  # noqa: PLC0415

        first, weight_levels = self.inputs.matrix(triple.first), self._levels(triple.weight)
        pruned = np.ones(first.shape, np.bool_) if weight_levels is None else weight_levels != 0
        kept = kmeans.kept_moments(first, pruned)
        found = []
        for number, moment in ((triple.first, first), (second, self.inputs.matrix(second))):
            code = kmeans.quantize_kmeans(moment, kept)
            found.append(_Moment(number, Method.KMEANS, code.levels, code.codebook.to_bytes()))
        return found

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
        if self.methods[number] is not Method.KMEANS:
            return moment_guide(weight, self.kept)
        if number == triple.first:
            return first_guide(weight, self.kept, scales)
        first = self._levels(triple.first)
        assert first is not None, "a second moment has a codebook where the first has one"
        return second_guide(first, scales)

    def restored_moment(self, number: int, triple: Triple) -> RawArray:
        """What a decoder yields for a lossy moment (R, C), from the levels in hand."""
        if number == triple.second:
            return self._second(number, triple)
        dtype, levels = self.inputs.tensor(number).dtype, self._levels(number)
        if self.methods[number] is Method.TREND:
            trend = trend_kept(self.inputs.tensor(triple.weight), self.kept)
            assert trend is not None, "it followed it"
            return restore_trend(self.prefixes[number], trend, self.survey.scales[triple.weight], dtype)
        assert levels is not None, "any other lossy first moment has levels"
        if self.methods[number] is Method.KMEANS:
            return from_float64(quantize.dequantize_kmeans(KmeansCode(levels, self._codebook_of(number))), dtype)
        scales, steps = self.survey.scales[triple.weight], self.survey.steps
        if self.methods[number] is Method.FRAMED:
            frame = frame_kept(self.inputs.tensor(triple.weight), self.kept)
            assert frame is not None, "it was coded in it"
            step = framed_moment_step(steps, triple, scales)
            return restore_framed_moment(ScalarCode(levels, self.prefixes[number]), frame, scales, step, dtype)
        if triple.second is None:
            return restore_momentum(levels, scales, steps.momentum_step, dtype)
        return restore_first(levels, self._second(triple.second, triple), steps.moment_step, dtype)

    def _second(self, number: int, triple: Triple) -> RawArray:
        levels = self._levels(number)
        code = None if levels is None else KmeansCode(levels, self._codebook_of(number))
        return restore_second(code, self.survey.scales[triple.weight], self.inputs.tensor(number).dtype)

    def _codebook_of(self, number: int) -> Codebook:
        codebook, _ = Codebook.from_bytes(self.prefixes[number])
        return codebook


@dataclass(frozen=True, slots=True)
class _Quantized:
    method: Method
    levels: Plane
    prefix: bytes
    kept: Kept


@dataclass(frozen=True, slots=True)
class _Moment:
    number: int
    method: Method
    levels: Plane | None = None  # none: it follows from scales or trend
    prefix: bytes = b""
    course: Course | None = None  # of one that follows its weight


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
