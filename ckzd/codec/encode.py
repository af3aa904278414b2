"""A checkpoint + its reference's reconstruction -> streams, in a few passes that each hold one tensor at a time.

    survey      read everything once: damage, copies, scales, the energies that set the quantization steps
    choose      tensors -> levels; decoded weights go to the reconstruction, levels to scratch
    fit         histograms of all contexts -> tables and LSTM
    code        levels -> streams
    seal        index, skeleton, LSTM, scales; the reconstruction's id
    digest      the bytes that a restore will write -> sha256 of each file

Everything a decoder does (context, probabilities, reconstruction) is called from the modules that the decoder uses.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, BinaryIO

from ckzd.assembly import assembled
from ckzd.checkpoint import Bytes, Checkpoint
from ckzd.codec import zstd
from ckzd.codec.ahead import Announcer, Listener
from ckzd.codec.algebra.exact import Algebra
from ckzd.codec.algebra.on_cores import CORES
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.survey import survey
from ckzd.codec.budget import EXACT, Pace
from ckzd.codec.choose import Chooser, within_budget
from ckzd.codec.entropy.fitting import Counted, Fitted, counted, fit_tables
from ckzd.codec.entropy.models import Models
from ckzd.codec.entropy.planes import Coder, PlaneToCode, encode_plane
from ckzd.codec.methods.method import Streams
from ckzd.codec.methods.registry import METHODS
from ckzd.codec.methods.verbatim import encoded_exactly
from ckzd.codec.paper.lstm import encode_lstm
from ckzd.codec.parallel import in_order, one_blas_thread
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.records.index import Code, Index, Method
from ckzd.codec.records.layout import Layout
from ckzd.codec.records.reconstruction import ArrayFile, Reconstruction, ReconstructionWriter
from ckzd.codec.records.reference_tensors import seal
from ckzd.codec.records.side import encode_scales
from ckzd.codec.records.skeleton import skeleton_of, split_skeleton
from ckzd.codec.scales import REACH
from ckzd.codec.transform.adaptive_basis import SLACK
from ckzd.streams import StreamRef

_MOMENTS = {"exp_avg": "first_moment", "momentum_buffer": "first_moment", "exp_avg_sq": "second_moment"}
_PARTS = ("weights", "first_moment", "second_moment", "weights")  # by kind of plane
_STREAMS = {method.name: method.streams for method in METHODS}


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


def fit_models(counts: Counted, reference: Reconstruction | None, preset: Preset, device: str) -> Fitted:
    """Tables for all contexts, and for a preset that trains one an LSTM that refines them."""
    tables = fit_tables(counts)
    if not counts.histograms:
        return Fitted(Models(tables))
    from ckzd.codec.paper import fitting  # noqa: PLC0415  # a second of torch, for the one preset that trains

    return fitting.with_lstm(counts, tables, reference, preset, device)


def algebra_on(device: str) -> Algebra[Any]:
    """Where bases are worked with, for one of torch's devices; an archive is the same wherever that is."""
    if device == "cpu":
        return CORES
    from ckzd.codec.algebra.on_torch import OnTorch  # noqa: PLC0415  # a second of torch, for who has a GPU to spare

    return OnTorch(device)


