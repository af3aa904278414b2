"""A checkpoint + its reference's reconstruction -> streams, in a few passes that each hold one tensor at a time.

    survey      read everything once: damage, copies, scales, the energy that sets the quantizer's step
    transform   tensors -> levels; decoded weights go to the reconstruction, levels to scratch
    model       histograms of all contexts -> tables and LSTM
    code        levels -> streams
    seal        index, skeleton, LSTM, scales; the reconstruction's id
    digest      the bytes that a restore will write -> sha256 of each file

Everything a decoder does (context, probabilities, reconstruction) is called from the modules that the decoder uses.

# R = rows, C = columns of a tensor seen as a matrix
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from ckzd.checkpoint import STORED_AS, Bytes, Checkpoint, RawArray, TensorSpec, assemble
from ckzd.codec import kmeans, moments, quantize, train, zstd
from ckzd.codec.arrays import Float64, Plane
from ckzd.codec.context import Guide
from ckzd.codec.decode import (
    FIRST,
    SECOND,
    WEIGHTS,
    add_residual,
    encode_lstm,
    itemsize_of,
    levels_for_context,
    moment_guide,
    put_kept,
    reference_values,
    restore_first,
    restore_scalar,
    restore_second,
    scale_differences,
    seal,
    weight_guide,
)
from ckzd.codec.dtypes import from_float64, is_finite, stored_array, to_float64
from ckzd.codec.exact import encode_exact
from ckzd.codec.index import Code, Index, Layout, Method, StreamRef, plane_shape, skeleton_of
from ckzd.codec.lstm import LSTM_BYTES, LstmModel, LstmWeights
from ckzd.codec.models import Histograms, Models, RefinedModel, TableModel, cost_bits
from ckzd.codec.moments import Scales
from ckzd.codec.pairing import Triple, pair
from ckzd.codec.planes import encode_plane, histograms_of
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.quantize import KmeansCode
from ckzd.codec.reconstruction import ArrayFile, Reconstruction, ReconstructionWriter
from ckzd.errors import BadCheckpoint

_STEADY_SIGNAL = 2.0  # first moments are coded where they hold more than this times the energy of pure noise
_YOUNG_MEMORIES = 60  # steps in units of 1 / (1 - beta1): before, a lost memory is a visible part of the progress
_LONG_MEMORY = 0.905  # a beta1 above this averages over more than about 10 steps: never dropped


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the encoder says of an archive beside its streams."""

    reconstruction: str
    parameters: int  # elements of the float tensors that are no optimizer state
    original_sha256: tuple[str, ...]  # of each file
    restored_sha256: tuple[str, ...]
    parts: dict[str, int]  # bytes by part
    coders: dict[str, int]  # tensors by coder
    quality: dict[str, float]


@dataclass(slots=True)
class _Survey:
    scales: dict[int, Scales] = field(default_factory=dict)  # by weight number
    lossy: list[Triple] = field(default_factory=list)
    copies: dict[int, int] = field(default_factory=dict)
    same: set[int] = field(default_factory=set)
    energy: float = 0.0
    elements: int = 0
    update_energy: float = 0.0
    update_elements: int = 0


