"""How a tensor that loses nothing is coded: by ulps where that is smallest, else as before.

What tables make of a plane is known once all planes are; until then it is estimated. A tensor that an estimate leaves
in doubt is coded in the other way too, and that stream is kept if it is the smaller one.
"""

from dataclasses import dataclass

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.survey import Survey
from ckzd.codec.choose_weights import ChosenWeight
from ckzd.codec.entropy.fitting import estimated_bits
from ckzd.codec.entropy.planes import PlaneToCode
from ckzd.codec.methods.method import Coded, KnownWeight, plane_kind
from ckzd.codec.methods.registry import weight_method
from ckzd.codec.methods.ulps import ULPS, KnownBits
from ckzd.codec.methods.verbatim import encoded_exactly
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Role
from ckzd.codec.records.reference_tensors import ReferenceTensor, basis_of

_CERTAIN_SHARE = 0.25  # of a tensor's elements, or fewer, changed: then it is smallest by ulps
_CERTAIN = 1 << 16  # elements: of smaller tensors both ways are tried in any case
_PLANE_BITS = 72.0  # of what stands in a stream before its symbols
_MARGIN = 1.02  # of an estimate
_WORTH_ALONE = 2.0  # times the bits of a loss: exactly it takes 1 to 1.8 of them, and the next one goes on exactly


@dataclass(frozen=True, slots=True)
class ChosenExact:
    """A reference tensor that loses nothing: how it is coded, and what it is to dependents."""

    method: Method
    restored: ReferenceTensor  # of a copy or a cast without the values: they follow from the other tensor's
    coded: Coded | None = None  # by ulps
    stream: bytes | None = None  # of another way, if it had to be tried


@dataclass(frozen=True, slots=True)
class ExactChooser:
    """Codes reference tensors exactly, one by one."""

    inputs: Inputs
    survey: Survey
    preset: Preset

    def chosen(self, number: int, stored: RawArray) -> ChosenExact:
        """The smallest of all ways."""
        basis = basis_of(self.inputs.tensor(number), self.inputs.reference)
        as_it_is = ReferenceTensor(stored, basis=basis)
        if number in self.survey.casts:
            return ChosenExact(Method.CAST, as_it_is)
        if number in self.survey.copies:
            return ChosenExact(Method.COPY, as_it_is)
        if number in self.survey.same:
            return ChosenExact(Method.SAME, as_it_is)
        coded = self._by_ulps(number, stored)
        if coded is None or coded.levels is None:
            return ChosenExact(Method.EXACT, as_it_is)
        tensor, known = self.inputs.tensor(number), self._known(number)
        if tensor.elements < _CERTAIN or np.count_nonzero(coded.levels) > _CERTAIN_SHARE * tensor.elements:
            method, stream = encoded_exactly(stored.tobytes(), tensor, self.inputs.before(number))
            if 8 * len(stream) <= _MARGIN * self._bits(coded, known):
                return ChosenExact(method, as_it_is, stream=stream)
        return ChosenExact(Method.ULPS, ULPS.restored(coded, known), coded)

    def instead_of(
        self, weight: ChosenWeight, known: KnownWeight, number: int, stored: RawArray, *, is_alone: bool
    ) -> ChosenExact | None:
        """A weight that takes no more bits exactly than as it was chosen; None if it takes more.

        One without moments, that nothing but its numbers speaks for, may take more where few of them changed.
        """
        coded = self._by_ulps(number, stored)
        if coded is None or coded.levels is None or weight.coded.levels is None:
            return None
        exactly = self._known(number)
        method, head = weight_method(weight.method), weight.coded.head
        plane = PlaneToCode(
            0, plane_kind(weight.method, Role.WEIGHT), weight.coded.levels, method.side_information(head, known)
        )
        is_sparse = np.count_nonzero(coded.levels) <= _CERTAIN_SHARE * coded.levels.size
        worth = _WORTH_ALONE if is_alone and is_sparse else 1.0
        if self._bits(coded, exactly) > worth * (8 * len(head) + estimated_bits(plane)):
            return None
        return ChosenExact(Method.ULPS, ULPS.restored(coded, exactly), coded)

    def _by_ulps(self, number: int, stored: RawArray) -> Coded | None:
        if self.preset.scheme is Scheme.KMEANS:  # as it was published
            return None
        return ULPS.coded(stored, self._known(number))

    def _known(self, number: int) -> KnownBits:
        scales, step = self.survey.scales.get(number), self.survey.steps.step
        return KnownBits(self.inputs.tensor(number), self.inputs.reference, scales, step)

    def _bits(self, coded: Coded, known: KnownBits) -> float:
        assert coded.levels is not None, "it has a plane"
        kind, seen = plane_kind(Method.ULPS, Role.REFERENCE), ULPS.side_information(coded.head, known)
        return _PLANE_BITS + estimated_bits(PlaneToCode(0, kind, coded.levels, seen))
