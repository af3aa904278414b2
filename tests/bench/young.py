"""What a restore costs a young run: the first checkpoints of several kinds of job, with several optimizers.

usage: young.py [--kinds mlp ...] [--optimizers adamw adam sgd] [--preset resume] [--steps 120] [--every 40]
Each run is trained, archived as a chain and restored. A line a checkpoint gives, over the next 40 steps with the same
batches, the relative excess of mean training loss and of the held-out loss after them, each with that of the original
with its last bits moved, which is noise; and what the restore does to the optimizer: the length of the first update
m / (sqrt(v) + eps), both corrected for their youth, and the sum of v, each restored over original: the update as the
whole model's norm, as the worst tensor's norm and as the worst tensor's median over its elements; v as the worst
tensor's. SGD has no v, and its update is its momentum. A line over a bar (BARS below) names it. Exits with 1 if one is.
"""

import argparse
import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from command import round_trip
from machine import machine
from small import OPTIMIZERS, YOUNG, SmallJob
from torch import Tensor
from training import gaps, run_series

MOST_GAP = 0.005
LENGTHS = (0.8, 1.25)  # of updates, restored over original
SUMS = (0.5, 2.0)  # of second moments


@dataclass(frozen=True)
class Optimizer:
    """What a restore did to the optimizer, restored over original; 1 is as it was."""

    length: float  # of the whole model's update
    worst_length: float  # of the tensor whose ratio is furthest from 1
    worst_median: float  # over its elements, the same
    worst_sum: float  # of second moments, the same


@dataclass(frozen=True)
class Row:
    """One checkpoint."""

    checkpoint: str
    ratio: float
    gaps: dict[str, float]
    optimizer: Optimizer

    def missed(self) -> list[str]:
        """The bars that it does not meet."""
        optimizer = self.optimizer
        met = {
            "training": self.gaps["resume_gap"] <= MOST_GAP,
            "held-out": self.gaps["heldout_gap"] <= MOST_GAP,
            "length": LENGTHS[0] <= optimizer.length <= LENGTHS[1],
            "worst length": LENGTHS[0] <= optimizer.worst_length <= LENGTHS[1],
            "median": LENGTHS[0] <= optimizer.worst_median <= LENGTHS[1],
            "v": SUMS[0] <= optimizer.worst_sum <= SUMS[1],
        }
        return [bar for bar, is_met in met.items() if not is_met]


def _states(path: Path) -> Iterator[tuple[Tensor, Tensor | None]]:
    """By weight: its next update without the learning rate, and its second moment, both float64."""
    optimizer = torch.load(path, weights_only=True)["optimizer"]
    for group in optimizer["param_groups"]:
        for number in group["params"]:
            state = optimizer["state"][number]
            if "momentum_buffer" in state:
                yield state["momentum_buffer"].double(), None
                continue
            first, second, step = (state[name].double() for name in ("exp_avg", "exp_avg_sq", "step"))
            filled, also_filled = (1 - beta ** step.item() for beta in group["betas"])
            yield first / filled / ((second / also_filled).sqrt() + group["eps"]), second


def _furthest(ratios: list[float]) -> float:
    """The one furthest from 1 by factor; NaN stands out, 0 is far."""
    return max(ratios, key=lambda ratio: abs(math.log(ratio)) if ratio > 0 else math.inf, default=1.0)


def compared(original: Path, restored: Path) -> Optimizer:
    """Two checkpoints of one optimizer."""
    lengths, medians, sums, squares = [], [], [], [0.0, 0.0]
    for (before, v_before), (after, v_after) in zip(_states(original), _states(restored), strict=True):
        for index, update in enumerate((before, after)):
            squares[index] += update.square().sum().item()
        moved = before != 0
        if moved.any():
            lengths.append((after.norm() / before.norm()).item())
            medians.append((after[moved].abs() / before[moved].abs()).median().item())
        if v_before is not None and v_before.any():
            sums.append((v_after.sum() / v_before.sum()).item())
    return Optimizer(math.sqrt(squares[1] / squares[0]), _furthest(lengths), _furthest(medians), _furthest(sums))


def measure(job: SmallJob, preset: str) -> Iterator[Row]:
    """Every checkpoint of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        run, work = Path(scratch, "run"), Path(scratch, "work")
        work.mkdir()
        for _ in run_series(job, run):
            pass
        for original, restored, report in round_trip(run, work, preset):
            yield Row(original.stem, report["ratio"], gaps(job, original, restored), compared(original, restored))


def line(row: Row) -> str:
    """As the table has it."""
    shares = (row.gaps[name] for name in ("resume_gap", "resume_gap_control", "heldout_gap", "heldout_gap_control"))
    ratios = dataclasses.astuple(row.optimizer)
    cells = "".join(f"{100 * share:>+9.3f}" for share in shares) + "".join(f"{ratio:>9.3g}" for ratio in ratios)
    return f"{row.checkpoint:13}{row.ratio:>7.1f}x{cells}  {', '.join(row.missed())}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=sorted(YOUNG), default=list(YOUNG))
    parser.add_argument("--optimizers", nargs="+", choices=sorted(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--preset", default="resume")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads changes sums, and a run is to repeat bit for bit
    print(*(f"{name} {value}" for name, value in machine().items()), f"preset {options.preset}", sep=", ")
    columns = ("train %", "noise", "held %", "noise", "length", "worst", "median", "sum of v")
    print(f"{'kind':10}{'optimizer':10}{'checkpoint':13}{'ratio':>8}{''.join(f'{c:>9}' for c in columns)}  missed")
    missed = rows = 0
    for kind in options.kinds:
        for optimizer in options.optimizers:
            changes = {"optimizer": optimizer, "steps": options.steps, "every": options.every}
            for row in measure(dataclasses.replace(YOUNG[kind], **changes), options.preset):
                print(f"{kind:10}{optimizer:10}{line(row)}", flush=True)
                missed, rows = missed + bool(row.missed()), rows + 1
    print(f"{missed} of {rows} miss a bar: gaps <= {100 * MOST_GAP} %, lengths {LENGTHS}, sums of v {SUMS}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
