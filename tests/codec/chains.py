"""Chains of archives in memory: the codec without a container, and small runs of real optimizers to feed it with."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from ckzd.assembly import assembled
from ckzd.checkpoint import Checkpoint
from ckzd.codec import encode as encoding
from ckzd.codec import zstd
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.codec.decode import Decoder
from ckzd.codec.encode import Encoded, Encoder
from ckzd.codec.entropy import planes
from ckzd.codec.entropy.fitting import Counted, Fitted, fit_tables
from ckzd.codec.entropy.models import Models
from ckzd.codec.paper.lstm import LSTM_BYTES, LstmModel, LstmWeights
from ckzd.codec.paper.refined import RefinedModel
from ckzd.codec.presets import PRESETS
from ckzd.codec.records.index import Index, Method
from ckzd.codec.records.reconstruction import Reconstruction, ReconstructionWriter
from ckzd.codec.records.reference_tensors import seal
from ckzd.codec.records.skeleton import split_skeleton
from ckzd.formats import read_checkpoint


@dataclass
class Archive:
    """What an encoder said and wrote."""

    entries: dict[str, bytes] = field(default_factory=dict)
    streams: dict[tuple[str, int, int], bytes] = field(default_factory=dict)
    encoded: Encoded | None = None
    reconstruction: Reconstruction | None = None

    def put(self, kind: str, data: bytes) -> tuple[str, int, int]:
        ref = (f"{kind}/{len(self.streams)}", 0, len(data))
        self.streams[ref] = data
        return ref

    def entry(self, name: str) -> bytes:
        return self.entries.get(name, b"")

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.entries.values())) + sum(map(len, self.streams.values()))

    def fingerprint(self) -> str:
        """Of every byte and every word of it."""
        said = repr((sorted(self.entries.items()), sorted(self.streams.items()), self.encoded))
        return hashlib.sha256(said.encode()).hexdigest()

    def index(self, reference: "Archive | None" = None) -> Index:
        layout = reference.reconstruction.blob("layout") if reference is not None else b""
        return Index.from_bytes(self.entries["index"], layout)

    def methods(self, reference: "Archive | None" = None) -> dict[str, Method]:
        """Path -> how it is coded."""
        index = self.index(reference)
        return {".".join(t.path): c.method for t, c in zip(index.layout.tensors, index.codes, strict=True)}


def encode(checkpoint: Checkpoint | Path, reference: Archive | None = None, preset: str = "resume") -> Archive:
    """Encode a checkpoint in memory."""
    archive, file = Archive(), io.BytesIO()
    if isinstance(checkpoint, Path):
        checkpoint = in_tiles(read_checkpoint(checkpoint))
    archive.encoded = Encoder(
        checkpoint,
        reference.reconstruction if reference is not None else None,
        PRESETS[preset],
        put=archive.put,
        add=archive.entries.__setitem__,
        reconstruction=file,
        scratch=io.BytesIO(),
    ).encode()
    archive.reconstruction = Reconstruction(file)
    return archive


def decode(archive: Archive, reference: Archive | None = None, *, own: bool = False) -> list[bytes]:
    """The files that it restores; with `own`, moments are decoded as where the cache has its reconstruction."""
    before = reference.reconstruction if reference is not None else None
    decoder = Decoder.from_reference(archive.entry, archive.streams.__getitem__, before)
    file = io.BytesIO()
    writer = ReconstructionWriter(file)
    decoder.decode_reference_tensors(writer)
    known = before.blob("skeleton") if before is not None else b""
    skeleton = zstd.decompress(archive.entries["skeleton"], 1 << 30, known)
    identity = seal(writer, decoder.lstm, skeleton, decoder.index.layout.to_json())
    assert identity == archive.encoded.reconstruction
    reconstruction = Reconstruction(file)
    if own:
        decoder = Decoder.from_own(archive.entry, archive.streams.__getitem__, reconstruction)
    files = decoder.index.layout.files
    restored = [bytearray() for _ in files]
    payloads = partial(map, lambda number: decoder.payload(number, reconstruction))
    for file, piece in assembled(files, split_skeleton(skeleton, files), payloads):
        restored[file] += piece
    return list(map(bytes, restored))


def restored(archive: Archive, reference: Archive | None = None) -> dict:
    """The single file of an archive, checked against its recorded sha256 and loaded."""
    (data,) = decode(archive, reference)
    assert (hashlib.sha256(data).hexdigest(),) == archive.encoded.restored_sha256
    return torch.load(io.BytesIO(data), weights_only=False)


def compressed_run(paths: list[Path], preset: str = "resume") -> list[Archive]:
    """A chain over all checkpoints, in closed loop."""
    archives: list[Archive] = []
    for path in paths:
        archives.append(encode(path, archives[-1] if archives else None, preset))
    return archives


@contextmanager
def lstm_everywhere() -> Iterator[None]:
    """Every plane that is not empty is coded with an LSTM, whatever it costs: one that nobody has trained."""

    def fitted(counted: Counted, *_) -> Fitted:
        draw = np.random.default_rng(len(counted.planes))  # another one for another checkpoint
        lstm = LstmWeights.from_bytes(draw.integers(-8, 9, LSTM_BYTES).astype(np.int8).tobytes())
        tables = fit_tables(counted)
        return Fitted(Models(tables, RefinedModel(tables, LstmModel(lstm))), lstm.to_bytes())

    cheapest = planes._cheapest

    def chosen(choices):  # scales have no models
        return next((choice for choice in choices if choice.coder is planes.Coder.LSTM), cheapest(choices))

    with mock.patch.object(encoding, "fit_models", fitted), mock.patch.object(planes, "_cheapest", chosen):
        yield


class Zoo:
    """A run that holds everything at once: dtypes, odd shapes, broken values, shared, tied and frozen tensors."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.step = 0
        shapes = {"wide": (24, 40), "deep.0.w": (16, 16), "deep.1.w": (16, 16), "vector": (200,), "cube": (4, 6, 10)}
        self.model = {name: self._random(*shape) for name, shape in shapes.items()}
        self.model |= {"brain": self._random(16, 20).bfloat16(), "half": self._random(16, 20).half()}
        self.model |= {"nan": self._random(12, 16), "inf": self._random(12, 16), "moment": self._random(12, 16)}
        self.model |= {"still": torch.full((12, 16), 0.25), "row": self._random(1, 150), "small": self._random(5)}
        for parameter in self.model.values():
            parameter.requires_grad_()
        self.frozen = {"frozen": self._random(20, 20), "frozen_half": self._random(16, 20).bfloat16()}
        self.momentum = {name: self._random(20, 30).requires_grad_() for name in ("sgd", "low")}
        self.adam = torch.optim.AdamW(self.model.values(), lr=1e-3, betas=(0.9, 0.99), eps=1e-6)
        self.sgd = torch.optim.SGD(self.momentum.values(), lr=1e-2, momentum=0.9)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def advance(self, steps: int = 4) -> None:
        """Real optimizer steps on gradients with structure."""
        for _ in range(steps):
            for name, parameter in (self.model | self.momentum).items():
                gradient = self._random(*parameter.shape) * self._random(
                    *parameter.shape[:1], *[1] * (parameter.ndim - 1)
                )
                gradient = torch.outer(gradient[:, 0], torch.linspace(-1, 1, 30)) if name == "low" else gradient
                parameter.grad = (gradient * (name != "still")).to(parameter.dtype)
            self.adam.step()
            self.sgd.step()
            self.step += 1

    def state(self) -> dict:
        tied, base = self.model["wide"].detach().clone(), torch.arange(60.0)
        odd = {"zero_dim": torch.tensor(2.5), "one": torch.tensor([3.0]), "empty": torch.empty(0, 5), "none": None}
        odd |= {"constant": torch.full((30, 30), 7.0), "double": torch.linspace(0, 1, 70, dtype=torch.float64)}
        odd |= {
            "ints": torch.arange(90) * self.step,
            "bytes": torch.arange(256).to(torch.uint8),
            "flag": torch.tensor(True),
        }
        odd |= {"shared": base[:30].view(5, 6), "with": base[30:], "step": torch.tensor(self.step)}
        return {
            "model": {name: parameter.detach() for name, parameter in (self.model | self.momentum).items()}
            | self.frozen
            | {"tied": tied},
            "optimizer": self.adam.state_dict(),
            "sgd": self.sgd.state_dict(),
            "step": self.step,
            "odd": odd,
        }

    def save(self, path: Path, *, broken: bool = False) -> Path:
        """Write a checkpoint; `broken` puts values that are not finite into three tensors, for this one only."""
        state = self.state()
        if broken:
            for name, value in (("nan", float("nan")), ("inf", float("-inf"))):
                state["model"][name] = state["model"][name].clone()
                state["model"][name][3, 5] = value
            number = list(self.model).index("moment")
            moments = state["optimizer"]["state"][number]
            state["optimizer"]["state"][number] = moments | {"exp_avg": moments["exp_avg"].clone()}
            state["optimizer"]["state"][number]["exp_avg"][0, 0] = float("nan")
        torch.save(state, path)
        return path


def same_tensor(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Bit for bit."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return np.array_equal(bits(left), bits(right))


def bits(tensor: torch.Tensor) -> np.ndarray:
    plain = tensor.detach().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy() if plain.numel() else np.empty(0, np.uint8)
