"""Streams + reference -> a checkpoint's tensors: NumPy on the CPU by definition, the same bits on every machine.

    index --> reference tensors, one by one --> reconstruction --> moments, payload by payload

Weights never depend on moments, so the weights of a chain decode without them. Malformed streams raise ValueError,
KeyError, TypeError, IndexError or struct.error (`MALFORMED`): the caller knows the archive and names it.

# R = rows, C = columns of a tensor seen as a matrix
"""

import struct
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Self

from ckzd.checkpoint import Bytes, RawArray, TensorSpec
from ckzd.codec.arrays import Mask, Plane
from ckzd.codec.dtypes import stored_array
from ckzd.codec.entropy.context import SideInformation
from ckzd.codec.entropy.models import Models, TableModel
from ckzd.codec.entropy.planes import decode_plane
from ckzd.codec.methods.coding import (
    ByUlps,
    CastOf,
    CopyOf,
    Exactly,
    Predicted,
    TensorCoding,
    Values,
    Way,
    WithLoss,
    following,
    restored_together,
)
from ckzd.codec.methods.method import Coded, KnownMoments, KnownWeight, PlaneMethod, plane_kind
from ckzd.codec.methods.registry import checked, is_lossy, moment_method, state_method, verbatim, weight_method
from ckzd.codec.methods.state import KnownState
from ckzd.codec.methods.ulps import ULPS, KnownBits
from ckzd.codec.methods.zeros import decode_zeros, expected_in_moments, without
from ckzd.codec.paper.lstm import LstmModel, LstmWeights, decode_lstm
from ckzd.codec.paper.refined import RefinedModel
from ckzd.codec.parallel import in_batches, in_order
from ckzd.codec.records.holes import MAX_BYTES
from ckzd.codec.records.index import Code, Index, Method
from ckzd.codec.records.layout import Layout, Role, Triple, plane_shape
from ckzd.codec.records.reconstruction import Arrays, Key, Reconstruction, ReconstructionWriter
from ckzd.codec.records.reference_tensors import (
    ReferenceTensor,
    put_reference_tensor,
    put_scales,
    reference_values,
)
from ckzd.codec.records.side import decode_scales
from ckzd.codec.scales import Scales, checked_scales
from ckzd.streams import StreamRef

MALFORMED = (ValueError, KeyError, TypeError, IndexError, struct.error)

Entry = Callable[[str], bytes]


