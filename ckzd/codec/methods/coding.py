"""What an archive says of one reference tensor, and what that restores to.

A decoder reads it from streams. Whoever restores ahead of them (`codec/ahead.py`) is told it by the encoder, and its
fingerprint then says whether the streams hold the same: nothing decides what is restored but it, the reference, and
the values of those that were restored before it, where it follows others.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ckzd.checkpoint import RawArray, TensorSpec
from ckzd.codec.dtypes import stored_array
from ckzd.codec.methods.method import Coded, KnownWeight
from ckzd.codec.methods.registry import weight_method
from ckzd.codec.methods.ulps import ULPS, KnownBits
from ckzd.codec.methods.zeros import decode_zeros, expected_in_weight, masked_weight
from ckzd.codec.records.index import LinearPrediction, Method
from ckzd.codec.records.reconstruction import Key, Reconstruction
from ckzd.codec.records.reference_tensors import (
    ReferenceTensor,
    basis_of,
    cast_values,
    predicted_values,
    reference_values,
    with_tracked_bases,
)
from ckzd.codec.scales import Scales

Values = Callable[[Key], RawArray | None]  # of reference tensors that were restored before, by path


@dataclass(frozen=True, slots=True)
class Exactly:
    """It loses nothing: these are its values, in its shape and stored dtype."""

    values: RawArray


@dataclass(frozen=True, slots=True)
class CopyOf:
    """Its bytes are those of a reference tensor that was restored before."""

    path: Key


@dataclass(frozen=True, slots=True)
class CastOf:
    """Its values are those of such a tensor of another dtype, each rounded once."""

    path: Key
    dtype: str


@dataclass(frozen=True, slots=True)
class ByUlps:
    """It loses nothing: how far each element moved. With the step of all weights, its first moment may follow that."""

    coded: Coded
    step: float


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a weight's residual is against where that is not the reference, and the tensor that it follows."""

    by: LinearPrediction
    other: TensorSpec

    def values(self, tensor: TensorSpec, reference: Reconstruction | None, before: Values) -> RawArray:
        """The prediction of `tensor`, in its shape; ValueError where what it needs is not there."""
        now = _restored_before(tensor, self.other.path, before)
        return predicted_values(tensor, self.by, reference, self.other, now)

    def words(self) -> list[object]:
        """All of it, as JSON has it."""
        by = self.by
        return [by.other, float(by.own), float(by.now), float(by.before), _words_of(self.other)]


@dataclass(frozen=True, slots=True)
class WithLoss:
    """A weight with scales: head and levels, what a level is worth, and what its mask of exact zeros is coded as."""

    method: Method
    coded: Coded
    step: float  # 0 of codebooks, which have none
    zeros: bytes | None  # None: it has no mask
    predicted: Predicted | None  # None: its residual is against the reference, if there is one


Way = Exactly | CopyOf | CastOf | ByUlps | WithLoss


@dataclass(frozen=True, slots=True)
class TensorCoding:
    """All that one reference tensor restores from, beside the reference."""

    tensor: TensorSpec
    scales: Scales | None
    way: Way

    def arrays(self) -> dict[str, RawArray]:
        """What of it is large, by name."""
        found: dict[str, RawArray] = {}
        if self.scales is not None:
            found |= {"rows": self.scales.rows, "columns": self.scales.columns}
        match self.way:
            case Exactly(values):
                found["values"] = values
            case ByUlps(coded):
                found |= _arrays_of(coded)
            case WithLoss(_, coded, _, zeros):
                found |= _arrays_of(coded)
                if zeros is not None:
                    found["zeros"] = np.frombuffer(zeros, np.uint8)
        return found

    def words(self) -> list[object]:
        """The rest of it, as JSON has it."""
        return [_words_of(self.tensor), self.scales and self.scales.reach, self._words_of_way()]

    def _words_of_way(self) -> list[object]:
        match self.way:
            case Exactly():
                return ["exactly"]
            case CopyOf(path):
                return ["copy of", list(path)]
            case CastOf(path, dtype):
                return ["cast of", list(path), dtype]
            case ByUlps(_, step):
                return ["by ulps", float(step)]
            case WithLoss(method, _, step, _, predicted):
                return ["with loss", method.value, float(step), predicted and predicted.words()]

    def fingerprint(self, slack: int | None) -> bytes:
        """Sha256 of it, and of the `slack` that bases learn with: equal for equal ones alone."""
        arrays = self.arrays()
        forms = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
        digest = hashlib.sha256(json.dumps([self.words(), forms, slack]).encode())
        for array in arrays.values():
            digest.update(np.ascontiguousarray(array).data)
        return digest.digest()

    def restored(self, reference: Reconstruction | None, before: Values) -> ReferenceTensor | None:
        """The tensor, but for what its basis learns; None if it has another's values.

        ValueError for what no encoder writes.
        """
        match self.way:
            case CopyOf() | CastOf():
                return None
            case Exactly(values):
                return ReferenceTensor(values, basis=basis_of(self.tensor, reference))
            case ByUlps(coded, step):
                return ULPS.restored(coded, KnownBits(self.tensor, reference, self.scales, step))
            case WithLoss() as way:
                return self._with_loss(way, reference, before)

    def _with_loss(self, way: WithLoss, reference: Reconstruction | None, before: Values) -> ReferenceTensor:
        assert self.scales is not None, "only weights with scales lose something"
        predicted = None if way.predicted is None else way.predicted.values(self.tensor, reference, before)
        known = KnownWeight(self.tensor, reference, self.scales, predicted=predicted)
        found = weight_method(way.method).restored(way.coded, known, way.step)
        if way.zeros is None:
            return found
        mask = decode_zeros(way.zeros, expected_in_weight(reference_values(self.tensor, reference), known.shape))
        return replace(found, values=masked_weight(found.values, mask, self.tensor.dtype))


def restored_together(
    codings: Sequence[TensorCoding], reference: Reconstruction | None, before: Values, slack: int | None
) -> list[ReferenceTensor | None]:
    """Some of them, None for those with others' values: of several together bases cost less."""
    return with_tracked_bases([coding.restored(reference, before) for coding in codings], slack)


def following(coding: TensorCoding, reference: Reconstruction | None, before: Values) -> ReferenceTensor:
    """What a copy or a cast restores to, once the other is there."""
    tensor, way = coding.tensor, coding.way
    assert isinstance(way, CopyOf | CastOf), "all others have values of their own"
    found = _restored_before(tensor, way.path, before)
    if isinstance(way, CastOf):
        values = cast_values(found, way.dtype, tensor)
    else:
        values = stored_array(found.tobytes(), tensor.dtype, tensor.shape)
    return ReferenceTensor(values, basis=basis_of(tensor, reference))


def _restored_before(tensor: TensorSpec, path: Key, before: Values) -> RawArray:
    found = before(path)
    if found is None:
        raise ValueError(f"tensor {tensor.path}: it follows {path}, which is not there yet")
    return found


def _arrays_of(coded: Coded) -> dict[str, RawArray]:
    head = np.frombuffer(coded.head, np.uint8)
    return {"head": head} if coded.levels is None else {"head": head, "levels": coded.levels}


def _words_of(tensor: TensorSpec) -> list[object]:
    return [list(tensor.path), tensor.dtype, list(tensor.shape), tensor.nbytes, list(tensor.stack)]