class Encoder:
    """Encodes one checkpoint. `put(kind, data)` stores a stream, `add(name, data)` an entry.

    A `listener` is told of reference tensors while others are still chosen, unless the preset loses nothing: what
    restores at once is not worth it. It must see what is in `reconstruction` and `scratch`.
    """

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
        listener: Listener | None = None,
    ) -> None:
        self._inputs, self._preset = Inputs(checkpoint, reference), preset
        self._put_stream, self._add_entry = put, add
        self._reconstruction, self._scratch = ReconstructionWriter(reconstruction), ArrayFile(scratch)
        self._device, self._progress = device, progress
        self._announcer: Announcer | None = None
        if listener is not None and preset.scheme is not Scheme.EXACT:
            self._announcer = Announcer(listener, self._reconstruction, self._scratch)
        self._codes: dict[int, Code] = {}
        self._parts: Counter[str] = Counter()
        self._coders: Counter[str] = Counter()
        self._used: set[Coder] = set()

    def encode(self) -> Encoded:
        """Run all passes."""
        with one_blas_thread():
            return self._encode()

    def _encode(self) -> Encoded:
        surveyed = survey(self._inputs, self._preset)
        self._progress(0.15)
        places = self._reconstruction, self._scratch
        algebra, announcer = algebra_on(self._device), self._announcer
        chooser = within_budget(self._inputs, surveyed, self._preset, *places, algebra=algebra, announcer=announcer)
        self._progress(0.4)
        counts = counted(chooser.planes(), grid=self._preset.lstm_cold_steps > 0)
        fitted = fit_models(counts, self._inputs.reference, self._preset, self._device)
        self._progress(0.7)
        self._code_planes(chooser, fitted)
        self._code_without_planes(chooser)
        zeros = {number: self._put_zeros(data) for number, data in sorted(chooser.zeros.items())}
        self._progress(0.9)
        skeleton = skeleton_of(self._inputs.checkpoint)
        return Encoded(
            reconstruction=self._seal(chooser, fitted, zeros, skeleton),
            parameters=sum(self._inputs.tensor(number).elements for number in self._inputs.reference_tensors),
            original_sha256=self._inputs.contents.sha256,
            restored_sha256=tuple(self._digests(chooser, skeleton)),
            parts=dict(self._parts),
            coders=dict(self._coders),
            quality=_quality(chooser, self._preset),
        )

    def _code_planes(self, chooser: Chooser, fitted: Fitted) -> None:
        def coded(plane: PlaneToCode) -> tuple[PlaneToCode, bytes, Coder]:
            return plane, *encode_plane(plane, fitted.models)

        for plane, data, coder in in_order(coded, chooser.planes(), lambda plane: plane.levels.size):
            self._used.add(coder)
            method, head = chooser.methods[plane.number], chooser.heads[plane.number]
            self._coders[method.value if method is Method.ULPS else coder.name.lower()] += 1
            self._put(plane.number, method, _PARTS[plane.kind], head + data)

    def _code_without_planes(self, chooser: Chooser) -> None:
        """Everything that has no plane: exact tensors, and moments that follow from little or nothing."""
        reference_tensors = frozenset(self._inputs.reference_tensors)
        for number, tensor in enumerate(self._inputs.checkpoint.tensors):
            if number in self._codes:
                continue
            method = chooser.methods[number]
            if _STREAMS[method] is Streams.OTHER:
                others = chooser.survey.casts if method is Method.CAST else chooser.survey.copies
                self._codes[number] = Code(method, other=others[number])
            elif _STREAMS[method] is Streams.NONE:
                self._codes[number] = Code(method)
            elif number in chooser.heads:
                part = "first_moment" if method is Method.TREND else "second_moment"
                self._put(number, method, part, chooser.heads[number])
            else:
                is_kept = number in reference_tensors
                before = self._inputs.before(number) if is_kept else None
                stream = chooser.stream(number)
                if stream is None:
                    method, stream = encoded_exactly(chooser.payload(number), tensor, before)
                moment = next((_MOMENTS[part] for part in tensor.path if part in _MOMENTS), "state")
                self._put(number, method, "weights" if is_kept else moment, stream)
            self._coders[method.value] += 1

    def _put(self, number: int, method: Method, part: str, data: bytes) -> None:
        self._parts[part] += len(data)
        self._codes[number] = Code(method, self._put_stream(part, data))

    def _put_zeros(self, data: bytes) -> StreamRef | None:
        self._parts["zeros"] += len(data)
        return self._put_stream("zeros", data) if data else None

    def _seal(self, chooser: Chooser, fitted: Fitted, zeros: Mapping[int, StreamRef | None], skeleton: bytes) -> str:
        checkpoint, surveyed = self._inputs.checkpoint, chooser.survey
        states = {n: s.weight for n, s in surveyed.states.items() if s.weight in surveyed.scales}
        tensors, referenced = checkpoint.tensors, self._inputs.reference_tensors
        layout = Layout(checkpoint.files, tensors, referenced, surveyed.lossy, states, checkpoint.tiled)
        codes = tuple(self._codes[number] for number in range(len(checkpoint.tensors)))
        steps, predictions = surveyed.steps, surveyed.predictions
        index = Index(layout, codes, steps, chooser.finer, zeros, REACH, SLACK, predictions)
        lstm = fitted.lstm if Coder.LSTM in self._used else b""
        entries = {
            "index": index.to_bytes(self._inputs.reference_blob("layout")),
            "skeleton": zstd.compress_against(skeleton, self._inputs.reference_blob("skeleton")),
            "scales": encode_scales(layout, surveyed.scales, predictions, self._inputs.reference),
            "lstm": encode_lstm(lstm, self._inputs.reference) if lstm else b"",
            "tables": fitted.models.tables.to_bytes() if Coder.TABLES in self._used or lstm else b"",
        }
        for name, data in entries.items():
            self._parts[name] += len(data)
            if data:
                self._add_entry(name, data)
        return seal(self._reconstruction, lstm, skeleton, layout.to_json())

    def _digests(self, chooser: Chooser, skeleton: bytes) -> list[str]:
        """Sha256 of every file as a restore will write it."""
        triple_of = {n: t for t in chooser.survey.lossy for n in t.moments}

        def restored(number: int) -> Bytes:
            if number in chooser.survey.states and chooser.methods[number] is not Method.EXACT:
                return chooser.restored_state(number).tobytes()
            if number in triple_of:
                return chooser.restored_moment(number, triple_of[number]).tobytes()
            values = self._reconstruction.get(self._inputs.tensor(number).path, "weights")
            return self._inputs.payload(number) if values is None else values.tobytes()

        files = self._inputs.checkpoint.files
        digests = [hashlib.sha256() for _ in files]
        payloads = partial(in_order, restored, elements=lambda number: self._inputs.tensor(number).elements)
        for file, piece in assembled(files, split_skeleton(skeleton, files), payloads):
            digests[file].update(piece)
        return [digest.hexdigest() for digest in digests]


