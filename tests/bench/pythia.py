"""A run of Pythia-410M's shape in bfloat16, archived as it trains: seconds, ratio, and what the last restore costs.

usage: pythia.py WORK [--device cuda] [--steps 10000] [--every 1000] [--state float32|bfloat16] [--preset resume]
                 [--width 1024] [--layers 24] [--vocabulary 50304] [--batch 16] [--context 1024]
WORK is new and gets the run, its store and the restored checkpoint. The text is Python's own library, byte by byte: all
rows of the output layer are trained, but of the embedding's only 256, and rows at rest flatter the ratio (at full size
an eighth of all parameters). --state float32 keeps weights and Adam moments in float32 and computes in bfloat16, as
Pythia was trained; bfloat16 keeps all three in bfloat16.
A JSON line a checkpoint: loss, seconds of training, bytes, ratio, seconds of `ckzd compress` with its verification,
while the training goes on. Of the archived originals only the two newest stay. Then the quality of the last one,
restored, and a summary with the machine.
"""

# B = sequences in a batch, T = tokens, H = heads, D = width of a head, C = width of the model, V = vocabulary

import argparse
import json
import sysconfig
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from command import ckzd, compress, loop_ratios
from machine import machine
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from training import HELDOUT_SEED, checkpoint_path, quality, run_series, warm_cosine

BYTE_VALUES = 256
HEAD_WIDTH = 64
ROTARY_SHARE = 0.25  # of a head's width
ROTARY_BASE = 10_000
PEAK_LEARNING_RATE = 3e-4
BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.1
HELDOUT_SHARE, HELDOUT_BATCHES = 0.05, 4
WAITING = 2  # checkpoints that may wait for their turn before the training waits for them


