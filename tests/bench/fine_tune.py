"""The first archives of a fine-tune, with the model that it began from as `base_model` and without.

usage: fine_tune.py [--size demo] [--steps 300] [--every 60] [--presets resume lossless]
A byte-level GPT (1.5 M parameters; `tiny` 0.14 M) is trained for STEPS on one half of the text, and its weights alone
are saved with safetensors, in float32 and in bfloat16. From each of the two it is trained on, on the other half, with a
fresh AdamW and a tenth of the learning rate; the first two checkpoints, EVERY steps apart, are archived in closed loop.
A JSON line for each preset and dtype gives the archives' bytes, ratios and what the restored first one loses (KL, in
nats a byte).
Exits with 1 if a base model makes the first archive larger, or `lossless` does not give back the same bytes.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from command import ckzd
from machine import machine
from safetensors.torch import load_file, save_file
from small import SmallJob
from torch import nn
from training import HELDOUT_SEED, divergence, load, run_series

from ckzd.demo_training import SIZES, ByteModel, Size, batch_of, stdlib_text

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

text = cache(stdlib_text)


@dataclass(frozen=True)
class Half:
    """Examples from one half of the text; those that are held out are the same for both."""

    network: Size
    second: bool

    def __call__(self, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 (B, T), twice."""
        learned, judged = text()
        middle = len(learned) // 2
        source = judged if seed >= HELDOUT_SEED else learned[middle:] if self.second else learned[:middle]
        return batch_of(source, replace(self.network, batch=size), seed)


@dataclass(frozen=True)
class Pretrained:
    """The network with the weights of a file."""

    network: Size
    file: Path

    def __call__(self) -> nn.Module:
        """In float32."""
        model = ByteModel(self.network)
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(self.file).items()})
        return model


def pretrain(work: Path, network: Size, steps: int) -> None:
    """WORK/float32.safetensors and WORK/bfloat16.safetensors."""
    job = SmallJob(
        lambda: ByteModel(network), Half(network, second=False), batch=network.batch, warmup_steps=network.warmup_steps
    )
    model, optimizer = job.make()
    for step in range(steps):
        job.train_step(model, optimizer, step)
    for name, dtype in DTYPES.items():
        save_file(
            {key: tensor.to(dtype).contiguous() for key, tensor in model.state_dict().items()},
            work / f"{name}.safetensors",
        )


def archived(run: Path, store: Path, preset: str, *options: str) -> list[dict[str, Any]]:
    """Reports of a run's two checkpoints."""
    return ckzd("compress", str(run), "--store", str(store), "--preset", preset, *options)


def measure(job: SmallJob, run: Path, model: Path, work: Path, preset: str) -> dict[str, Any]:
    """Both ways of one run."""
    found: dict[str, Any] = {"preset": preset, "model": model.stem}
    for way, options in (("without", ()), ("with", ("--base-model", str(model)))):
        reports = archived(run, work / f"{preset}-{model.stem}-{way}", preset, *options)
        original, restored = Path(reports[0]["checkpoint"]), work / f"{preset}-{model.stem}-{way}.pt"
        ckzd("restore", reports[0]["archive"], "-o", str(restored))
        found |= {f"bytes_{way}": [report["archive_bytes"] for report in reports]}
        found |= {f"ratio_{way}": [round(report["ratio"], 2) for report in reports]}
        found |= {f"kl_{way}": divergence(job, load(job, original)[0], load(job, restored)[0])}
        if preset == "lossless" and original.read_bytes() != restored.read_bytes():
            raise SystemExit(f"{restored} is not {original}")
    return found | {"smaller": round(found["bytes_without"][0] / found["bytes_with"][0], 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=60)
    parser.add_argument("--presets", nargs="+", default=["resume", "lossless"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    worst = float("inf")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        os.environ["XDG_STATE_HOME"] = scratch  # what is noted of these models is not of this user
        network = SIZES[options.size]
        pretrain(work, network, options.steps)
        print(json.dumps({**machine(), "size": options.size, "steps": options.steps, "every": options.every}))
        for name in DTYPES:
            model, run = work / f"{name}.safetensors", work / name
            job = SmallJob(
                Pretrained(network, model), Half(network, second=True), steps=2 * options.every, every=options.every,
                batch=network.batch, peak_learning_rate=network.peak_learning_rate / 10,
            )  # fmt: skip
            for _ in run_series(job, run):
                pass
            for preset in options.presets:
                row = measure(job, run, model, work, preset)
                worst = min(worst, row["smaller"])
                print(json.dumps(row), flush=True)
    return int(worst <= 1.0)


if __name__ == "__main__":
    sys.exit(main())