class Decoder:
    """Decodes one archive's tensors. `stream` reads a stream; see `from_reference` and `from_own`."""

    def __init__(
        self,
        index: Index,
        stream: Callable[[StreamRef], bytes],
        *,
        scales: dict[int, Scales],
        lstm: bytes,
        tables: bytes,
        reference: Reconstruction | None,
    ) -> None:
        self.index, self.lstm = checked(index), lstm
        self._stream, self._reference, self._scales = stream, reference, scales
        table_model = TableModel.from_bytes(tables)
        refined = RefinedModel(table_model, LstmModel(LstmWeights.from_bytes(lstm))) if lstm else None
        self._models = Models(table_model, refined)
        self._roles = index.layout.roles()
        self._triple_of = {n: t for t in index.layout.triples for n in t.moments}

    @classmethod
    def from_reference(
        cls,
        entry: Entry,
        stream: Callable[[StreamRef], bytes],
        reference: Reconstruction | None,
        checkpoint_bytes: int = MAX_BYTES,
    ) -> Self:
        """A decoder of an archive's named entries (empty if absent) that has its reference; raises MALFORMED."""
        before = reference.blob("layout") if reference is not None else b""
        index = Index.from_bytes(entry("index"), before, checkpoint_bytes)
        scales = decode_scales(entry("scales"), index, reference)
        lstm = decode_lstm(entry("lstm"), reference)
        return cls(index, stream, scales=scales, lstm=lstm, tables=entry("tables"), reference=reference)

    @classmethod
    def from_own(cls, entry: Entry, stream: Callable[[StreamRef], bytes], own: Reconstruction) -> Self:
        """A decoder of payloads that has the archive's own reconstruction, and needs no reference; raises MALFORMED."""
        layout = Layout.from_json(own.blob("layout"))
        index, scales = Index.with_layout(entry("index"), layout), {}
        for triple in layout.triples:
            path = layout.tensors[triple.weight].path
            rows, columns = own.get(path, "rows"), own.get(path, "columns")
            if rows is None or columns is None:
                raise ValueError(f"tensor {path}: the reconstruction has no scales for it")
            scales[triple.weight] = checked_scales(rows, columns, index.reach)
        return cls(index, stream, scales=scales, lstm=own.blob("lstm"), tables=entry("tables"), reference=None)

    def decode_reference_tensors(self, into: ReconstructionWriter, only: Container[Key] | None = None) -> None:
        """Decode all tensors that dependents may refer to, with their context, in order.

        `only` those with these paths, which need no others (see `records/needed.py`); scales are put of all.
        """
        before = partial(into.get, field="weights")
        for numbers in self.index.turns():
            wanted = [number for number in numbers if only is None or self._tensor(number).path in only]
            for coding, found in in_batches(partial(self._batch, before), wanted, self._elements):
                tensor = found or following(coding, self._reference, before)
                put_reference_tensor(into, coding.tensor, tensor, coding.scales)
        for number, scales in self._scales.items():
            if only is not None and self._tensor(number).path not in only:
                put_scales(into, self._tensor(number), scales)

    def fingerprints(self) -> Iterator[bytes]:
        """Of what the streams say of all of them, in order: see `TensorCoding`."""
        numbers = chain.from_iterable(self.index.turns())
        return in_order(lambda number: self._coding(number).fingerprint(self.index.slack), numbers, self._elements)

    def payload(self, number: int, reconstruction: Arrays) -> Bytes:
        """The bytes of any tensor, given this archive's decoded reference tensors."""
        tensor, code = self._tensor(number), self.index.codes[number]
        values = reconstruction.get(tensor.path, "weights")
        if values is not None:
            return values.tobytes()
        if code.other >= 0:
            return self.payload(code.other, reconstruction)
        if not self._is_lossy(number):
            return self._exact(tensor, code)
        if self._roles[number] is Role.STATE:
            return self._state(number).tobytes()
        triple = self._triple_of[number]
        restored = self._moment(number, triple, reconstruction)
        if triple.first_moment in self.index.zeros:
            restored = without(restored, self._zeros_of_moments(triple, reconstruction))
        return restored.tobytes()

    # Reference tensors

    def _batch(self, before: Values, numbers: Sequence[int]) -> list[tuple[TensorCoding, ReferenceTensor | None]]:
        codings = [self._coding(number) for number in numbers]
        return list(zip(codings, restored_together(codings, self._reference, before, self.index.slack), strict=True))

    def _coding(self, number: int) -> TensorCoding:
        """What the archive says of a reference tensor."""
        return TensorCoding(self._tensor(number), self._scales.get(number), self._way(number))

    def _way(self, number: int) -> Way:
        tensor, code, steps = self._tensor(number), self.index.codes[number], self.index.steps
        if code.other >= 0:
            other = self._tensor(code.other)
            return CastOf(other.path, other.dtype) if code.method is Method.CAST else CopyOf(other.path)
        if code.method is Method.ULPS:
            bits = KnownBits(tensor, self._reference)
            return ByUlps(self._coded(number, ULPS, lambda head: ULPS.side_information(head, bits)), steps.step)
        if not self._is_lossy(number):
            return Exactly(stored_array(self._exact(tensor, code), tensor.dtype, tensor.shape))
        method, known = weight_method(code.method), KnownWeight(tensor, self._reference, self._scales[number])
        coded = self._coded(number, method, lambda head: method.side_information(head, known))
        step = method.step_of(steps, self.index.step_exponents.get(number, 0))
        zeros = self._zeros_stream(number) if number in self.index.zeros else None
        return WithLoss(code.method, coded, step, zeros, self._predicted(number))

    def _predicted(self, number: int) -> Predicted | None:
        found = self.index.predictions.get(number)
        return None if found is None else Predicted(found, self._tensor(found.other))

    # Moments

    def _moment(self, number: int, triple: Triple, reconstruction: Arrays) -> RawArray:
        """A moment (R, C), but for its exact zeros."""
        tensor, code = self._tensor(number), self.index.codes[number]
        if not self._is_lossy(number):
            return stored_array(self._exact(tensor, code), tensor.dtype, plane_shape(tensor.shape))
        known = self._known_moments(triple, reconstruction)
        method = moment_method(code.method, self._roles[number])
        return method.restored(self._coded(number, method, lambda _: method.side_information(known)), known)

    def _state(self, number: int) -> RawArray:
        """A lossy state (R, C)."""
        method = state_method(self.index.codes[number].method)
        known = KnownState(self._tensor(number), self._scales.get(self.index.layout.states.get(number, -1)))
        return method.restored(self._coded(number, method, lambda _: SideInformation()), known)

    def _known_moments(self, triple: Triple, reconstruction: Arrays) -> KnownMoments:
        return KnownMoments(
            weight=self._tensor(triple.weight),
            first=self._tensor(triple.first_moment),
            second=None if triple.second is None else self._tensor(triple.second),
            scales=self._scales[triple.weight],
            steps=self.index.steps,
            reconstruction=reconstruction,
            first_levels=partial(self._first_levels, triple, reconstruction),
        )

    def _first_levels(self, triple: Triple, reconstruction: Arrays) -> Plane:
        """Levels of the first moment, which the contexts of a second one's codebook see."""
        method = moment_method(self.index.codes[triple.first_moment].method, Role.FIRST)
        known = self._known_moments(triple, reconstruction)
        levels = self._coded(triple.first_moment, method, lambda _: method.side_information(known)).levels
        assert levels is not None, "the index was checked: both have codebooks"
        return levels

    def _zeros_of_moments(self, triple: Triple, reconstruction: Arrays) -> Mask:
        second = None if triple.second is None else self._moment(triple.second, triple, reconstruction)
        expected = expected_in_moments(self._known_moments(triple, reconstruction), second)
        return decode_zeros(self._zeros_stream(triple.first_moment), expected)

    # Streams

    def _tensor(self, number: int) -> TensorSpec:
        return self.index.layout.tensors[number]

    def _elements(self, number: int) -> int:
        return self._tensor(number).elements

    def _is_lossy(self, number: int) -> bool:
        return is_lossy(self.index.codes[number].method, self._roles[number])

    def _coded(self, number: int, method: PlaneMethod, side_information: Callable[[bytes], SideInformation]) -> Coded:
        """A stream taken apart, its plane decoded. What contexts see may depend on the head before it."""
        code, shape = self.index.codes[number], plane_shape(self._tensor(number).shape)
        data = b"" if code.stream is None else self._stream(code.stream)
        if not method.has_plane:
            return Coded(data)
        start = method.head_bytes(data, shape)
        head, kind = data[:start], plane_kind(method.name, self._roles[number])
        seen = side_information(head)
        return Coded(head, decode_plane(data[start:], method.form(head, shape), kind, seen, self._models))

    def _exact(self, tensor: TensorSpec, code: Code) -> Bytes:
        data = b"" if code.stream is None else self._stream(code.stream)
        return verbatim(code.method).decoded(data, tensor, reference_values(tensor, self._reference))

    def _zeros_stream(self, number: int) -> bytes:
        stream = self.index.zeros[number]
        return b"" if stream is None else self._stream(stream)
