"""What a restore costs in evaluation, which feels what training does not: networks with batch norm.

usage: evaluation.py [--kinds residual ...] [--preset resume] [--steps 300] [--every 75]
Each network is trained, archived as a chain and restored. A line a checkpoint gives KL(original || restored) of the
held-out predictions in evaluation mode, and by how much the worst vector and the worst matrix of the weights are off,
as a share of their own norm. The bar is a KL of 1e-3 at every checkpoint. Exits with 1 if one is over it.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch
from command import round_trip
from machine import machine
from small import EVALUATED, SmallJob
from training import divergence, load, run_series

MOST_DIVERGENCE = 1e-3

Off = tuple[float, str]  # share of its norm that a tensor is off, its name


@dataclass(frozen=True)
class Row:
    """One checkpoint."""

    checkpoint: str
    ratio: float
    divergence: float
    vector: Off
    matrix: Off


def worst_of(original: Path, restored: Path, *, matrices: bool) -> Off:
    """The tensor of the model that is furthest off, of those with one dimension at most or of the others."""
    before, after = (torch.load(path, weights_only=True)["model"] for path in (original, restored))
    off = (0.0, "")
    for name, tensor in before.items():
        if tensor.is_floating_point() and (tensor.ndim > 1) == matrices and (norm := tensor.norm().item()):
            share = (after[name] - tensor).norm().item() / norm
            off = max(off, (share, name), key=itemgetter(0))
    return off


def measure(job: SmallJob, preset: str) -> Iterator[Row]:
    """Every checkpoint of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        run, work = Path(scratch, "run"), Path(scratch, "work")
        work.mkdir()
        for _ in run_series(job, run):
            pass
        for original, restored, report in round_trip(run, work, preset):
            kl = divergence(job, load(job, original)[0], load(job, restored)[0])
            vector, matrix = (worst_of(original, restored, matrices=matrices) for matrices in (False, True))
            yield Row(original.stem, report["ratio"], kl, vector, matrix)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=sorted(EVALUATED), default=list(EVALUATED))
    parser.add_argument("--preset", default="resume")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--every", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads changes sums, and a run is to repeat bit for bit
    print(*(f"{name} {value}" for name, value in machine().items()), f"preset {options.preset}", sep=", ")
    print(f"{'kind':21}{'checkpoint':13}{'ratio':>7}{'KL':>10}  {'worst vector':29}{'worst matrix':29}")
    given = {name: value for name in ("steps", "every") if (value := getattr(options, name))}
    worst = 0.0
    for kind in options.kinds:
        for row in measure(dataclasses.replace(EVALUATED[kind], **given), options.preset):
            off = "".join(f"{100 * share:5.1f} % {name:21.21}" for share, name in (row.vector, row.matrix))
            print(f"{kind:21}{row.checkpoint:13}{row.ratio:>6.1f}x{row.divergence:>10.2e}  {off}", flush=True)
            worst = max(worst, row.divergence)
    print(f"worst KL: {worst:.2e}; bar: {MOST_DIVERGENCE:.0e}")
    return int(worst > MOST_DIVERGENCE)


if __name__ == "__main__":
    sys.exit(main())
