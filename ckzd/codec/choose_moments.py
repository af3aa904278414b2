"""How the moments of one weight are coded, so that its optimizer goes on as it would have.

A first moment follows its weight's trend where it is hardly more than noise, else it is coded in its weight's basis, or
in units of its own update; a second moment is the fill. What would change the optimizer's steps by more than the
budget allows is coded in a finer way, at last exactly.

# R = rows, C = columns of a tensor seen as a matrix
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from ckzd.checkpoint import RawArray
from ckzd.codec.algebra.exact import Algebra
from ckzd.codec.analysis.inputs import Inputs, TripleValues
from ckzd.codec.analysis.survey import Survey
from ckzd.codec.arrays import Mask, Numbers, Plane
from ckzd.codec.budget import (
    DEFAULT_BETAS,
    DEFAULT_EPS,
    MIN_EPS,
    Pace,
    filled_up,
    is_falling_short,
    is_overshooting,
)
from ckzd.codec.dtypes import to_numbers
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.methods.method import Coded, CodingMethod, KnownMoments, MomentMethod, MomentsToCode
from ckzd.codec.methods.momentum_scale import MomentumScale, rate_of
from ckzd.codec.methods.registry import moment_method, moment_methods, verbatim
from ckzd.codec.methods.trend import Following
from ckzd.codec.methods.zeros import encode_zeros, expected_in_moments, without
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Role, Triple, plane_shape
from ckzd.codec.records.reconstruction import Arrays


@dataclass(frozen=True, slots=True)
class ChosenMoment:
    """One moment as it is coded."""

    number: int
    method: Method
    coded: Coded
    exact: RawArray | None = None  # of one that is coded exactly: its values
    zeros: bytes | None = None  # of a first moment: the mask of all that is kept of its weight
    pace: Pace | None = None  # of a second moment

    @property
    def scale(self) -> MomentumScale | None:
        """How long one is that follows its weight; None of all others."""
        return self.coded.scale if isinstance(self.coded, Following) else None


def known_moments(
    inputs: Inputs,
    survey: Survey,
    reconstruction: Arrays,
    triple: Triple,
    first_levels: Callable[[], Plane],
    *,
    algebra: Algebra[Any],
) -> KnownMoments:
    """What a decoder knows of a weight's moments before their streams."""
    return KnownMoments(
        weight=inputs.tensor(triple.weight),
        first=inputs.tensor(triple.first_moment),
        second=None if triple.second is None else inputs.tensor(triple.second),
        scales=survey.scales[triple.weight],
        steps=survey.steps,
        reconstruction=reconstruction,
        first_levels=first_levels,
        algebra=algebra,
    )


