"""What a lone momentum costs, and what its loss costs: SGD, Lion and Muon by preset.

usage: momentum.py RUNS --kind sgd|lion|muon [--presets resume archive] [--at 700 800 900]
RUNS/KIND/step_000100.pt, ... is the run: trained on one thread if it is not there. Each checkpoint given by --at is
archived in closed loop after the two before it, once for each preset. A line a preset gives the archive's bits a
parameter and, over the next 40 steps, the relative excess of training and held-out loss: of the restored checkpoint, of
the original with the restored optimizer (`momentum`), and of the original with its last bits moved (`control`: how much
is noise), means over the checkpoints. The tiny kinds are for tests.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from command import ckzd, compress
from lion import Lion
from machine import machine
from torch import Tensor, nn
from training import Job, checkpoint_path, quality, run_series
from vision import JOBS, VisionJob

GAPS = ("resume_gap", "heldout_gap")


class TwoOptimizers:
    """Muon for hidden matrices and AdamW for all else, as Muon is meant to be used; one state dict of two."""

    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        hidden = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
        known = {id(parameter) for parameter in hidden}
        others = [parameter for parameter in model.parameters() if id(parameter) not in known]
        self._both = {
            "muon": torch.optim.Muon(hidden, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            "adamw": torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.05),
        }

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of both."""
        return [group for optimizer in self._both.values() for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        for optimizer in self._both.values():
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self._both.values():
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self._both.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, optimizer in self._both.items():
            optimizer.load_state_dict(state[name])


@dataclass(frozen=True)
class OtherOptimizer:
    """The vision transformer's job with Lion or Muon; a training.Job."""

    kind: str
    vision: VisionJob

    @property
    def steps(self) -> int:
        return self.vision.steps

    @property
    def every(self) -> int:
        return self.vision.every

    def make(self) -> tuple[nn.Module, Any]:
        """As before the first step."""
        model, _ = self.vision.make()
        if self.kind == "lion":
            return model, Lion(model.parameters(), lr=self.vision.peak_learning_rate, weight_decay=0.5)
        return model, TwoOptimizers(model, self.vision.peak_learning_rate)

    def train_step(self, model: nn.Module, optimizer: Any, step: int) -> float:
        """One step; the loss before it."""
        return self.vision.train_step(model, optimizer, step)

    def heldout(self, model: nn.Module) -> Iterator[tuple[Tensor, float]]:
        """Log-probabilities and loss of images that training never sees."""
        return self.vision.heldout(model)


PEAK_LEARNING_RATES = {"lion": 6e-5, "muon": 6e-4}  # Lion: a tenth of AdamW's, with ten times its decay


def kinds() -> dict[str, Job]:
    """By name."""
    others = {
        f"{kind}{tiny}": OtherOptimizer(kind, dataclasses.replace(JOBS["vit" + tiny], peak_learning_rate=rate))
        for kind, rate in PEAK_LEARNING_RATES.items()
        for tiny in ("", "-tiny")
    }
    return {"sgd": JOBS["convnet"], "sgd-tiny": JOBS["convnet-tiny"], **others}


def restored_optimizer(original: Path, restored: Path, target: Path) -> None:
    """Write the original with the restored one's optimizer."""
    state = torch.load(original, weights_only=True)
    torch.save(state | {"optimizer": torch.load(restored, weights_only=True)["optimizer"]}, target)


def measure(job: Job, run: Path, step: int, preset: str) -> dict[str, float]:
    """One checkpoint under one preset, after the two before it."""
    chain = [checkpoint_path(run, step - back * job.every) for back in (2, 1, 0)]
    with tempfile.TemporaryDirectory() as work:
        restored, mixed = Path(work, "restored.pt"), Path(work, "mixed.pt")
        *_, report = compress(chain, Path(work, "store"), preset)
        ckzd("restore", report["archive"], "-o", str(restored))
        restored_optimizer(chain[-1], restored, mixed)
        whole, momentum = (quality(job, chain[-1], path) for path in (restored, mixed))
    row = {f"bits_{part}": bits for part, bits in report["bits"].items() if bits}
    row |= {"ratio": report["ratio"], "kl": whole["kl"]}
    for gap in GAPS:
        row |= {gap: whole[gap], f"momentum_{gap}": momentum[gap], f"control_{gap}": whole[gap + "_control"]}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--kind", choices=sorted(kinds()), required=True)
    parser.add_argument("--presets", nargs="+", default=["resume", "archive"])
    parser.add_argument("--at", nargs="+", type=int, help="the three before the last checkpoint if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads changes sums, and a run is to repeat bit for bit
    job, run = kinds()[options.kind], options.runs / options.kind
    print(json.dumps({**machine(), "run": options.kind}))
    for done, loss in run_series(job, run):
        print(json.dumps({"trained_step": done, "training_loss": round(loss, 4)}), flush=True)
    steps = options.at or [job.steps - back * job.every for back in (3, 2, 1) if job.steps > (back + 2) * job.every]
    for preset in options.presets:
        each = [measure(job, run, step, preset) for step in steps]
        names = sorted({name for row in each for name in row})
        means = {name: float(f"{statistics.mean(row.get(name, 0.0) for row in each):.4g}") for name in names}
        print(json.dumps({"preset": preset, "steps": steps, **means}), flush=True)


if __name__ == "__main__":
    main()
