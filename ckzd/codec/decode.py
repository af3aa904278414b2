"""Streams + reference -> a checkpoint's tensors: NumPy on the CPU by definition, the same bits on every machine.

    index --> weights, one by one --> reconstruction --> moments, payload by payload

Weights never depend on moments, so the weights of a chain decode without them. Malformed streams raise ValueError,
KeyError, TypeError, IndexError or struct.error (`MALFORMED`): the caller knows the archive and names it.

# R = rows, C = columns of a tensor seen as a matrix
"""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

from ckzd.checkpoint import Bytes, RawArray, TensorSpec
from ckzd.codec import scales as moments
from ckzd.codec.arrays import Mask, Plane
from ckzd.codec.dtypes import from_float64, stored_array
from ckzd.codec.entropy.context import FIRST, SECOND, WEIGHTS, Guide
from ckzd.codec.entropy.models import Models, RefinedModel, TableModel
from ckzd.codec.entropy.planes import decode_plane
from ckzd.codec.lossless.exact import decode_exact
from ckzd.codec.paper.lstm import LstmModel, LstmWeights
from ckzd.codec.parallel import in_batches
from ckzd.codec.records.index import Code, Index, Method, StreamRef
from ckzd.codec.records.layout import MAX_BYTES, Layout, Triple, plane_shape
from ckzd.codec.records.reconstruction import ArrayFile, Reconstruction, ReconstructionWriter
from ckzd.codec.records.side import decode_lstm, decode_scales
from ckzd.codec.restoring import (
    Kept,
    add_residual,
    filled,
    first_guide,
    frame_kept,
    framed_moment_step,
    itemsize_of,
    learned,
    moment_guide,
    put_kept,
    reference_values,
    restore_factored,
    restore_first,
    restore_framed,
    restore_framed_moment,
    restore_momentum,
    restore_relative,
    restore_scalar,
    restore_second,
    restore_trend,
    restore_whole,
    second_guide,
    trend_kept,
    weight_guide,
)
from ckzd.codec.scales import Scales, checked_scales
from ckzd.codec.transform import quantize, wide
from ckzd.codec.transform.adaptive_basis import Frame
from ckzd.codec.transform.factors import Factors, Head
from ckzd.codec.transform.quantize import Codebook, KmeansCode, ScalarCode
from ckzd.codec.zeros import decode_zeros, expected_in_moments, expected_in_weight, masked_weight, without

MALFORMED = (ValueError, KeyError, TypeError, IndexError, struct.error)

Entry = Callable[[str], bytes]

