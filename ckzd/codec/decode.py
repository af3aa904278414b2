"""Streams + reference -> a checkpoint's tensors: NumPy on the CPU by definition, the same bits on every machine.

    index --> weights, one by one --> reconstruction --> moments, payload by payload

Weights never depend on moments, so the weights of a chain decode without them. Malformed streams raise ValueError,
KeyError, TypeError, IndexError or struct.error (`MALFORMED`): the caller knows the archive and names it.

# R = rows, C = columns of a tensor seen as a matrix
"""

import struct
from collections.abc import Callable
from typing import Self

import numpy as np
import numpy.typing as npt

from ckzd.checkpoint import STORED_AS, Bytes, RawArray, TensorSpec
from ckzd.codec import moments, quantize, zstd
from ckzd.codec.arrays import ContextLevels, Float64, Plane
from ckzd.codec.context import Guide
from ckzd.codec.dtypes import from_float64, stored_array, to_float64
from ckzd.codec.exact import decode_exact
from ckzd.codec.index import Code, Index, Layout, Method, StreamRef, layer_before, plane_shape
from ckzd.codec.lstm import LSTM_BYTES, LstmModel, LstmWeights
from ckzd.codec.models import Models, RefinedModel, TableModel
from ckzd.codec.moments import Scales
from ckzd.codec.pairing import Triple
from ckzd.codec.planes import decode_plane
from ckzd.codec.quantize import Codebook, KmeansCode, ScalarCode
from ckzd.codec.reconstruction import ArrayFile, Reconstruction, ReconstructionWriter

MALFORMED = (ValueError, KeyError, TypeError, IndexError, struct.error)

Entry = Callable[[str], bytes]

WEIGHTS, FIRST, SECOND = range(3)  # plane kinds
CENTRES = 3  # bytes that a scalar code's centres take in its stream


def levels_for_context(levels: Plane) -> ContextLevels:
    """What later planes see of these levels."""
    return np.clip(levels, -127, 127).astype(np.int8)


def weight_guide(tensor: TensorSpec, reference: Reconstruction | None) -> Guide:
    """The reference's residual at the same place, and one layer earlier."""
    if reference is None:
        return Guide()
    shape = plane_shape(tensor.shape)
    before = layer_before(tensor.path)
    return Guide(_levels(reference, tensor.path, shape), _levels(reference, before, shape) if before else None)


def _levels(arrays: Reconstruction | ArrayFile, path: tuple[str, ...], shape: tuple[int, int]) -> ContextLevels | None:
    found = arrays.get(path, "levels")
    return found.astype(np.int8) if found is not None and found.shape == shape else None


def reference_values(tensor: TensorSpec, reference: Reconstruction | None) -> RawArray | None:
    """The reference's stored values of this tensor, if it has them in the same dtype and shape."""
    found = reference.get(tensor.path, "weights") if reference is not None else None
    if found is None or found.shape != tensor.shape or found.dtype != STORED_AS.get(tensor.dtype):
        return None
    return found


def add_residual(before: RawArray, residual: Float64, dtype: str) -> RawArray:
    """Reference + residual in float64, rounded once. A non-finite reference counts as 0: it must not spread."""
    values = to_float64(before, dtype)
    return from_float64(np.where(np.isfinite(values), values, 0.0) + residual.reshape(before.shape), dtype)


def restore_second(code: quantize.KmeansCode | None, scales: Scales, dtype: str) -> RawArray:
    """The rank-1 fill (R, C), with codebook values where a second moment was kept."""
    filled = moments.fill(scales, dtype)
    if code is None:
        return filled
    return np.where(code.levels != 0, from_float64(quantize.dequantize_kmeans(code), dtype), filled)


def restore_scalar(before: RawArray, code: quantize.ScalarCode, scales: Scales, step: float, dtype: str) -> RawArray:
    """A weight from its Fisher-weighted scalar residual."""
    weighted = quantize.dequantize_scalar(code, step)
    return add_residual(before, quantize.weigher_of(scales).unweigh(weighted), dtype)


def restore_first(levels: Plane, second: RawArray, step: float, dtype: str) -> RawArray:
    """A first moment (R, C) from its levels and the restored second moment (R, C)."""
    return from_float64(moments.restore_first(levels, to_float64(second, dtype), step), dtype)


