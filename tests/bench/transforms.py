"""What each transform of a weight's residual costs: adaptive bases, none, factors, factors and levels together.

usage: transforms.py REFERENCE.pt... CURRENT.pt [--preset resume]      one run, oldest first
Encodes the run in closed loop. Of every matrix of the last checkpoint, coded in its basis: the bytes of its levels,
and those of other transforms at the Fisher-weighted error that the basis makes. What is uncertain is decided for the
others: factors come from a whole singular value decomposition, of every rank in RANKS the cheapest counts, and their
entries cost what a Gaussian of each component's own deviation predicts, or their entropy. Where factors are mixed, the
decoder knows those of the reference's residual: what is coded is how they mix, and what lies outside of them.

# R = rows, C = columns of a matrix, K = components, P = the reference's components
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from unittest import mock

import numpy as np
from closed_loop import chain_of, choices_of, run_parser
from machine import machine
from scipy.special import ndtr

from ckzd.codec.arrays import Float64
from ckzd.codec.choose import Chooser
from ckzd.codec.entropy.context import WEIGHTS, SideInformation
from ckzd.codec.entropy.fitting import counted, fit_tables
from ckzd.codec.entropy.models import Models
from ckzd.codec.entropy.planes import PlaneToCode, encode_plane
from ckzd.codec.methods import factored
from ckzd.codec.presets import PRESETS
from ckzd.codec.records.index import Method
from ckzd.codec.records.reference_tensors import levels_for_context, trend_of
from ckzd.codec.scales import fisher_weighting
from ckzd.codec.transform.quantize import dequantize_scalar, quantize_scalar

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # or all that there are
DEVIATION_BYTES = 1  # of each component, beside its entries
TREND_UNITS = 32  # of a step: how the reconstruction keeps a residual
HALVINGS = 20  # of the interval that a step is looked for in: to 1e-5 of it


@dataclass(frozen=True)
class Matrix:
    """A weight in its basis: its weighted residual (R, C), the reference's as decoded, and its squared error."""

    name: str
    weighted: Float64
    before: Float64
    error: float


@dataclass(frozen=True)
class Coded:
    """A matrix as a decoder would have it, in so many bytes."""

    values: Float64  # (R, C)
    bytes: float = 0.0  # of factors
    plane: PlaneToCode | None = None  # levels beside them


Coder = Callable[[float], Coded]  # with a step


def gaussian_bytes(levels: Float64) -> float:
    """Of levels (N, K), each column under a Gaussian of its own deviation, integrated over a step."""
    variance = (levels**2).mean(0)
    deviation = np.sqrt(np.maximum(variance - 1 / 12, variance / 4) + 1e-3)  # Sheppard: rounding adds a twelfth
    share = ndtr((0.5 - np.abs(levels)) / deviation) - ndtr((-0.5 - np.abs(levels)) / deviation)
    gaussian = -np.log2(np.maximum(share, 1e-30)).sum(0)
    return float(np.where(variance < 0.25, [_entropy(column) for column in levels.T], gaussian).sum() / 8)


