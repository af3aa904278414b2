"""How fast bases are turned by device: gigabytes of original checkpoint a second, and that the bits are NumPy's.

usage: devices.py [--parameters 2e7] [--width 1024] [--threads N] [--devices numpy cuda] [--few N]
Matrices of a transformer, with residuals of low rank and noise, are worked on in batches by as many threads as an
encoder has: coefficients and back (`transforms`), bases that have learned before and learn again (`learning`), and of
that Gram-Schmidt alone (`orthonormal`). `numpy` are the cores, `cpu` is torch there: slow, but the code of a GPU. A GPU
leaves small stacks to the cores; with --few 0 it makes all of them orthonormal.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch
from machine import machine

from ckzd.codec.algebra.exact import Algebra
from ckzd.codec.algebra.on_cores import CORES
from ckzd.codec.algebra.on_torch import OnTorch
from ckzd.codec.arrays import Float64
from ckzd.codec.kernels.plain import MAX_DIRECTIONS
from ckzd.codec.parallel import in_batches, set_threads, threads
from ckzd.codec.transform.adaptive_basis import AdaptiveBasis, Observed, in_fine_units, tracked

# R = rows, C = columns of a matrix
BYTES_A_PARAMETER = 12  # weight, exp_avg, exp_avg_sq in float32
RANK = 16  # of the part of a residual that stays


@dataclass(frozen=True)
class Matrix:
    """A weight as an encoder has it: its basis, and its residual (R, C) in 2**-12 steps."""

    basis: AdaptiveBasis
    fixed: Float64


Batch = list[Matrix]
Stage = Callable[[Algebra[Any], Batch], list[bytes]]  # what comes of each matrix


def matrices(parameters: float, width: int) -> Iterator[Matrix]:
    """About so many parameters, in the shapes of a transformer's layers, each with a basis that has learned once."""
    draw, left = np.random.default_rng(0), parameters
    for shape in cycle([(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]):
        if left <= 0:
            return
        left -= shape[0] * shape[1]
        residuals = [draw.normal(size=(shape[0], RANK)) @ draw.normal(size=(RANK, shape[1])) for _ in range(2)]
        first, second = (in_fine_units(each / 4 + draw.normal(0, 0.5, shape), 1.0) for each in residuals)
        assert first is not None
        assert second is not None
        (basis,) = tracked([Observed(AdaptiveBasis.unknown(*shape), first)])
        yield Matrix(basis, second)


def transforms(algebra: Algebra[Any], batch: Batch) -> list[bytes]:
    """Residual -> coefficients -> residual."""
    return [each.basis.residual(each.basis.coefficients(each.fixed, algebra), algebra).tobytes() for each in batch]


def learning(algebra: Algebra[Any], batch: Batch) -> list[bytes]:
    """Coefficients -> the next basis. That these are the residual's own makes no difference to how long it takes."""
    bases = tracked([Observed(each.basis, each.fixed) for each in batch], algebra=algebra)
    return [b"".join(side.vectors.tobytes() + side.codes.tobytes() for side in basis.sides) for basis in bases]


def orthonormal(algebra: Algebra[Any], batch: Batch) -> list[bytes]:
    """As many blocks as learning has, in the same stacks."""
    found = []
    for each in batch:
        count = sum(-(-length // MAX_DIRECTIONS) for length in each.fixed.shape)
        width = min(MAX_DIRECTIONS, *each.fixed.shape)
        rows, together = np.stack([each.fixed[:width, :width]] * count), algebra.together(width)
        stacks = [algebra.put(rows[first : first + together]) for first in range(0, count, together)]
        found.append(b"".join((algebra.get(algebra.orthonormal(stack)) + 0.0).tobytes() for stack in stacks))
    return found


STAGES: tuple[Stage, ...] = (transforms, learning, orthonormal)


def algebra_of(device: str, few: int | None) -> Algebra[Any]:
    """NumPy's, or torch's on one of its devices, which leaves stacks of so few elements to the cores."""
    if device == "numpy":
        return CORES
    return OnTorch(device) if few is None else OnTorch(device, few)


def row(device: str, stage: Stage, subjects: list[Matrix], few: int | None = None) -> dict[str, object]:
    """What one stage takes on one device, and a hash of what came of it."""
    work, digest = partial(stage, algebra_of(device, few)), hashlib.sha256()
    work(subjects[:1])  # loads the device's libraries
    started = time.perf_counter()
    for found in in_batches(work, subjects, lambda each: each.fixed.size):
        digest.update(found)
    seconds = time.perf_counter() - started
    nbytes = BYTES_A_PARAMETER * sum(each.fixed.size for each in subjects)
    said = {"device": device, "stage": stage.__name__, "seconds": round(seconds, 3)}
    return said | {"gb_s": round(nbytes / seconds / 1e9, 4), "sha256": digest.hexdigest()[:16]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=2e7)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=threads())
    there = ["numpy", "cuda"] if torch.cuda.is_available() else ["numpy"]
    parser.add_argument("--devices", nargs="+", default=there, help="numpy, cpu, cuda or cuda:N")
    parser.add_argument("--few", type=int, help="elements of a stack that a GPU leaves to the cores")
    options = parser.parse_args()
    set_threads(options.threads)
    subjects = list(matrices(options.parameters, options.width))
    settings = {"threads": options.threads, "width": options.width}
    print(json.dumps({**machine(), **settings, "parameters": sum(each.fixed.size for each in subjects)}), flush=True)
    for stage in STAGES:
        rows = []
        for device in options.devices:
            rows.append(row(device, stage, subjects, options.few))
            print(json.dumps(rows[-1]), flush=True)
        if len({each["sha256"] for each in rows}) > 1:
            raise SystemExit(f"{stage.__name__}: the devices do not agree")


if __name__ == "__main__":
    main()