def scale_differences(
    layout: Layout, scales: dict[int, Scales], reference: Reconstruction | None, *, sign: int
) -> dict[int, Scales]:
    """Scales less (sign -1) or plus (sign 1) the reference's, by weight number; int16 arithmetic wraps."""
    found = {}
    for number, own in scales.items():
        path = layout.tensors[number].path
        parts = []
        for field, codes in (("rows", own.rows), ("columns", own.columns)):
            before = reference.get(path, field) if reference is not None else None
            if before is None or before.shape != codes.shape:
                before = np.zeros_like(codes)
            parts.append((codes + sign * before.astype(np.int16)).astype(np.int16))
        found[number] = Scales(*parts)
    return found


def decode_scales(data: bytes, layout: Layout, reference: Reconstruction | None) -> dict[int, Scales]:
    """Scales by weight number: one plane of differences for all triples in order, rows before columns."""
    shapes = {t.weight: plane_shape(layout.tensors[t.weight].shape) for t in layout.triples}
    count = sum(rows + columns for rows, columns in shapes.values())
    if not count:
        return {}
    plane = decode_plane(data, (count, 1), WEIGHTS, Guide(), Models())[:, 0]
    ends = np.cumsum([size for shape in shapes.values() for size in shape])[:-1]
    parts = iter(np.split(plane, ends))
    return scale_differences(layout, {n: Scales(next(parts), next(parts)) for n in shapes}, reference, sign=1)


def decode_lstm(data: bytes, reference: Reconstruction | None) -> bytes:
    """The archive's LSTM weights: zstd of the int8 differences to the reference's; nothing if there are none."""
    if not data:
        return b""
    plain = zstd.decompress_exactly(data, LSTM_BYTES)
    return (np.frombuffer(plain, np.uint8) + _lstm_before(reference)).tobytes()


def encode_lstm(weights: bytes, reference: Reconstruction | None) -> bytes:
    """The inverse of `decode_lstm`."""
    difference = np.frombuffer(weights, np.uint8) - _lstm_before(reference)
    return zstd.compress(difference.tobytes())


