"""How the moments of one weight are coded, so that its optimizer goes on as it would have; and what they restore to.

A first moment follows its weight's trend where it is hardly more than noise, else it is coded in its weight's frame, or
in units of its own update; a second moment is the fill. What would change the optimizer's steps by more than the
budget allows is coded in a finer way, at last exactly.

# R = rows, C = columns of a tensor seen as a matrix
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec import scales as moments
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.survey import Survey
from ckzd.codec.arrays import Float64, Mask, Plane
from ckzd.codec.budget import DEFAULT_BETAS, DEFAULT_EPS, MIN_EPS, Pace, is_falling_short, is_overshooting
from ckzd.codec.course import Course, rate_of
from ckzd.codec.dtypes import from_float64, to_float64
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Triple, plane_shape
from ckzd.codec.records.reconstruction import ArrayFile
from ckzd.codec.restoring import (
    filled,
    frame_kept,
    framed_moment_step,
    restore_first,
    restore_framed_moment,
    restore_momentum,
    restore_relative,
    restore_second,
    restore_trend,
    trend_bytes,
    trend_kept,
)
from ckzd.codec.transform import quantize
from ckzd.codec.transform.quantize import Codebook, KmeansCode, ScalarCode
from ckzd.codec.zeros import encode_zeros, expected_in_moments, without


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment as it is coded."""

    number: int
    method: Method
    levels: Plane | None = None  # none: it follows from scales or trend, or is exact
    prefix: bytes = b""
    course: Course | None = None  # of one that follows its weight, whose prefix is not known yet
    zeros: bytes | None = None  # of a first moment: the mask of all that is kept of its weight
    pace: Pace | None = None  # of a second moment


