"""The training job of `ckzd demo`: a byte-level GPT that learns the source text of Python's own library.

It stands for the user's job and knows nothing of ckzd: it saves with `torch.save`, straight onto the final path as
most jobs do, and resumes with `torch.load`. Data order and learning rate depend on the step alone and it computes on
one thread, so that two runs of the same steps from the same state agree bit for bit.

    python -m ckzd.demo_training RUN --size demo --steps 280 --every 35 [--no-save] [--resume RUN/step_175.pt]

It prints one JSON object a line: step, loss (training, nats a byte), and where it evaluated or saved also heldout_loss
and checkpoint.
"""

# B = sequences in a batch, T = bytes in a sequence, C = width of the model

import argparse
import json
import math
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

Text = npt.NDArray[np.uint8]

VOCABULARY = 256
HELDOUT_FRACTION = 0.05
HELDOUT_BATCHES = 16
HELDOUT_SEED = 1_000_003  # far from every step number, which seed the training batches


@dataclass(frozen=True)
class Size:
    """One model and how it is trained. A checkpoint takes 12 bytes a parameter: weight and two moments in float32."""

    width: int
    layers: int
    heads: int
    batch: int
    context: int
    peak_learning_rate: float
    warmup_steps: int


SIZES = {
    "demo": Size(width=192, layers=3, heads=3, batch=8, context=64, peak_learning_rate=1e-3, warmup_steps=40),  # 1.5 M
    "tiny": Size(width=64, layers=2, heads=2, batch=4, context=32, peak_learning_rate=2e-3, warmup_steps=10),  # 0.14 M
}


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a layer norm and beside a residual stream."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.attention_norm = nn.LayerNorm(size.width)
        self.attention_in = nn.Linear(size.width, 3 * size.width)
        self.attention_out = nn.Linear(size.width, size.width)
        self.forward_norm = nn.LayerNorm(size.width)
        self.forward_in = nn.Linear(size.width, 4 * size.width)
        self.forward_out = nn.Linear(4 * size.width, size.width)

    def forward(self, stream_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        batch, length, width = stream_BTC.shape
        projected = self.attention_in(self.attention_norm(stream_BTC))
        query, key, value = projected.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        stream_BTC = stream_BTC + self.attention_out(attended.transpose(1, 2).reshape(batch, length, width))
        change: Tensor = self.forward_out(functional.gelu(self.forward_in(self.forward_norm(stream_BTC))))
        return stream_BTC + change


class ByteModel(nn.Module):
    """A decoder-only transformer over bytes."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.bytes = nn.Embedding(VOCABULARY, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, VOCABULARY, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, text_BT: Tensor) -> Tensor:
        """Bytes as int64 (B, T) -> logits of the byte after each, float32 (B, T, 256)."""
        stream: Tensor = self.bytes(text_BT) + self.positions(torch.arange(text_BT.shape[1]))
        for block in self.blocks:
            stream = block(stream)
        logits: Tensor = self.head(self.norm(stream))
        return logits


def stdlib_text() -> tuple[Text, Text]:
    """The text to learn and the text to be judged on: every top-level module of Python's standard library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), dtype=np.uint8)
    cut = int(len(text) * (1 - HELDOUT_FRACTION))
    return text[:cut], text[cut:]


def batch_of(text: Text, size: Size, seed: int) -> tuple[Tensor, Tensor]:
    """Bytes and the bytes that follow them, both int64 (B, T), drawn by `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - size.context - 1, (size.batch,), generator=generator)
    rows = np.stack([text[start : start + size.context + 1] for start in starts.tolist()]).astype(np.int64)
    both = torch.from_numpy(rows)
    return both[:, :-1], both[:, 1:]


def learning_rate(step: int, steps: int, size: Size) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / size.warmup_steps)
    return size.peak_learning_rate * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


class Training:
    """Model, optimizer and the number of steps done."""

    def __init__(self, size: Size, steps: int) -> None:
        torch.manual_seed(0)
        self.size = size
        self.steps = steps
        self.step = 0
        self.model = ByteModel(size)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=size.peak_learning_rate, weight_decay=0.1)
        self.text, self.heldout_text = stdlib_text()

    def loss_on(self, text: Text, seed: int) -> Tensor:
        """Mean cross-entropy of one batch, nats a byte."""
        inputs, targets = batch_of(text, self.size, seed)
        loss: Tensor = functional.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())
        return loss

    def train_step(self) -> float:
        """One optimizer step; the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.size)
        loss = self.loss_on(self.text, seed=self.step)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def heldout_loss(self) -> float:
        """Mean loss over the same held-out batches each time."""
        losses = [self.loss_on(self.heldout_text, HELDOUT_SEED + i).item() for i in range(HELDOUT_BATCHES)]
        return sum(losses) / len(losses)

    def save(self, path: Path) -> None:
        """Write what a resume needs."""
        state = {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, path)

    def resume(self, path: Path) -> None:
        """Go on from a file that `save` wrote."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])


def report(**fields: object) -> None:
    """One JSON object on standard output, at once."""
    print(json.dumps(fields), flush=True)  # noqa: T201  # this is the job's log, read by the demo


def run_training(training: Training, run: Path, *, every: int, save: bool) -> None:
    """Train to the last step; evaluate after every `every` steps (0: at the end only) and, if told to, save."""
    while training.step < training.steps:
        loss = training.train_step()
        at_checkpoint = every > 0 and training.step % every == 0
        fields: dict[str, object] = {"step": training.step, "loss": loss}
        if at_checkpoint or training.step == training.steps:
            fields["heldout_loss"] = training.heldout_loss()
        if at_checkpoint and save:
            checkpoint = run / f"step_{training.step}.pt"
            training.save(checkpoint)
            fields["checkpoint"] = checkpoint.name
        report(**fields)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m ckzd.demo_training")
    parser.add_argument("run", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, default=0)
    parser.add_argument("--no-save", dest="save", action="store_false")
    parser.add_argument("--resume", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the other cores belong to whoever trains beside us; and one thread repeats bit for bit
    training = Training(SIZES[arguments.size], arguments.steps)
    if arguments.resume:
        training.resume(arguments.resume)
        report(step=training.step, resumed=str(arguments.resume), heldout_loss=training.heldout_loss())
    run_training(training, arguments.run, every=arguments.every, save=arguments.save)


if __name__ == "__main__":
    main()
