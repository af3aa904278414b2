"""Deterministic training runs, and what a restored checkpoint is worth to one: the ruler's measure for any job.

A job's data and learning rate depend on the step alone, so that a run resumed from an exact checkpoint repeats the
uninterrupted one. Checkpoints are what most jobs write: torch.save of model, optimizer and step.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

RESUME_STEPS = 40
HELDOUT_SEED = 10_000_019  # far from every step number, which seeds the training batches


class Job(Protocol):
    """One training job."""

    steps: int
    every: int  # steps between checkpoints

    def make(self) -> tuple[nn.Module, Optimizer]:
        """Model and optimizer as they are before the first step."""

    def train_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> float:
        """One step; the loss before it."""

    def heldout(self, model: nn.Module) -> Iterator[tuple[Tensor, float]]:
        """Batch by batch: log-probabilities, float32 (..., classes), and the mean loss, in nats a prediction."""


def warm_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to a tenth."""
    return min(1.0, (step + 1) / warmup_steps) * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def checkpoint_path(run: Path, step: int) -> Path:
    """RUN/step_000100.pt."""
    return run / f"step_{step:06d}.pt"


def save(path: Path, model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Write a checkpoint, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, unfinished)
    os.replace(unfinished, path)  # noqa: PTH105  # as Path.replace, but not mistaken for str.replace


def load(job: Job, path: Path) -> tuple[nn.Module, Optimizer, int]:
    """Model, optimizer and step of a checkpoint."""
    model, optimizer = job.make()
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return model, optimizer, int(state["step"])


def run_series(job: Job, run: Path) -> Iterator[tuple[int, float]]:
    """Train to the end and write the run's checkpoints; (step, mean loss since the last) after each that is written.

    Goes on from the newest checkpoint that is there: a finished run costs nothing.
    """
    run.mkdir(parents=True, exist_ok=True)
    there = sorted(run.glob("step_*.pt"))
    if there:
        model, optimizer, done = load(job, there[-1])
    else:
        model, optimizer = job.make()
        done = 0
    while done < job.steps:
        loss = sum(job.train_step(model, optimizer, done + i) for i in range(job.every)) / job.every
        done += job.every
        save(checkpoint_path(run, done), model, optimizer, done)
        yield done, loss


def heldout_loss(job: Job, model: nn.Module) -> float:
    """Mean held-out loss, nats."""
    losses = [loss for _, loss in job.heldout(model)]
    return sum(losses) / len(losses)


def divergence(job: Job, original: nn.Module, restored: nn.Module) -> float:
    """Mean KL(original || restored) of the held-out predictions, nats."""
    pairs = zip(job.heldout(original), job.heldout(restored), strict=True)
    each = [(p.exp() * (p - q)).sum(-1).mean().item() for (p, _), (q, _) in pairs]
    return sum(each) / len(each)


def nudge(model: nn.Module) -> None:
    """Move every weight by about its last bit: what differs by less is noise."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + torch.finfo(parameter.dtype).eps)


def quality(job: Job, original: Path, restored: Path, *, resume_steps: int = RESUME_STEPS) -> dict[str, float]:
    """What a restore costs: `kl`, and what `gaps` says."""
    kl = divergence(job, load(job, original)[0], load(job, restored)[0])
    return {"kl": kl} | gaps(job, original, restored, resume_steps=resume_steps)


def gaps(job: Job, original: Path, restored: Path, *, resume_steps: int = RESUME_STEPS) -> dict[str, float]:
    """Relative excess of training and held-out loss over the next steps.

    `resume_gap` is of the mean training loss, `heldout_gap` of the held-out loss after these steps; the same with
    `_control` for the original with its last bits moved, which shows how much is noise.
    """
    report = {}
    training, heldout = {}, {}
    for name, path in (("original", original), ("restored", restored), ("control", original)):
        model, optimizer, step = load(job, path)
        if name == "control":
            nudge(model)
        losses = [job.train_step(model, optimizer, step + i) for i in range(resume_steps)]
        training[name], heldout[name] = sum(losses) / len(losses), heldout_loss(job, model)
    for name, suffix in (("restored", ""), ("control", "_control")):
        report["resume_gap" + suffix] = training[name] / training["original"] - 1
        report["heldout_gap" + suffix] = heldout[name] / heldout["original"] - 1
    return report | {"resume_loss_original": training["original"], "heldout_loss_original": heldout["original"]}
