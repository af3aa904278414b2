"""What each optimizer's checkpoints cost, and what a restore of one costs its training.

usage: optimizers.py RUNS WORK [--only NAME ...] [--preset resume] [--steps 300] [--every 50]
A GPT over bytes of a million parameters is trained by each on one thread; RUNS/NAME keeps the run, WORK is new. A line
an optimizer: the ratio of its last four deltas in closed loop, bits a parameter by part, and of all restored deltas
that 40 steps can follow the largest KL and the means of the gaps. A gap alone says little: whatever a restore changes
moves such a young run's held-out loss by some tenths of a percent, up or down; all of them are listed.
Exits with 1 if a ratio is under its bar or a mean gap over it.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from command import compress, loop_ratios
from lion import Lion
from machine import machine
from muon import MuonWithAdam, Spread, of_adams_rms, of_spectral_norm
from small import SmallJob, text
from soap import Soap
from torch import nn
from torch.optim import Optimizer
from training import RESUME_STEPS, checkpoint_path, quality, run_series

from ckzd.demo_training import ByteModel, Size
from ckzd.operations.restore import restore

MOST_GAP = 0.005
SIZE = Size(width=160, layers=3, heads=4, batch=8, context=64, peak_learning_rate=1e-3, warmup_steps=40)


@dataclass(frozen=True)
class Kind:
    """An optimizer, its peak learning rate, and the least ratio of late deltas."""

    make: Callable[[nn.Module, float], Optimizer]
    rate: float
    least: float = 25.0


def of_all(make: Callable[..., Optimizer], **settings: object) -> Callable[[nn.Module, float], Optimizer]:
    """One that takes all parameters."""
    return lambda model, rate: make(list(model.parameters()), lr=rate, **settings)


def muon(spread: Spread, share: float, weight_decay: float) -> Callable[[nn.Module, float], Optimizer]:
    """Of hidden matrices; an Adam inside it takes `share` of its rate for all others."""

    def made(model: nn.Module, rate: float) -> Optimizer:
        hidden = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
        others = [p for name, p in model.named_parameters() if not (name.startswith("blocks.") and p.ndim == 2)]
        return MuonWithAdam(hidden, others, rate, share=share, weight_decay=weight_decay, spread=spread)

    return made


KINDS = {
    "adamw": Kind(of_all(torch.optim.AdamW), 1e-3),
    "amsgrad": Kind(of_all(torch.optim.AdamW, amsgrad=True), 1e-3),
    "nadam": Kind(of_all(torch.optim.NAdam), 1e-3),
    "radam": Kind(of_all(torch.optim.RAdam), 1e-3),
    "adamax": Kind(of_all(torch.optim.Adamax), 2e-3),
    "rmsprop": Kind(of_all(torch.optim.RMSprop), 3e-4),
    "rmsprop-momentum": Kind(of_all(torch.optim.RMSprop, momentum=0.9), 5e-5),
    "adagrad": Kind(of_all(torch.optim.Adagrad), 1e-2),
    "adadelta": Kind(of_all(torch.optim.Adadelta), 1.0),
    "adafactor": Kind(of_all(torch.optim.Adafactor), 1e-2),
    "asgd": Kind(of_all(torch.optim.ASGD), 0.3),
    "sgd": Kind(of_all(torch.optim.SGD, momentum=0.9), 0.1),
    "lion": Kind(of_all(Lion), 1e-4),
    "muon": Kind(muon(of_spectral_norm, share=3e-4 / 2e-2, weight_decay=0.01), 2e-2),
    "soap": Kind(of_all(Soap), 3e-3, least=12.0),
    "muon-moonlight": Kind(muon(of_adams_rms, share=1.0, weight_decay=0.1), 1e-3),
}


@dataclass(frozen=True)
class OptimizerJob(SmallJob):
    """The same run, by any optimizer; a training.Job."""

    kind: Kind = KINDS["adamw"]

    def make(self) -> tuple[nn.Module, Optimizer]:
        """As before the first step."""
        torch.manual_seed(0)
        model = self.network()
        return model, self.kind.make(model, self.peak_learning_rate)


def job_of(kind: Kind, steps: int, every: int) -> OptimizerJob:
    """A run by that optimizer."""
    network = partial(ByteModel, SIZE)
    common = OptimizerJob(network, text, steps=steps, every=every, batch=8, warmup_steps=20, kind=kind)
    return replace(common, peak_learning_rate=kind.rate)


def measure(name: str, run: Path, work: Path, preset: str, job: OptimizerJob) -> dict[str, object]:
    """Train, archive, restore one and resume it."""
    for _ in run_series(job, run):
        pass
    reports = list(compress([run], work / "store", preset))
    costs = []
    for report in reports[1:]:
        if report["step"] + RESUME_STEPS <= job.steps:
            restored = work / f"restored_{report['step']}.pt"
            restore(Path(report["archive"]), output=restored)
            costs.append(quality(job, checkpoint_path(run, report["step"]), restored))
    bits = {part: round(value, 3) for part, value in reports[-1]["bits"].items() if value >= 0.001}
    ratio = loop_ratios(reports)["ratio_last_mean"]
    gaps = {name: [round(cost[name], 6) for cost in costs] for name in ("resume_gap", "heldout_gap")}
    means = {f"{name}_mean": round(fmean(values), 6) for name, values in gaps.items()}
    met = ratio >= job.kind.least and max(map(abs, means.values())) <= MOST_GAP
    kl = round(max(cost["kl"] for cost in costs), 6)
    return {"optimizer": name, "ratio": ratio, "bits": bits, "met": met, "kl": kl, **means, **gaps}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--preset", default="resume")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({**machine(), "preset": options.preset}))
    met = True
    for name in options.only:
        (options.work / name).mkdir(parents=True)
        job = job_of(KINDS[name], options.steps, options.every)
        row = measure(name, options.runs / name, options.work / name, options.preset, job)
        print(json.dumps(row), flush=True)
        met &= bool(row["met"])
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