class Encoder:
    """Encodes one checkpoint. `put(kind, data)` stores a stream, `add(name, data)` an entry."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        reference: Reconstruction | None,
        preset: Preset,
        *,
        put: Callable[[str, bytes], StreamRef],
        add: Callable[[str, bytes], None],
        reconstruction: BinaryIO,
        scratch: BinaryIO,
        device: str = "cpu",
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._checkpoint, self._reference, self._preset = checkpoint, reference, preset
        self._put_stream, self._add_entry = put, add
        self._kept = ReconstructionWriter(reconstruction)
        self._scratch = ArrayFile(scratch)
        self._device, self._progress = device, progress
        self._survey = _Survey()
        self._methods: dict[int, Method] = {}
        self._prefixes: dict[int, bytes] = {}  # what goes in front of a coded plane: centres or codebook
        self._codes: dict[int, Code] = {}
        self._parts: Counter[str] = Counter()
        self._coders: Counter[str] = Counter()
        self._lstm = b""  # chosen by _model
        self._error = self._worst = 0.0
        self._step = self._moment_step = 0.0

    def encode(self) -> Encoded:
        """Run all passes."""
        triples = pair(self._checkpoint, self._reference) if self._preset.scheme is not Scheme.EXACT else ()
        self._survey_all(triples)
        self._progress(0.15)
        self._transform()
        self._progress(0.4)
        models = self._model()
        self._progress(0.7)
        self._code(models)
        self._progress(0.9)
        identity = self._seal(models)
        parameters = sum(self._checkpoint.tensors[number].elements for number in self._kept_numbers())
        return Encoded(
            reconstruction=identity,
            parameters=parameters,
            original_sha256=self._checkpoint.sha256(),
            restored_sha256=self._digest(),
            parts=dict(self._parts),
            coders=dict(self._coders),
            quality=self._quality(),
        )

    # -- survey -------------------------------------------------------------------------------------------------

    def _survey_all(self, triples: tuple[Triple, ...]) -> None:
        seen: dict[tuple[bytes, str], int] = {}
        kept = set(self._kept_numbers())
        for number, tensor in self._checked():
            if number not in kept:
                continue
            payload = self._checkpoint.payload(number)
            first = seen.setdefault((hashlib.sha256(payload).digest(), tensor.dtype), number)
            if first != number:
                self._survey.copies[number] = first
            before = reference_values(tensor, self._reference)
            if before is not None and before.tobytes() == payload:
                self._survey.same.add(number)
        for triple in triples:
            self._survey_triple(triple)
        survey = self._survey
        rms = (survey.energy / survey.elements) ** 0.5 if survey.elements else 0.0
        self._step = float(np.float32(self._preset.step_fraction * rms))
        self._moment_step = self._choose_moment_step()

    def _checked(self) -> Iterator[tuple[int, TensorSpec]]:
        """All tensors; raises BadCheckpoint where a file's own CRC-32 says that its bytes have rotted."""
        for number, layout in enumerate(self._checkpoint.files):
            for hole in layout.holes:
                payload = self._checkpoint.payload(hole.tensor)
                stored = {bytes(self._checkpoint.source.read(number, offset, 4)) for offset in hole.crc_offsets}
                if stored - {zlib.crc32(payload).to_bytes(4, "little")}:
                    path = "/".join(self._checkpoint.tensors[hole.tensor].path)
                    raise BadCheckpoint(
                        f"{self._checkpoint.name}: {layout.name}",
                        f"tensor {path}: its bytes do not match the CRC-32 that the file gives for them",
                        hint="the file is damaged; restore it from another copy",
                    )
        yield from enumerate(self._checkpoint.tensors)

    def _survey_triple(self, triple: Triple) -> None:
        numbers = (triple.weight, triple.first, triple.second)
        if triple.weight in self._survey.copies or not all(self._finite(n) for n in numbers):
            return
        first, second = self._matrix(triple.first), self._matrix(triple.second)
        if (second < 0).any() or not second.any():
            return
        survey = self._survey
        survey.scales[triple.weight] = moments.scales_of(second, first)
        survey.lossy.append(triple)
        alive = second > 0
        survey.update_energy += float((first[alive] ** 2 / second[alive]).sum())
        survey.update_elements += int(alive.sum())
        residual = self._residual(triple.weight)
        if residual is not None:
            weighted = quantize.weigher_of(survey.scales[triple.weight]).weigh(residual)
            survey.energy += float((weighted**2).sum())
            survey.elements += weighted.size

    def _choose_moment_step(self) -> float:
        """The preset's step where first moments are worth their bits, else 0: they restore as 0."""
        if self._preset.scheme is not Scheme.SCALAR or not self._survey.update_elements:
            return 0.0
        betas = [g.betas for o in self._checkpoint.optimizers for g in o.groups if g.betas is not None]
        beta1, beta2 = max(betas, default=(0.9, 0.999))
        signal = self._survey.update_energy / self._survey.update_elements
        filled = 1 - beta2 ** (self._checkpoint.step or 1_000_000)  # exp_avg_sq starts at 0 and is still filling up
        noise = (1 - beta1) / (1 + beta1)  # energy of the mean of independent gradients, over that of one
        young = (self._checkpoint.step or 1_000_000) * (1 - beta1) < _YOUNG_MEMORIES
        needed = young or beta1 > _LONG_MEMORY or signal * filled > _STEADY_SIGNAL * noise
        return self._preset.moment_step * signal**0.5 if needed else 0.0

    # -- transform ----------------------------------------------------------------------------------------------

    def _transform(self) -> None:
        lossy = {triple.weight: triple for triple in self._survey.lossy}
        kept = self._kept_numbers()
        for number in kept:
            triple = lossy.get(number)
            if triple is not None and self._lossy_weight(triple):
                continue
            tensor = self._checkpoint.tensors[number]
            self._methods[number] = self._exact_method(number, tensor)
            values = stored_array(self._checkpoint.payload(number), tensor.dtype, tensor.shape)
            if self._methods[number] is Method.COPY:
                copied = self._kept.get(self._checkpoint.tensors[self._survey.copies[number]].path, "weights")
                assert copied is not None
                values = copied.reshape(tensor.shape)
            put_kept(self._kept, tensor, values, None, self._survey.scales.get(number))
        for triple in self._survey.lossy:
            self._lossy_moments(triple)
        for number, tensor in enumerate(self._checkpoint.tensors):
            self._methods.setdefault(number, self._exact_method(number, tensor))

    def _kept_numbers(self) -> list[int]:
        paths = [optimizer.path for optimizer in self._checkpoint.optimizers]
        return [
            number
            for number, tensor in enumerate(self._checkpoint.tensors)
            if tensor.dtype in STORED_AS and not any(tensor.path[: len(path)] == path for path in paths)
        ]

    def _exact_method(self, number: int, tensor: TensorSpec) -> Method:
        if number in self._survey.copies:
            return Method.COPY
        if number in self._survey.same:
            return Method.SAME
        return Method.EXACT if reference_values(tensor, self._reference) is None else Method.DELTA

    def _lossy_weight(self, triple: Triple) -> bool:
        """Quantize a weight's residual; False if there is nothing to take it against."""
        number = triple.weight
        tensor = self._checkpoint.tensors[number]
        before, residual = reference_values(tensor, self._reference), self._residual(number)
        if before is None or residual is None or number in self._survey.same:
            return False
        scales = self._survey.scales[number]
        if self._preset.scheme is Scheme.SCALAR:
            weighted = quantize.weigher_of(scales).weigh(residual)
            scalar = quantize.quantize_scalar(weighted, self._step, self._preset.dead_zone)
            levels, self._prefixes[number] = scalar.levels, scalar.centres
            values = restore_scalar(before, scalar, scales, self._step, tensor.dtype)
            self._methods[number] = Method.SCALAR
        else:
            kept = kmeans.kept_weights(residual, self._matrix(triple.second))
            code = kmeans.quantize_kmeans(residual, kept)
            levels, self._prefixes[number] = code.levels, code.codebook.to_bytes()
            values = add_residual(before, quantize.dequantize_kmeans(code), tensor.dtype)
            self._methods[number] = Method.KMEANS
        self._scratch.put(tensor.path, "levels", levels)
        put_kept(self._kept, tensor, values, levels, scales)
        self._measure(number, values, residual, quantize.weigher_of(scales))
        return True

    def _measure(self, number: int, values: RawArray, residual: Float64, weigher: quantize.Weigher) -> None:
        """Weighted error of a weight, relative to the interval's update energy: in all, and of the worst tensor."""
        lost = self._matrix(number) - to_float64(values, self._checkpoint.tensors[number].dtype).reshape(residual.shape)
        error, energy = float((weigher.weigh(lost) ** 2).sum()), float((weigher.weigh(residual) ** 2).sum())
        self._error += error
        self._worst = max(self._worst, error / energy if energy else 0.0)

    def _lossy_moments(self, triple: Triple) -> None:
        first, second = (self._checkpoint.tensors[n] for n in (triple.first, triple.second))
        scales = self._survey.scales[triple.weight]
        values, exact = self._matrix(triple.first), self._matrix(triple.second)
        weight_levels = self._scratch.get(self._checkpoint.tensors[triple.weight].path, "levels")
        if self._preset.scheme is Scheme.SCALAR:
            self._methods[triple.second], self._methods[triple.first] = Method.FILL, Method.SCALED
            if self._moment_step:
                filled = to_float64(restore_second(None, scales, second.dtype), second.dtype)
                levels = moments.quantize_first(values, filled, self._moment_step, self._preset.dead_zone)
            else:
                levels = np.zeros(values.shape, np.int16)
            self._scratch.put(first.path, "levels", levels)
            return
        pruned = np.ones(values.shape, np.bool_) if weight_levels is None else weight_levels != 0
        kept = kmeans.kept_moments(values, pruned)
        for number, tensor, moment in ((triple.first, first, values), (triple.second, second, exact)):
            code = kmeans.quantize_kmeans(moment, kept)
            self._methods[number], self._prefixes[number] = Method.KMEANS, code.codebook.to_bytes()
            self._scratch.put(tensor.path, "levels", code.levels)

    # -- model and code -----------------------------------------------------------------------------------------

    def _planes(self) -> Iterator[tuple[int, int, Plane, Guide]]:
        """Every plane that is to be coded: tensor number, kind, levels (R, C), guide."""
        triple_of = {n: t for t in self._survey.lossy for n in (t.first, t.second)}
        for number, tensor in enumerate(self._checkpoint.tensors):
            levels = self._scratch.get(tensor.path, "levels")
            if levels is None:
                continue
            plane = levels.astype(np.int16)
            if number not in triple_of:
                yield number, WEIGHTS, plane, weight_guide(tensor, self._reference)
            elif number == triple_of[number].first:
                weight = self._checkpoint.tensors[triple_of[number].weight]
                yield number, FIRST, plane, moment_guide(weight, self._kept)
            else:
                first = self._scratch.get(self._checkpoint.tensors[triple_of[number].first].path, "levels")
                guide = None if first is None else levels_for_context(first.astype(np.int16))
                yield number, SECOND, plane, Guide(guide)

    def _model(self) -> Models:
        """Fit tables and an LSTM to all contexts; the LSTM stays only if it pays for its own bytes."""
        histograms: Histograms = {}
        for _, kind, plane, guide in self._planes():
            for key, histogram in histograms_of(plane, kind, guide).items():
                histograms[key] = histograms[key] + histogram if key in histograms else histogram
        tables = TableModel.fit(histograms)
        if not histograms:
            return Models(tables)
        before = self._reference.blob("lstm") if self._reference is not None else b""
        start = LstmWeights.from_bytes(before) if len(before) == LSTM_BYTES else None
        steps = self._preset.lstm_steps if start is not None else self._preset.lstm_cold_steps
        fitted = train.fit(histograms, tables, start, steps=steps, device=self._device)
        best_bits, chosen = cost_bits(histograms, tables), Models(tables)
        for weights in (start, fitted):
            if weights is None:
                continue
            model = RefinedModel(tables, LstmModel(weights))
            bits = cost_bits(histograms, model) + 8 * len(encode_lstm(weights.to_bytes(), self._reference))
            if bits < best_bits:
                best_bits, chosen, self._lstm = bits, Models(tables, model), weights.to_bytes()
        return chosen

    def _code(self, models: Models) -> None:
        for number, kind, plane, guide in self._planes():
            data, coder = encode_plane(plane, kind, guide, models)
            part = ("weights", "first_moment", "second_moment")[kind]
            self._coders[coder.name.lower()] += 1
            self._put(number, self._methods[number], part, self._prefixes.get(number, b"") + data)
        for number, tensor in enumerate(self._checkpoint.tensors):
            if number not in self._codes:
                self._code_exactly(number, tensor)

    def _put(self, number: int, method: Method, part: str, data: bytes) -> None:
        self._parts[part] += len(data)
        self._codes[number] = Code(method, self._put_stream(part, data))

    def _code_exactly(self, number: int, tensor: TensorSpec) -> None:
        method = self._methods[number]
        if method is Method.COPY:
            self._codes[number] = Code(method, other=self._survey.copies[number])
        elif method in (Method.SAME, Method.FILL):
            self._codes[number] = Code(method)
        else:
            before = reference_values(tensor, self._reference) if method is Method.DELTA else None
            reference = before.tobytes() if before is not None else None
            data = encode_exact(self._checkpoint.payload(number), itemsize_of(tensor), reference)
            self._put(number, method, self._part_of(number), data)
        self._coders[method.value] += 1

    def _part_of(self, number: int) -> str:
        fields = {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"}
        if number in set(self._kept_numbers()):
            return "weights"
        return fields.get(self._checkpoint.tensors[number].path[-1], "state")

    # -- seal and digest ----------------------------------------------------------------------------------------

    def _seal(self, models: Models) -> str:
        reference_layout = self._reference.blob("layout") if self._reference is not None else b""
        reference_skeleton = self._reference.blob("skeleton") if self._reference is not None else b""
        used = {triple.weight: self._survey.scales[triple.weight] for triple in self._survey.lossy}
        layout = Layout(
            self._checkpoint.files, self._checkpoint.tensors, tuple(self._kept_numbers()), tuple(self._survey.lossy)
        )
        codes = tuple(self._codes[number] for number in range(len(self._checkpoint.tensors)))
        skeleton = skeleton_of(self._checkpoint)
        lstm = self._lstm if self._coders["lstm"] else b""
        entries = {
            "index": Index(layout, codes, self._step, self._moment_step).to_bytes(reference_layout),
            "skeleton": zstd.compress_against(skeleton, reference_skeleton),
            "scales": encode_scales(layout, used, self._reference),
            "lstm": encode_lstm(lstm, self._reference) if lstm else b"",
            "tables": models.tables.to_bytes() if self._coders["tables"] or lstm else b"",
        }
        for name, data in entries.items():
            self._parts[name] += len(data)
            if data:
                self._add_entry(name, data)
        return seal(self._kept, lstm, skeleton, layout.to_json())

    def _digest(self) -> tuple[str, ...]:
        """sha256 of every file as a restore will write it."""
        restored = []
        for number, layout in enumerate(self._checkpoint.files):
            digest = hashlib.sha256()
            for piece in assemble(layout, list(self._checkpoint.verbatim(number)), self._restored):
                digest.update(piece)
            restored.append(digest.hexdigest())
        return tuple(restored)

    def _restored(self, number: int) -> Bytes:
        """The bytes that a decoder yields for a tensor, from the levels in hand."""
        tensor = self._checkpoint.tensors[number]
        values = self._kept.get(tensor.path, "weights")
        if values is not None:
            return values.tobytes()
        if self._methods[number] not in (Method.FILL, Method.SCALED, Method.KMEANS):
            return self._checkpoint.payload(number)
        triple = next(t for t in self._survey.lossy if number in (t.first, t.second))
        return self._restored_moment(number, triple).tobytes()

    def _restored_moment(self, number: int, triple: Triple) -> RawArray:
        tensor, scales = self._checkpoint.tensors[number], self._survey.scales[triple.weight]
        levels = self._scratch.get(tensor.path, "levels")
        code = None
        if self._methods[number] is Method.KMEANS and levels is not None:
            codebook, _ = quantize.Codebook.from_bytes(self._prefixes[number])
            code = KmeansCode(levels.astype(np.int16), codebook)
        if number == triple.second:
            return restore_second(code, scales, tensor.dtype)
        if code is not None:
            return from_float64(quantize.dequantize_kmeans(code), tensor.dtype)
        second = restore_second(None, scales, self._checkpoint.tensors[triple.second].dtype)
        assert levels is not None
        return restore_first(levels.astype(np.int16), second, self._moment_step, tensor.dtype)

    def _quality(self) -> dict[str, float]:
        """What the daemon can see of the loss: errors relative to the interval's update energy."""
        survey = self._survey
        energy = survey.energy or 1.0
        signal = survey.update_energy / survey.update_elements if survey.update_elements else 0.0
        return {
            "weight_error": self._error / energy,
            "worst_tensor_error": self._worst,
            "update_signal": signal,
            "step": self._step,
            "moment_step": self._moment_step,
        }

    # -- tensors ------------------------------------------------------------------------------------------------

    def _matrix(self, number: int) -> Float64:
        """A tensor as float64 (R, C)."""
        tensor = self._checkpoint.tensors[number]
        values = stored_array(self._checkpoint.payload(number), tensor.dtype, plane_shape(tensor.shape))
        return to_float64(values, tensor.dtype)

    def _finite(self, number: int) -> bool:
        tensor = self._checkpoint.tensors[number]
        return is_finite(stored_array(self._checkpoint.payload(number), tensor.dtype, tensor.shape), tensor.dtype)

    def _residual(self, number: int) -> Float64 | None:
        """Weight less the reference's reconstruction, (R, C); a non-finite reference counts as 0."""
        tensor = self._checkpoint.tensors[number]
        before = reference_values(tensor, self._reference)
        if before is None:
            return None
        values = to_float64(before, tensor.dtype).reshape(plane_shape(tensor.shape))
        return self._matrix(number) - np.where(np.isfinite(values), values, 0.0)


def encode_scales(layout: Layout, scales: dict[int, Scales], reference: Reconstruction | None) -> bytes:
    """All scales as one plane of differences to the reference's; the inverse of `decode.decode_scales`."""
    if not layout.triples:
        return b""
    differences = scale_differences(layout, scales, reference, sign=-1)
    parts = [codes for t in layout.triples for codes in (differences[t.weight].rows, differences[t.weight].columns)]
    data, _ = encode_plane(np.concatenate(parts)[:, None], WEIGHTS, Guide(), Models())
    return data
