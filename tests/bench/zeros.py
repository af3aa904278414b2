"""Exact zeros, archived and restored all along a chain: how many are no longer 0, and what the mask costs.

usage: zeros.py [--kinds half 2:4 ...] [--presets resume archive paper] [--steps 1000] [--every 250]
A small run of each kind is trained, archived as a chain and restored. A line a checkpoint gives the zeros that
its weights and moments held, and how many the restore made something else; `bytes` stand beside those of the same
job without zeros. The bar is none lost. Exits with 1 if any was.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from command import round_trip
from machine import machine
from small import INPUTS, OUTPUTS, YOUNG, ByteLstm, SmallJob, mlp, regression, text
from torch import Tensor, nn
from training import run_series

PARTS = ("model", "exp_avg", "exp_avg_sq")


def _constrained(model: nn.Module, mask: Tensor, *, frees_moments: bool) -> None:
    """Weights of the middle layer outside of the mask are 0; so are their gradients, unless `frees_moments`."""
    weight = model[2].weight
    with torch.no_grad():
        weight.mul_(mask)
        if weight.grad is not None and not frees_moments:
            weight.grad.mul_(mask)


def random_mask() -> Tensor:
    """Half of the middle layer, anywhere."""
    return (torch.rand(128, 128, generator=torch.Generator().manual_seed(2)) < 0.5).float()


def two_of_four() -> Tensor:
    """Two of each four of the middle layer."""
    order = torch.rand(128, 32, 4, generator=torch.Generator().manual_seed(2)).argsort(-1)
    return (order < 2).float().view(128, 128)


def masked(mask: Tensor, *, frees_moments: bool = False) -> Callable[[nn.Module], None]:
    """What keeps a job to a mask."""
    return partial(_constrained, mask=mask, frees_moments=frees_moments)


def grow_mask(model: nn.Module) -> None:
    """The smallest weights of a layer's rows go to 0 bit by bit, and what is 0 stays 0: gradual pruning."""
    weight = model[2].weight
    with torch.no_grad():
        threshold = 2e-3 if weight.grad is not None else 0.0
        weight.mul_(weight.abs() > threshold)


def dead_units(model: nn.Module) -> None:
    """Half of a layer's units never fire: nothing reaches their weights, and their moments stay exactly 0."""
    with torch.no_grad():
        model[0].bias[::2] = -100.0


def relu_mlp() -> nn.Module:
    """The regression's network with units that can die."""
    return nn.Sequential(nn.Linear(INPUTS, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, OUTPUTS))


_MLP = SmallJob(mlp, partial(regression, 0), steps=1000, every=250)
DENSE = "dense"
KINDS = {
    DENSE: _MLP,
    "half": dataclasses.replace(_MLP, constrain=masked(random_mask())),
    "2:4": dataclasses.replace(_MLP, constrain=masked(two_of_four())),
    "live moments": dataclasses.replace(_MLP, constrain=masked(random_mask(), frees_moments=True)),
    "growing": dataclasses.replace(_MLP, constrain=grow_mask),
    "dead units": dataclasses.replace(_MLP, network=relu_mlp, constrain=dead_units),
    "padding rows": dataclasses.replace(_MLP, network=partial(ByteLstm, 320), examples=text, batch=8),
    "unseen rows": YOUNG["lstm"],  # of bytes that never occur: decay alone moves their weights
}


def tensors_of(path: Path) -> dict[str, dict[str, Tensor]]:
    """The float tensors of a checkpoint by part and name."""
    state = torch.load(path, weights_only=True)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    parts["model"] = {name: tensor for name, tensor in state["model"].items() if tensor.is_floating_point()}
    for number, moments in state["optimizer"]["state"].items():
        for part in PARTS[1:]:
            parts[part][str(number)] = moments[part]
    return parts


def zeros(original: Path, restored: Path) -> dict[str, tuple[int, int]]:
    """By part: how many zeros there were, and how many of them are none any more."""
    before, after = tensors_of(original), tensors_of(restored)
    counts = {}
    for part in PARTS:
        there = lost = 0
        for name, tensor in before[part].items():
            zero = tensor == 0
            there, lost = there + int(zero.sum()), lost + int((after[part][name][zero] != 0).sum())
        counts[part] = (there, lost)
    return counts


Row = tuple[str, dict[str, tuple[int, int]], int]  # checkpoint, zeros by part, bytes of the archive


def measure(job: SmallJob, preset: str) -> Iterator[Row]:
    """Every checkpoint of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        run, work = Path(scratch, "run"), Path(scratch, "work")
        work.mkdir()
        for _ in run_series(job, run):
            pass
        for original, restored, report in round_trip(run, work, preset):
            yield original.stem, zeros(original, restored), report["archive_bytes"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    parser.add_argument("--presets", nargs="+", default=["resume", "archive", "paper"])
    parser.add_argument("--steps", type=int, help="as the kind has it if not given")
    parser.add_argument("--every", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads changes sums, and a run is to repeat bit for bit
    print(*(f"{name} {value}" for name, value in machine().items()), sep=", ")
    print(f"{'preset':9}{'kind':14}{'checkpoint':13}{'bytes':>8}" + "".join(f"{part:>12}{'lost':>8}" for part in PARTS))
    given = {name: value for name in ("steps", "every") if (value := getattr(options, name))}
    lost = 0
    for preset in options.presets:
        for kind in options.kinds:
            job = dataclasses.replace(KINDS[kind], **given)
            for checkpoint, counts, size in measure(job, preset):
                cells = "".join(f"{there:>12}{gone:>8}" for there, gone in counts.values())
                print(f"{preset:9}{kind:14}{checkpoint:13}{size:>8}{cells}", flush=True)
                lost += sum(gone for _, gone in counts.values())
    print(f"zeros lost: {lost}; bar: 0")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