def rotated(values_BHTD: Tensor) -> Tensor:
    """The first quarter of each head's width turned by its position, in pairs of its halves."""
    length, turned = values_BHTD.shape[2], int(ROTARY_SHARE * values_BHTD.shape[3])
    place = torch.arange(turned // 2, device=values_BHTD.device)
    angles = torch.arange(length, device=place.device)[:, None] * ROTARY_BASE ** (-2 * place / turned)
    cosines, sines = (wave.repeat(1, 2).to(values_BHTD.dtype) for wave in (angles.cos(), angles.sin()))
    turning, rest = values_BHTD.split((turned, values_BHTD.shape[3] - turned), -1)
    low, high = turning.chunk(2, -1)
    return torch.cat((turning * cosines + torch.cat((-high, low), -1) * sines, rest), -1)


class Attention(nn.Module):
    """Causal, with rotary positions; queries, keys and values of a head lie together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.query_key_value, self.dense = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, stream_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        batch, length, width = stream_BTC.shape
        projected = self.query_key_value(stream_BTC).view(batch, length, self.heads, 3 * width // self.heads)
        query, key, value = projected.transpose(1, 2).chunk(3, -1)
        mixed = functional.scaled_dot_product_attention(rotated(query), rotated(key), value, is_causal=True)
        return self.dense(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense_h_to_4h, self.dense_4h_to_h = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, stream_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.dense_4h_to_h(functional.gelu(self.dense_h_to_4h(stream_BTC)))


class Layer(nn.Module):
    """Both read the same stream, and their sums go onto it: parallel residuals."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width), FeedForward(width)

    def forward(self, stream_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        attended = self.attention(self.input_layernorm(stream_BTC))
        return stream_BTC + attended + self.mlp(self.post_attention_layernorm(stream_BTC))


class NeoX(nn.Module):
    """GPT-NeoX with its own names: no position embedding, an output layer of its own."""

    def __init__(self, width: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.gpt_neox = nn.ModuleDict(
            {
                "embed_in": nn.Embedding(vocabulary, width),
                "layers": nn.ModuleList(Layer(width) for _ in range(layers)),
                "final_layer_norm": nn.LayerNorm(width),
            }
        )
        self.embed_out = nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """int64 (B, T) -> logits (B, T, V)."""
        stream_BTC = self.gpt_neox["embed_in"](tokens_BT)
        for layer in self.gpt_neox["layers"]:
            stream_BTC = layer(stream_BTC)
        return self.embed_out(self.gpt_neox["final_layer_norm"](stream_BTC))


def library_text() -> Tensor:
    """Python's own library, what was installed beside it left out; uint8 (bytes,)."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in paths)), dtype=torch.uint8)


@dataclass(frozen=True)
class PythiaJob:
    """A training.Job on one device."""

    width: int
    layers: int
    vocabulary: int
    steps: int
    every: int
    batch: int
    context: int
    device: str
    state: str  # dtype of weights and moments

    @cached_property
    def _texts(self) -> tuple[Tensor, Tensor]:
        """To train on, and held out; on the device."""
        text = library_text().to(self.device)
        cut = int(len(text) * (1 - HELDOUT_SHARE))
        return text[:cut], text[cut:]

    def make(self) -> tuple[nn.Module, Optimizer]:
        """As before the first step."""
        torch.manual_seed(0)
        model = NeoX(self.width, self.layers, self.vocabulary).to(self.device, getattr(torch, self.state))
        optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
        return model, optimizer

    def train_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> float:
        """One step; the loss before it."""
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * warm_cosine(step, self.steps, max(1, self.steps // 20))
        inputs_BT, targets_BT = self._batch(self._texts[0], seed=step)
        loss = functional.cross_entropy(self._logits(model, inputs_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    @torch.no_grad()  # as a decorator: a `with` around `yield` would reach into whoever takes the batches
    def heldout(self, model: nn.Module) -> Iterator[tuple[Tensor, float]]:
        """Log-probabilities, float32 (B, T, V), and loss of text that training never sees."""
        for index in range(HELDOUT_BATCHES):
            inputs_BT, targets_BT = self._batch(self._texts[1], seed=HELDOUT_SEED + index)
            log_probabilities = functional.log_softmax(self._logits(model, inputs_BT), -1)
            yield log_probabilities, functional.nll_loss(log_probabilities.flatten(0, 1), targets_BT.flatten()).item()

    def _batch(self, text: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Tokens and the tokens that follow them, int64 (B, T)."""
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(text) - self.context, (self.batch, 1), generator=generator)
        rows = text[(starts + torch.arange(self.context + 1)).to(text.device)].long()
        return rows[:, :-1], rows[:, 1:]

    def _logits(self, model: nn.Module, tokens_BT: Tensor) -> Tensor:
        """Computed in bfloat16; float32 (B, T, V)."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            return model(tokens_BT).float()


def archived(job: PythiaJob, work: Path, preset: str) -> Iterator[dict[str, Any]]:
    """Train, and archive each checkpoint while the training goes on; their reports."""
    run, pending = work / "run", deque[Future[dict[str, Any]]]()
    with ThreadPoolExecutor(1) as beside:
        started = time.perf_counter()
        for done, loss in run_series(job, run):
            row = {"step": done, "training_loss": round(loss, 4)}
            row |= {"training_seconds": round(time.perf_counter() - started, 1)}
            pending.append(beside.submit(archive_one, job, work, preset, row))
            while len(pending) > WAITING:
                yield pending.popleft().result()
            started = time.perf_counter()
        for future in pending:
            yield future.result()


def archive_one(job: PythiaJob, work: Path, preset: str, row: dict[str, Any]) -> dict[str, Any]:
    """Archive a checkpoint and print its row; of the originals before it only one stays."""
    (report,) = compress([checkpoint_path(work / "run", row["step"])], work / "store", preset, job.device)
    row |= {name: report[name] for name in ("archive_bytes", "bits")}
    row |= {"ratio": round(report["ratio"], 2), "compress_seconds": round(report["seconds"], 1)}
    print(json.dumps(row), flush=True)
    checkpoint_path(work / "run", row["step"] - 2 * job.every).unlink(missing_ok=True)
    return report


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--preset", default="resume")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--state", choices=["float32", "bfloat16"], default="float32")
    numbers = {"width": 1024, "layers": 24, "vocabulary": 50304, "steps": 10_000, "every": 1000}
    numbers |= {"batch": 16, "context": 1024}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.vocabulary < BYTE_VALUES:
        parser.error(f"--vocabulary: expected at least {BYTE_VALUES}, the values of a byte, got {options.vocabulary}")
    return options


def main() -> None:
    options = vars(arguments())
    work, preset = options.pop("work"), options.pop("preset")
    work.mkdir(parents=True)
    job = PythiaJob(**options)
    parameters = sum(parameter.numel() for parameter in job.make()[0].parameters())
    print(json.dumps({"parameters": parameters, "preset": preset, **options}), flush=True)
    reports = list(archived(job, work, preset))
    last, restored = reports[-1], work / "restored.pt"
    (report,) = ckzd("restore", last["archive"], "-o", str(restored))
    measured = quality(job, checkpoint_path(work / "run", last["step"]), restored)
    print(json.dumps({"restored_step": last["step"], "seconds": round(report["seconds"], 1), **measured}), flush=True)
    seconds = [each["seconds"] for each in reports[1:]] or [last["seconds"]]
    speed = last["original_bytes"] / 1e6 / (sum(seconds) / len(seconds))
    summary = {**loop_ratios(reports), "original_bytes": last["original_bytes"], "compress_mb_s": round(speed, 1)}
    summary |= {name: measured[name] for name in ("kl", "resume_gap", "heldout_gap")}
    print(json.dumps({"summary": f"pythia {parameters:,}", **summary, **machine()}))


if __name__ == "__main__":
    main()