CENTRES = 3  # bytes that a scalar code's centres take in its stream
_WITH_LEVELS = (Method.WHOLE, Method.SCALAR, Method.FRAMED, Method.FACTORED, Method.KMEANS)


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
        self.index, self.lstm = index, lstm
        self._stream, self._reference, self._scales = stream, reference, scales
        table_model = TableModel.from_bytes(tables)
        refined = RefinedModel(table_model, LstmModel(LstmWeights.from_bytes(lstm))) if lstm else None
        self._models = Models(table_model, refined)
        self._triple_of = {n: t for t in index.layout.triples for n in t.moments}

    @classmethod
    def from_reference(
        cls,
        entry: Entry,
        stream: Callable[[StreamRef], bytes],
        reference: Reconstruction | None,
        checkpoint_bytes: int = MAX_BYTES,
    ) -> Self:
        """From the archive's named entries (empty if absent) and what it depends on."""
        before = reference.blob("layout") if reference is not None else b""
        index = Index.from_bytes(entry("index"), before, checkpoint_bytes)
        scales = decode_scales(entry("scales"), index.layout, reference, index.reach)
        lstm = decode_lstm(entry("lstm"), reference)
        return cls(index, stream, scales=scales, lstm=lstm, tables=entry("tables"), reference=reference)

    @classmethod
    def from_own(cls, entry: Entry, stream: Callable[[StreamRef], bytes], own: Reconstruction) -> Self:
        """From the archive's own reconstruction, which makes its reference unnecessary: for payloads only."""
        layout = Layout.from_json(own.blob("layout"))
        index, scales = Index.with_layout(entry("index"), layout), {}
        for triple in layout.triples:
            path = layout.tensors[triple.weight].path
            rows, columns = own.get(path, "rows"), own.get(path, "columns")
            if rows is None or columns is None:
                raise ValueError(f"tensor {path}: the reconstruction has no scales for it")
            scales[triple.weight] = checked_scales(rows, columns, index.reach)
        return cls(index, stream, scales=scales, lstm=own.blob("lstm"), tables=entry("tables"), reference=None)

    def decode_kept(self, into: ReconstructionWriter) -> None:
        """Decode all tensors that dependents may refer to, with their context, in order."""
        numbers = self.index.layout.kept
        decoded = in_batches(self._learned, numbers, lambda number: self.index.layout.tensors[number].elements)
        for number, kept in zip(numbers, decoded, strict=True):
            tensor = self.index.layout.tensors[number]
            put_kept(into, tensor, kept or self._copied(number, into), self._scales.get(number))

    def _copied(self, number: int, done: ArrayFile) -> Kept:
        tensor, code = self.index.layout.tensors[number], self.index.codes[number]
        values = stored_array(self.payload(code.other, done), tensor.dtype, tensor.shape)
        return Kept(values, frame=frame_kept(tensor, self._reference))

    def _learned(self, numbers: Sequence[int]) -> list[Kept | None]:
        return learned([self._masked(number, self._kept(number)) for number in numbers])

    def _masked(self, number: int, kept: Kept | None) -> Kept | None:
        """With its exact zeros."""
        if kept is None or number not in self.index.zeros:
            return kept
        tensor = self.index.layout.tensors[number]
        expected = expected_in_weight(reference_values(tensor, self._reference), plane_shape(tensor.shape))
        return replace(kept, values=masked_weight(kept.values, self._zeros(number, expected), tensor.dtype))

    def _zeros(self, number: int, expected: Mask) -> Mask:
        stream = self.index.zeros[number]
        return decode_zeros(b"" if stream is None else self._stream(stream), expected)

    def _kept(self, number: int) -> Kept | None:
        """One of them by itself, but for its exact zeros; None if it is a copy of another."""
        tensor, code = self.index.layout.tensors[number], self.index.codes[number]
        if code.method is Method.COPY:
            return None
        frame = frame_kept(tensor, self._reference)
        if code.method not in _WITH_LEVELS:
            return Kept(stored_array(self._exact(tensor, code), tensor.dtype, tensor.shape), frame=frame)
        if code.method is Method.WHOLE:
            return self._whole(number, tensor)
        before = reference_values(tensor, self._reference)
        if before is None:
            raise ValueError(f"tensor {tensor.path}: the reference does not have it")
        if code.method in (Method.FRAMED, Method.FACTORED):
            return self._in_frame(number, before, frame or Frame.unknown(*plane_shape(tensor.shape)))
        guide = weight_guide(tensor, self._reference)
        if code.method is Method.KMEANS:
            kmeans = self._codebook_plane(self._bytes(code), tensor, WEIGHTS, guide)
            values = add_residual(before, quantize.dequantize_kmeans(kmeans), tensor.dtype)
            return Kept(values, kmeans.levels, frame)
        scalar = self._scalar_plane(self._bytes(code), tensor, WEIGHTS, guide)
        values = restore_scalar(before, scalar, self._scales[number], self.index.step_of(number), tensor.dtype)
        return Kept(values, scalar.levels, frame)

    def _in_frame(self, number: int, before: RawArray, frame: Frame) -> Kept:
        """A weight from which its frame learns, coded in it or as factors."""
        tensor, code = self.index.layout.tensors[number], self.index.codes[number]
        data, scales, step = self._bytes(code), self._scales[number], self.index.step_of(number)
        if code.method is Method.FACTORED:
            factors = self._factors(data, tensor)
            return restore_factored(before, factors, frame, scales, step=step, dtype=tensor.dtype)
        scalar = self._scalar_plane(data, tensor, WEIGHTS, weight_guide(tensor, self._reference))
        return restore_framed(before, scalar, frame, scales, step=step, dtype=tensor.dtype)

    def _whole(self, number: int, tensor: TensorSpec) -> Kept:
        data = self._bytes(self.index.codes[number])
        start = wide.packed_bytes(data, math.prod(tensor.shape))
        high = self._plane(data[start:], tensor, WEIGHTS, weight_guide(tensor, self._reference))
        levels = wide.joined(data[:start], high)
        return Kept(restore_whole(levels, self._scales[number], self.index.step_of(number), tensor.dtype))

    def payload(self, number: int, kept: ArrayFile | Reconstruction) -> Bytes:
        """The bytes of any tensor, given this archive's decoded kept tensors."""
        tensor, code = self.index.layout.tensors[number], self.index.codes[number]
        values = kept.get(tensor.path, "weights")
        if values is not None:
            return values.tobytes()
        if code.method is Method.COPY:
            return self.payload(code.other, kept)
        if number not in self._triple_of or code.method is Method.EXACT:
            return self._exact(tensor, code)
        triple = self._triple_of[number]
        restored = self._second(number, triple, kept) if number == triple.second else self._first(triple, kept)
        if triple.first in self.index.zeros:
            restored = without(restored, self._zeros_of_moments(triple, kept))
        return restored.tobytes()

    def _zeros_of_moments(self, triple: Triple, kept: ArrayFile | Reconstruction) -> Mask:
        weight = kept.get(self.index.layout.tensors[triple.weight].path, "weights")
        if weight is None:
            raise ValueError(f"tensor {triple.first}: its weight is not there")
        second = None if triple.second is None else self._second(triple.second, triple, kept)
        energy = moments.product_of(self._scales[triple.weight]) if second is None else second
        return self._zeros(triple.first, expected_in_moments(weight, energy))

    def _second(self, number: int, triple: Triple, kept: ArrayFile | Reconstruction) -> RawArray:
        """But for its exact zeros."""
        tensor, code = self.index.layout.tensors[number], self.index.codes[number]
        kmeans = None
        if code.method is Method.EXACT:
            return stored_array(self._exact(tensor, code), tensor.dtype, plane_shape(tensor.shape))
        if code.method is Method.SCALED:
            levels = self._plane(self._bytes(code), tensor, SECOND, Guide())
            return restore_relative(levels, self._scales[triple.weight], tensor.dtype)
        if code.method is Method.KMEANS:
            guide = second_guide(self._first_kmeans(triple, kept).levels, self._scales[triple.weight])
            kmeans = self._codebook_plane(self._bytes(code), tensor, SECOND, guide)
        return restore_second(kmeans, self._scales[triple.weight], tensor.dtype)

    def _first(self, triple: Triple, kept: ArrayFile | Reconstruction) -> RawArray:
        tensor, code = self.index.layout.tensors[triple.first], self.index.codes[triple.first]
        if code.method is Method.KMEANS:
            return from_float64(quantize.dequantize_kmeans(self._first_kmeans(triple, kept)), tensor.dtype)
        weight, scales, steps = self.index.layout.tensors[triple.weight], self._scales[triple.weight], self.index.steps
        if code.method is Method.TREND:
            trend = trend_kept(weight, kept)
            if trend is None:
                raise ValueError(f"tensor {tensor.path}: its weight has no trend")
            return restore_trend(self._bytes(code), trend, scales, tensor.dtype)
        if code.method is Method.FRAMED:
            frame = frame_kept(weight, kept)
            if frame is None:
                raise ValueError(f"tensor {tensor.path}: its weight has no frame")
            scalar = self._scalar_plane(self._bytes(code), tensor, FIRST, moment_guide(weight, kept))
            step = framed_moment_step(steps, triple, scales)
            return restore_framed_moment(scalar, frame, scales, step, tensor.dtype)
        levels = self._plane(self._bytes(code), tensor, FIRST, moment_guide(weight, kept))
        if triple.second is None:
            return restore_momentum(levels, scales, steps.momentum_step, tensor.dtype)
        second = filled(scales, self.index.layout.tensors[triple.second].dtype)
        return restore_first(levels, second, steps.moment_step, tensor.dtype)

    def _first_kmeans(self, triple: Triple, kept: ArrayFile | Reconstruction) -> KmeansCode:
        data = self._bytes(self.index.codes[triple.first])
        tensor = self.index.layout.tensors[triple.first]
        weight = self.index.layout.tensors[triple.weight]
        return self._codebook_plane(data, tensor, FIRST, first_guide(weight, kept, self._scales[triple.weight]))

    def _exact(self, tensor: TensorSpec, code: Code) -> Bytes:
        before = reference_values(tensor, self._reference)
        if code.method in (Method.SAME, Method.DELTA) and before is None:
            raise ValueError(f"tensor {tensor.path}: the reference does not have it")
        if code.method is Method.SAME and before is not None:
            return before.tobytes()
        reference = before.tobytes() if code.method is Method.DELTA and before is not None else None
        return decode_exact(self._bytes(code), tensor.nbytes, itemsize_of(tensor), reference)

    def _bytes(self, code: Code) -> bytes:
        if code.stream is None:
            raise ValueError(f"a tensor coded as {code.method} has no stream")
        return self._stream(code.stream)

    def _plane(self, data: bytes, tensor: TensorSpec, kind: int, guide: Guide) -> Plane:
        return decode_plane(data, plane_shape(tensor.shape), kind, guide, self._models)

    def _scalar_plane(self, data: bytes, tensor: TensorSpec, kind: int, guide: Guide) -> ScalarCode:
        return ScalarCode(self._plane(data[CENTRES:], tensor, kind, guide), data[:CENTRES])

    def _factors(self, data: bytes, tensor: TensorSpec) -> Factors:
        rows, columns = shape = plane_shape(tensor.shape)
        head = Head.of(data, shape)
        form = rows + columns, head.codes.size
        return head.joined(decode_plane(data[head.nbytes :], form, WEIGHTS, head.guide(shape), self._models), rows)

    def _codebook_plane(self, data: bytes, tensor: TensorSpec, kind: int, guide: Guide) -> KmeansCode:
        codebook, start = Codebook.from_bytes(data)
        return KmeansCode(self._plane(data[start:], tensor, kind, guide), codebook)