@dataclass(frozen=True, slots=True)
class MomentCoder:
    """Codes moments once the weights are decoded: `kept` holds them, with their frames and trends."""

    inputs: Inputs
    survey: Survey
    preset: Preset
    kept: ArrayFile

    def coded(self, triple: Triple, weight_levels: Plane | None) -> list[Moment]:
        """A weight's moments with their exact zeros. `weight_levels` are its own (R, C), if it has some."""
        if triple.second is None:
            if self._is_small(triple):
                return [Moment(triple.first, Method.EXACT)]
            return [self._masked(triple, self._framed(triple) or self._momentum(triple), None)]
        for second, first in self._pairs(triple, triple.second, weight_levels):
            if (found := self._in_pace(triple, second, first)) is not None:
                return found
        raise AssertionError("what is exact is as it was")

    def _pairs(self, triple: Triple, number: int, weight_levels: Plane | None) -> Iterator[tuple[Moment, Moment]]:
        """Ways to code the second moment and the first, the cheapest first, the last of them exact."""
        if self.preset.scheme is Scheme.KMEANS:
            first, second = self._by_codebook(triple, number, weight_levels)
            yield from ((found, first) for found in (second, *self._finer_seconds(triple, number)))
        else:
            for second in self._seconds(triple, number):
                yield from ((second, first) for first in self._firsts(triple, number))
        yield from ((second, Moment(triple.first, Method.EXACT)) for second in self._seconds(triple, number))

    def _in_pace(self, triple: Triple, second: Moment, first: Moment) -> list[Moment] | None:
        """Both with their zeros, if they leave the optimizer's steps as they were."""
        restored, eps = self.restored(triple, second), self._eps(second.number)
        original, updated = self.inputs.matrix(second.number), self.inputs.matrix(triple.first)
        again = self._with_zeros(triple, restored, second.number)
        pace = Pace.of(original, again, updated, eps=eps)
        if not self.preset.budget.keeps_pace(pace):
            return None
        moved = self._with_zeros(triple, self.restored(triple, first), triple.first)
        before, after = updated / (np.sqrt(original) + eps), moved / (np.sqrt(again) + eps)
        if is_overshooting(before, after) or (self.survey.is_young and is_falling_short(before, after)):
            return None
        if first.method is not Method.EXACT or second.method is not Method.EXACT:
            first = self._masked(triple, first, restored)
        return [replace(second, pace=pace), first]

    def restored(self, triple: Triple, moment: Moment) -> RawArray:
        """What a decoder yields for it (R, C), but for its exact zeros."""
        tensor, scales = self.inputs.tensor(moment.number), self.survey.scales[triple.weight]
        if moment.method is Method.EXACT:
            return self.inputs.stored(moment.number).reshape(plane_shape(tensor.shape))
        if moment.number == triple.first:
            return self._restored_first(triple, moment)
        if moment.method is Method.SCALED:
            assert moment.levels is not None, "it is coded relative to the fill"
            return restore_relative(moment.levels, scales, tensor.dtype)
        code = None if moment.levels is None else KmeansCode(moment.levels, Codebook.from_bytes(moment.prefix)[0])
        return restore_second(code, scales, tensor.dtype)

    def _restored_first(self, triple: Triple, moment: Moment) -> RawArray:
        weight, dtype = self.inputs.tensor(triple.weight), self.inputs.tensor(triple.first).dtype
        scales, steps, levels = self.survey.scales[triple.weight], self.survey.steps, moment.levels
        if moment.method is Method.TREND:
            trend = trend_kept(weight, self.kept)
            assert trend is not None, "it followed it"
            longest = trend_bytes(moment.course.unit) if moment.course is not None else b""
            return restore_trend(moment.prefix or longest, trend, scales, dtype)
        assert levels is not None, "any other lossy first moment has levels"
        if moment.method is Method.KMEANS:
            codebook, _ = Codebook.from_bytes(moment.prefix)
            return from_float64(quantize.dequantize_kmeans(KmeansCode(levels, codebook)), dtype)
        if moment.method is Method.FRAMED:
            frame = frame_kept(weight, self.kept)
            assert frame is not None, "it was coded in it"
            step = framed_moment_step(steps, triple, scales)
            return restore_framed_moment(ScalarCode(levels, moment.prefix), frame, scales, step, dtype)
        if triple.second is None:
            return restore_momentum(levels, scales, steps.momentum_step, dtype)
        return restore_first(levels, self._fill(triple, triple.second), steps.moment_step, dtype)

    # Ways to code a first moment

    def _firsts(self, triple: Triple, second: int) -> Iterator[Moment]:
        if self._is_small(triple):
            return
        for found in (self._trend(triple, second), self._framed(triple)):
            if found is not None:
                yield found
        yield self._scaled(triple, second)

    def _is_small(self, triple: Triple) -> bool:
        """A vector in a young run: of so few elements that a first moment which counts may as well be exact."""
        return self.survey.is_young and min(plane_shape(self.inputs.tensor(triple.first).shape)) == 1

    def _trend(self, triple: Triple, second: int) -> Moment | None:
        """One that is not worth its bits, from what its weight moved, if the two agree at all."""
        trend = trend_kept(self.inputs.tensor(triple.weight), self.kept)
        if trend is None or self.survey.is_young:
            return None
        root = np.sqrt(self._fill(triple, second))
        used = root > 0
        weigher = quantize.weigher_of(self.survey.scales[triple.weight])
        moving = -weigher.weigh(trend.astype(np.float64))[used] / root[used]
        rate = rate_of(self.inputs.group_of(triple.first), self.inputs.checkpoint.step)
        course = Course.of(self.inputs.matrix(triple.first)[used], root[used], moving, rate)
        return Moment(triple.first, Method.TREND, course=course) if course is not None else None

    def _framed(self, triple: Triple) -> Moment | None:
        """In its weight's frame; None where there is none."""
        frame, scales = frame_kept(self.inputs.tensor(triple.weight), self.kept), self.survey.scales[triple.weight]
        step = framed_moment_step(self.survey.steps, triple, scales)
        if frame is None or not step:
            return None
        weigher = quantize.weigher_of(scales)
        gained = frame.coefficients(weigher.unweigh(self.inputs.matrix(triple.first))) * frame.gains
        code = quantize.quantize_scalar(gained, step, self.preset.dead_zone)
        if not frame.reaches(code.levels):
            return None
        return Moment(triple.first, Method.FRAMED, code.levels, code.centres)

    def _scaled(self, triple: Triple, second: int) -> Moment:
        """In units of its own update."""
        first, step = self.inputs.matrix(triple.first), self.survey.steps.moment_step
        levels = np.zeros(first.shape, np.int16)
        if step:
            levels = moments.quantize_first(first, self._fill(triple, second), step)
        return Moment(triple.first, Method.SCALED, levels)

    def _momentum(self, triple: Triple) -> Moment:
        """A momentum without a second moment, in units of its own rank-1 energy."""
        energy = moments.product_of(self.survey.scales[triple.weight])
        first, step = self.inputs.matrix(triple.first), self.survey.steps.momentum_step
        return Moment(triple.first, Method.SCALED, moments.quantize_first(first, energy, step))

    def _by_codebook(self, triple: Triple, second: int, weight_levels: Plane | None) -> tuple[Moment, Moment]:
        """Both moments by codebooks, where the first is large and the weight was kept."""
        from ckzd.codec.paper import kmeans  # noqa: PLC0415  # a second of scikit-learn, for the one preset with codebooks

        first = self.inputs.matrix(triple.first)
        pruned = np.ones(first.shape, np.bool_) if weight_levels is None else weight_levels != 0
        kept = kmeans.kept_moments(first, pruned)
        codes = [kmeans.quantize_kmeans(moment, kept) for moment in (first, self.inputs.matrix(second))]
        return (
            Moment(triple.first, Method.KMEANS, codes[0].levels, codes[0].codebook.to_bytes()),
            Moment(second, Method.KMEANS, codes[1].levels, codes[1].codebook.to_bytes()),
        )

    # Ways to code a second moment

    def _seconds(self, triple: Triple, number: int) -> Iterator[Moment]:
        yield Moment(number, Method.FILL)
        yield from self._finer_seconds(triple, number)

    def _finer_seconds(self, triple: Triple, number: int) -> Iterator[Moment]:
        relative = moments.quantize_second(self.inputs.matrix(number), self._fill(triple, number))
        yield Moment(number, Method.SCALED, relative)
        yield Moment(number, Method.EXACT)

    def _eps(self, second: int) -> float:
        """Beside the root of a second moment as it is stored: Adam adds it to the root of one that is filled up."""
        group = self.inputs.group_of(second)
        eps = group.eps if group is not None and group.eps is not None else DEFAULT_EPS
        _, beta2 = group.betas if group is not None and group.betas is not None else DEFAULT_BETAS
        return max(eps * math.sqrt(moments.filled(beta2, self.inputs.checkpoint.step)), MIN_EPS)

    def _fill(self, triple: Triple, second: int) -> Float64:
        return filled(self.survey.scales[triple.weight], self.inputs.tensor(second).dtype)

    # Exact zeros

    def expected_zeros(self, triple: Triple, second: RawArray | None) -> Mask:
        """(R, C), from the restored weight and second moment, or from the energy of a lone momentum."""
        weight = self.kept.get(self.inputs.tensor(triple.weight).path, "weights")
        assert weight is not None, "weights come before moments"
        energy = moments.product_of(self.survey.scales[triple.weight]) if second is None else second
        return expected_in_moments(weight, energy)

    def _masked(self, triple: Triple, first: Moment, second: RawArray | None) -> Moment:
        """With the mask of both moments, given the restored second."""
        zeros = self._zeros(triple)
        if zeros is None:
            return first
        return replace(first, zeros=encode_zeros(zeros, self.expected_zeros(triple, second)))

    def _zeros(self, triple: Triple) -> Mask | None:
        """(R, C): where all that is kept of a weight is 0; None where nothing is."""
        zeros = np.logical_and.reduce([self.inputs.matrix(number) == 0 for number in triple.moments])
        return zeros if zeros.any() else None

    def _with_zeros(self, triple: Triple, restored: RawArray, number: int) -> Float64:
        """What is restored of a moment, with its zeros."""
        zeros = self._zeros(triple)
        masked = restored if zeros is None else without(restored, zeros)
        return to_float64(masked, self.inputs.tensor(number).dtype)