@dataclass(frozen=True)
class MomentChooser:
    """Codes the moments of one weight, which is in the reconstruction, with its basis and trend."""

    inputs: Inputs
    survey: Survey
    preset: Preset
    reconstruction: Arrays
    triple: Triple
    values: TripleValues
    first_levels: Callable[[], Plane]
    algebra: Algebra[Any]  # where the weight's basis is worked with

    @cached_property
    def known(self) -> KnownMoments:
        """What a decoder knows of them before their streams."""
        places = self.inputs, self.survey, self.reconstruction, self.triple
        return known_moments(*places, self.first_levels, algebra=self.algebra)

    def chosen(self, weight_levels: Plane | None) -> list[ChosenMoment]:
        """A weight's moments with their exact zeros. `weight_levels` are its own (R, C), if it has some."""
        if not self.inputs.has_sound_moments(self.triple):
            return [self._broken(number) for number in self.triple.moments]
        found = self._chosen(self._to_code(weight_levels))
        return [
            replace(moment, exact=self._stored(moment.number)) if moment.method is Method.EXACT else moment
            for moment in found
        ]

    def _broken(self, number: int) -> ChosenMoment:
        """A moment that is exact because some number of both is not sound."""
        stored = self.inputs.stored(number).reshape(plane_shape(self.known.first.shape))
        return ChosenMoment(number, Method.EXACT, Coded(), exact=stored)

    def _chosen(self, moments: MomentsToCode) -> list[ChosenMoment]:
        if moments.second is None:
            return [self._momentum(moments)]
        original = Moments(moments.first, moments.second)
        for second, first in self._pairs(moments):
            if (found := self._in_pace(original, second, first)) is not None:
                return found
        raise AssertionError("what is exact is as it was")

    def _stored(self, number: int) -> RawArray:
        """A moment's values (R, C) in their stored dtype."""
        return self.values.of(self.triple.role_of(number)).stored.reshape(plane_shape(self.known.first.shape))

    def _to_code(self, weight_levels: Plane | None) -> MomentsToCode:
        first = self.triple.first_moment
        return MomentsToCode(
            known=self.known,
            first=self.values.first.numbers,
            second=None if self.values.second is None else self.values.second.numbers,
            weight_levels=weight_levels,
            dead_zone=self.preset.dead_zone,
            is_young=self.survey.is_young,
            rate=rate_of(self.inputs.group_of(first), self.inputs.updates_of(first)),
        )

    def _momentum(self, moments: MomentsToCode) -> ChosenMoment:
        """One without a second moment, by the first method that takes it."""
        if self._is_small:
            return ChosenMoment(self.triple.first_moment, Method.EXACT, Coded())
        ways = ((way, way.coded(moments)) for way in moment_methods(Role.MOMENTUM, self.preset.scheme))
        way, coded = next((way, coded) for way, coded in ways if coded is not None)
        return self._masked(ChosenMoment(self.triple.first_moment, way.name, coded), None)

    @property
    def _is_small(self) -> bool:
        """A vector in a young run: of so few elements that a first moment which counts may as well be exact."""
        return self.survey.is_young and min(plane_shape(self.known.first.shape)) == 1

    @property
    def _is_to_go_as_far(self) -> bool:
        """Whether its first steps after a restore count: codebooks prune moments, as they were published."""
        return self.survey.is_young and self.preset.scheme is not Scheme.KMEANS

    def _pairs(self, moments: MomentsToCode) -> Iterator[tuple[ChosenMoment, ChosenMoment]]:
        """Ways to code the second moment and the first, the cheapest first, the last of them exact."""

        @cache
        def coded(method: CodingMethod) -> Coded | None:
            return method.coded(moments) if isinstance(method, MomentMethod) else Coded()

        exact, number = verbatim(Method.EXACT), self.triple.second
        assert number is not None, "there is a second moment"
        is_exempt = self._is_small and self.preset.scheme is not Scheme.KMEANS
        firsts: list[CodingMethod] = [*moment_methods(Role.FIRST, self.preset.scheme)] if not is_exempt else []
        seconds: list[CodingMethod] = [*moment_methods(Role.SECOND), exact]
        tried = [(second, first) for second in seconds for first in firsts]
        for second, first in tried + [(second, exact) for second in seconds]:
            if not second.may_stand_beside(first.name):
                continue
            if (own := coded(first)) is not None and (others := coded(second)) is not None:
                yield ChosenMoment(number, second.name, others), ChosenMoment(self.triple.first_moment, first.name, own)

    def _in_pace(self, original: Moments, second: ChosenMoment, first: ChosenMoment) -> list[ChosenMoment] | None:
        """Both moments with their zeros, if they leave the optimizer's steps as they were; else None."""
        restored, eps = self._restored(Role.SECOND, second), self._eps(second.number)
        again = self._with_zeros(restored, second.number)
        before = elementwise.updates(original, eps)
        pace = Pace.of(original, again, before, eps=eps)
        if not self.preset.budget.keeps_pace(pace):
            return None
        moved = self._with_zeros(self._restored(Role.FIRST, first), first.number)
        after = elementwise.updates(Moments(moved, again), eps)
        if is_overshooting(before, after) or (self._is_to_go_as_far and is_falling_short(before, after)):
            return None
        if first.method is not Method.EXACT or second.method is not Method.EXACT:
            first = self._masked(first, restored)
        return [replace(second, pace=pace), first]

    def _restored(self, role: Role, moment: ChosenMoment) -> RawArray:
        """What a decoder yields for it (R, C), but for its exact zeros."""
        if moment.method is Method.EXACT:
            return self._stored(moment.number)
        return moment_method(moment.method, role).restored(moment.coded, self.known)

    def _eps(self, second: int) -> float:
        """Beside the root of a second moment as it is stored: Adam adds it to the root of one that is filled up."""
        group = self.inputs.group_of(second)
        eps = group.eps if group is not None and group.eps is not None else DEFAULT_EPS
        _, beta2 = group.betas if group is not None and group.betas is not None else DEFAULT_BETAS
        return max(eps * math.sqrt(filled_up(beta2, self.inputs.updates_of(second))), MIN_EPS)

    # Exact zeros

    @cached_property
    def _zeros(self) -> Mask | None:
        """(R, C): where all that is kept of a weight is 0; None where nothing is."""
        zeros: Mask | None = None
        for number in self.triple.moments:  # most weights have none
            own = self.values.of(self.triple.role_of(number)).numbers == 0
            zeros = own if zeros is None else zeros & own
            if not zeros.any():
                return None
        return zeros

    def _masked(self, first: ChosenMoment, second: RawArray | None) -> ChosenMoment:
        """The first moment with the mask of both, given the restored second (R, C)."""
        if self._zeros is None:
            return first
        return replace(first, zeros=encode_zeros(self._zeros, expected_in_moments(self.known, second)))

    def _with_zeros(self, restored: RawArray, number: int) -> Numbers:
        """What is restored of a moment, with its zeros, (R, C)."""
        masked = restored if self._zeros is None else without(restored, self._zeros)
        return to_numbers(masked, self.inputs.tensor(number).dtype)