def _entropy(levels: Float64) -> float:
    """Bits of levels that are nearly all 0, of which a Gaussian says too much."""
    _, counts = np.unique(levels, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


@dataclass(frozen=True)
class Components:
    """Singular vectors times sizes, of both sides: one step for all their entries is reverse water-filling."""

    left: Float64  # (R, K)
    right: Float64  # (C, K)
    sizes: Float64  # (K,)

    @classmethod
    def of(cls, matrix: Float64) -> "Components":
        """All of a matrix."""
        left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
        return cls(left * sizes, right.T * sizes, sizes)

    def leading(self, count: int) -> "Components":
        """The first so many."""
        return Components(self.left[:, :count], self.right[:, :count], self.sizes[:count])

    def coded(self, step: float) -> Coded:
        """Every entry by itself."""
        return self._product(*(_entries(side, step) for side in (self.left, self.right)))

    def mixed(self, known: "Components", step: float) -> Coded:
        """Each side as a mixture of known directions and what lies outside of them."""
        sides = []
        for side, seen in ((self.left, known.left), (self.right, known.right)):
            directions = seen / np.maximum(known.sizes, 1e-30)  # (N, P)
            mixture = directions.T @ side  # (P, K)
            outside = _entries(side - directions @ mixture, step)
            mixing = _entries(mixture, step)
            sides.append(Coded(directions @ mixing.values + outside.values, mixing.bytes + outside.bytes))
        return self._product(*sides)

    def _product(self, left: Coded, right: Coded) -> Coded:
        values = (left.values / np.maximum(self.sizes, 1e-30)) @ right.values.T
        return Coded(values, left.bytes + right.bytes)


def _entries(side: Float64, step: float) -> Coded:
    levels = np.rint(side / step)
    return Coded(levels * step, gaussian_bytes(levels) + DEVIATION_BYTES * side.shape[1])


def at_error(coder: Coder, matrix: Matrix) -> Coded | None:
    """With the coarsest step that makes no more than the basis's error; None if there is none."""
    typical = (matrix.error / matrix.weighted.size) ** 0.5
    low, high, found = 1e-3 * typical, 1e3 * typical, None
    for _ in range(HALVINGS):
        step = (low * high) ** 0.5
        coded = coder(step)
        if ((matrix.weighted - coded.values) ** 2).sum() <= matrix.error:
            low, found = step, coded
        else:
            high = step
    return found


def matrices_in_bases(found: Chooser) -> Iterator[tuple[Matrix, PlaneToCode]]:
    """All of a checkpoint, and their levels in bases."""
    reference, step = found.inputs.reference, found.survey.steps.step
    for plane in found.planes():
        if found.methods[plane.number] is not Method.FRAMED or plane.kind != WEIGHTS:
            continue
        tensor = found.inputs.tensor(plane.number)
        values, before = found.inputs.matrix(plane.number), found.inputs.numbers_before(plane.number)
        assert before is not None, "it was coded against a reference"
        weighted = fisher_weighting(found.survey.scales[plane.number]).weigh(values - before)
        trend = trend_of(tensor, reference) if reference is not None else None
        before = np.zeros(weighted.shape) if trend is None else trend * (step / TREND_UNITS)
        yield Matrix("/".join(map(str, tensor.path)), weighted, before, found.losses[plane.number].error), plane


def without_factors(_step: float) -> Coded:
    """Nothing: all is left to the levels."""
    return Coded(np.zeros(1))


def with_levels(factors: Coder, matrix: Matrix, dead_zone: float) -> Coder:
    """What factors leave, as levels with the same step and the contexts that they would have in an archive."""

    def coded(step: float) -> Coded:
        known = factors(step)
        code = quantize_scalar(matrix.weighted - known.values, step, dead_zone)
        guide = np.clip(np.rint(matrix.before / step), -127, 127).astype(np.int16)
        plane = PlaneToCode(0, WEIGHTS, code.levels, SideInformation(levels_for_context(guide)))
        return Coded(known.values + dequantize_scalar(code, step), known.bytes, plane)

    return coded


def candidates(matrix: Matrix) -> Iterator[tuple[str, Coder]]:
    """Factors of all ranks, from the matrix alone and from the reference's."""
    whole, known = Components.of(matrix.weighted), Components.of(matrix.before)
    for rank in sorted({min(rank, whole.sizes.size) for rank in RANKS}):
        factors = whole.leading(rank)
        yield "factors", factors.coded
        yield "mixed factors", partial(factors.mixed, known.leading(rank))


def cost(coded: Coded, models: Models) -> float:
    """Bytes of factors and of the levels beside them."""
    plane = coded.plane
    return coded.bytes + (len(encode_plane(plane, models)[0]) if plane else 0)


def costs(matrix: Matrix, models: Models, dead_zone: float) -> dict[str, float]:
    """Bytes of one matrix under each transform but the basis."""
    found = {"levels": math.inf, "factors": math.inf, "factors + levels": math.inf}
    found |= {"mixed factors": math.inf, "mixed factors + levels": math.inf}
    tried = [("levels", with_levels(without_factors, matrix, dead_zone))]
    for name, factors in candidates(matrix):
        tried += [(name, factors), (f"{name} + levels", with_levels(factors, matrix, dead_zone))]
    for name, coder in tried:
        coded = at_error(coder, matrix)
        found[name] = min(found[name], cost(coded, models) if coded is not None else math.inf)
    return found


def tables_of(planes: Iterable[PlaneToCode]) -> Models:
    """Tables that fit these planes."""
    return Models(fit_tables(counted(planes, grid=True)))


def main() -> None:
    options = run_parser(__doc__).parse_args()
    preset = PRESETS[options.preset]
    *earlier, current = options.checkpoints
    reference = chain_of(earlier, preset)
    with mock.patch.object(factored, "fitted", return_value=None):  # no factors: bases for all
        found = list(matrices_in_bases(choices_of(current, reference, preset)))
    print(json.dumps({**machine(), "checkpoint": current.name, "preset": preset.name}))
    bases = tables_of(plane for _, plane in found)
    plain = [at_error(with_levels(without_factors, matrix, preset.dead_zone), matrix) for matrix, _ in found]
    levels = tables_of(coded.plane for coded in plain if coded is not None and coded.plane is not None)
    total: Counter[str] = Counter()
    for matrix, plane in found:
        row = {"basis": cost(Coded(matrix.weighted, 0.0, plane), bases)} | costs(matrix, levels, preset.dead_zone)
        cheapest = min(row, key=lambda name: row[name])
        total.update(row)
        total["cheapest"] += row[cheapest]
        line = {"matrix": matrix.name, "shape": matrix.weighted.shape, "cheapest": cheapest}
        print(json.dumps(line | {name: round(size) for name, size in row.items()}), flush=True)
    print(json.dumps({"matrices": len(found)} | {name: round(size) for name, size in total.items()}))


if __name__ == "__main__":
    main()