def _quality(chooser: Chooser, preset: Preset) -> dict[str, float]:
    """What the daemon can see of the loss: errors relative to the weights, and to what they moved.

    With it what they may be at most, and how many weights were coded finer or exactly to keep them there.
    """
    surveyed, losses = chooser.survey, list(chooser.losses.values())
    error = sum(loss.error for number, loss in chooser.losses.items() if number not in surveyed.rough)
    own = {
        vectors: max((loss.own_relative for loss in losses if loss.is_vector == vectors), default=0.0)
        for vectors in (False, True)
    }
    paces = [pace.worst for pace in chooser.paces.values()] or [Pace.unchanged().worst]
    gradients_known = any(triple.second is not None for triple in surveyed.lossy)
    first_order = {"first_order_loss": chooser.first_order_loss, "regained": chooser.regained}
    return {
        **preset.budget.stated(),
        "weight_error": error / (surveyed.weight_energy or 1.0),
        "worst_tensor_error": max((loss.relative for loss in losses), default=0.0),
        "matrix_error": own[False],
        "vector_error": own[True],
        "lost_progress": max((loss.lost_progress for loss in losses), default=0.0),
        "second_moment_ratio": max(total for total, _ in paces),
        "update_length_ratio": max(length for _, length in paces),
        "exact_second_moments": sum(chooser.methods[number] is Method.EXACT for number in chooser.paces),
        "update_error": error / (surveyed.update_energy or 1.0),
        "tightened_tensors": chooser.tightened,
        "exact_tensors": sum(exponent == EXACT for exponent in chooser.step_exponents.values()),
        **(first_order if gradients_known else {}),
        **({"ruined": surveyed.ruined} if surveyed.ruined else {}),
        **({"weights_alone": len(surveyed.alone)} if surveyed.alone else {}),
        "update_signal": surveyed.update_signal,
        **asdict(surveyed.steps),
    }