def _lstm_before(reference: Reconstruction | None) -> npt.NDArray[np.uint8]:
    before = reference.blob("lstm") if reference is not None else b""
    return np.frombuffer(before, np.uint8) if len(before) == LSTM_BYTES else np.zeros(LSTM_BYTES, np.uint8)


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
        self._triple_of = {n: t for t in index.layout.triples for n in (t.first, t.second)}

    @classmethod
    def from_reference(
        cls, entry: Entry, stream: Callable[[StreamRef], bytes], reference: Reconstruction | None
    ) -> Self:
        """From the archive's named entries (empty if absent) and what it depends on."""
        index = Index.from_bytes(entry("index"), reference.blob("layout") if reference is not None else b"")
        scales = decode_scales(entry("scales"), index.layout, reference)
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
            scales[triple.weight] = Scales(rows.astype(np.int16), columns.astype(np.int16))
        return cls(index, stream, scales=scales, lstm=own.blob("lstm"), tables=entry("tables"), reference=None)

    def decode_kept(self, into: ReconstructionWriter) -> None:
        """Decode all tensors that dependents may refer to, with their context, in order."""
        for number in self.index.layout.kept:
            tensor = self.index.layout.tensors[number]
            values, levels = self._kept(number, tensor, into)
            put_kept(into, tensor, values, levels, self._scales.get(number))

    def _kept(self, number: int, tensor: TensorSpec, done: ArrayFile) -> tuple[RawArray, Plane | None]:
        code = self.index.codes[number]
        if code.method not in (Method.SCALAR, Method.KMEANS):
            return stored_array(self._exact(number, tensor, code, done), tensor.dtype, tensor.shape), None
        before = reference_values(tensor, self._reference)
        if before is None:
            raise ValueError(f"tensor {tensor.path}: the reference does not have it")
        guide, data = weight_guide(tensor, self._reference), self._bytes(code)
        if code.method is Method.SCALAR:
            levels = self._plane(data[CENTRES:], tensor, WEIGHTS, guide)
            scalar = ScalarCode(levels, data[:CENTRES])
            return restore_scalar(before, scalar, self._scales[number], self.index.step, tensor.dtype), levels
        kmeans = self._codebook_plane(data, tensor, WEIGHTS, guide)
        return add_residual(before, quantize.dequantize_kmeans(kmeans), tensor.dtype), kmeans.levels

    def payload(self, number: int, kept: ArrayFile | Reconstruction) -> Bytes:
        """The bytes of any tensor, given this archive's decoded kept tensors."""
        tensor, code = self.index.layout.tensors[number], self.index.codes[number]
        values = kept.get(tensor.path, "weights")
        if values is not None:
            return values.tobytes()
        if number in self._triple_of and code.method in (Method.FILL, Method.KMEANS, Method.SCALED):
            triple = self._triple_of[number]
            restore = self._second if number == triple.second else self._first
            return restore(triple, kept).tobytes()
        return self._exact(number, tensor, code, kept)

    def _second(self, triple: Triple, kept: ArrayFile | Reconstruction) -> RawArray:
        tensor, code = self.index.layout.tensors[triple.second], self.index.codes[triple.second]
        kmeans = None
        if code.method is Method.KMEANS:
            guide = Guide(levels_for_context(self._first_kmeans(triple, kept).levels))
            kmeans = self._codebook_plane(self._bytes(code), tensor, SECOND, guide)
        return restore_second(kmeans, self._scales[triple.weight], tensor.dtype)

    def _first(self, triple: Triple, kept: ArrayFile | Reconstruction) -> RawArray:
        tensor, code = self.index.layout.tensors[triple.first], self.index.codes[triple.first]
        if code.method is Method.KMEANS:
            return from_float64(quantize.dequantize_kmeans(self._first_kmeans(triple, kept)), tensor.dtype)
        levels = self._plane(self._bytes(code), tensor, FIRST, self._moment_guide(triple, kept))
        return restore_first(levels, self._second(triple, kept), self.index.moment_step, tensor.dtype)

    def _first_kmeans(self, triple: Triple, kept: ArrayFile | Reconstruction) -> KmeansCode:
        data = self._bytes(self.index.codes[triple.first])
        tensor = self.index.layout.tensors[triple.first]
        return self._codebook_plane(data, tensor, FIRST, self._moment_guide(triple, kept))

    def _moment_guide(self, triple: Triple, kept: ArrayFile | Reconstruction) -> Guide:
        return moment_guide(self.index.layout.tensors[triple.weight], kept)

    def _exact(self, number: int, tensor: TensorSpec, code: Code, kept: ArrayFile | Reconstruction) -> Bytes:
        if code.method is Method.COPY:
            if not 0 <= code.other < number:
                raise ValueError(f"tensor {tensor.path}: a copy of tensor {code.other}")
            return self.payload(code.other, kept)
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

    def _codebook_plane(self, data: bytes, tensor: TensorSpec, kind: int, guide: Guide) -> KmeansCode:
        codebook, start = Codebook.from_bytes(data)
        return KmeansCode(self._plane(data[start:], tensor, kind, guide), codebook)


def moment_guide(weight: TensorSpec, kept: ArrayFile | Reconstruction) -> Guide:
    """The weight's own levels guide its first moment's."""
    return Guide(_levels(kept, weight.path, plane_shape(weight.shape)))


def itemsize_of(tensor: TensorSpec) -> int:
    """Bytes an element; 1 for an opaque dtype."""
    return STORED_AS[tensor.dtype].itemsize if tensor.dtype in STORED_AS else 1


def put_kept(
    into: ArrayFile, tensor: TensorSpec, values: RawArray, levels: Plane | None, scales: Scales | None
) -> None:
    """Store what dependents need of one tensor, in the canonical order of fields."""
    into.put(tensor.path, "weights", values.reshape(tensor.shape))
    if levels is not None:
        into.put(tensor.path, "levels", levels_for_context(levels))
    if scales is not None:
        into.put(tensor.path, "rows", scales.rows)
        into.put(tensor.path, "columns", scales.columns)


def seal(writer: ReconstructionWriter, lstm: bytes, skeleton: bytes, layout: bytes) -> str:
    """Add the blobs that dependents need and close the reconstruction; returns its id."""
    for field, data in (("lstm", lstm), ("skeleton", skeleton), ("layout", layout)):
        writer.put_blob(field, data)
    return writer.finish()
