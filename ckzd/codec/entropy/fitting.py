"""Symbols of all planes -> the models that an archive carries.

A plane corrects the shared frequencies by a factor for each symbol (`BiasedModel`). Tables are fitted to what the
planes share beside that, in turns with the factors.

# P = planes of one kind and density, D = contexts that the tables tell apart, A = alphabet
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckzd.codec.arrays import Codes, Float64
from ckzd.codec.entropy.context import EXACT, GRID
from ckzd.codec.entropy.escapes import LEAST, bits_each
from ckzd.codec.entropy.models import (
    Counts,
    Histogram,
    Histograms,
    Models,
    TableModel,
    frequency_codes,
    smoothed,
)
from ckzd.codec.entropy.planes import PlaneToCode, TableSymbols, histograms_of
from ckzd.codec.kernels.plain import ALPHABET
from ckzd.codec.parallel import in_order

_TURNS = 12  # of factors and tables: from 9 on they gain less than 0.01 %
_PRIOR_COUNT = 0.5  # of a symbol in a plane, seen or not
_ROUNDED_COUNT = 20_000  # a cell seen so often keeps its code; each quarter doubles the step (6000, 60000: worse)
_MAX_STEP_LOG = 6
_CONTEXT_BITS = 4.0  # about what a context takes of tables that planes share
_SAMPLED_ESCAPES = 1 << 12


@dataclass(frozen=True, slots=True)
class CountedPlane:
    """What one plane adds to the sums over all."""

    kind: int
    density: int
    coarse: Counts  # (D, A): how often each symbol follows each context of the tables
    totals: dict[
        int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    ]  # pass -> contexts of the grid, how often each


@dataclass(frozen=True, slots=True)
class Counted:
    """All planes' symbols together, and what tells the planes apart."""

    histograms: Histograms  # of the grid; none where no LSTM is to learn from them
    planes: tuple[CountedPlane, ...]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Models, and the bytes of the LSTM in them (none: tables alone)."""

    models: Models
    lstm: bytes = b""


def counted(planes: Iterable[PlaneToCode], *, grid: bool) -> Counted:
    """Count the symbols of all planes that are not empty: those are not coded. Of the whole grid only for an LSTM."""

    def count(plane: PlaneToCode) -> tuple[CountedPlane, Histograms] | None:
        return _counted(plane, grid=grid) if plane.levels.any() else None

    grids: dict[tuple[int, int, int], Counts] = {}
    found = []
    for each in in_order(count, planes, lambda plane: plane.levels.size):
        if each is None:
            continue
        plane, histograms = each
        found.append(plane)
        for key, histogram in histograms.items():
            summed = grids.setdefault(key, np.zeros((GRID, ALPHABET), np.int64))
            summed[histogram.used] += histogram.counts
    return Counted({key: Histogram.of_grid(summed) for key, summed in grids.items()}, tuple(found))


def _counted(plane: PlaneToCode, *, grid: bool) -> tuple[CountedPlane, Histograms]:
    known = TableSymbols.of(plane)
    histograms = histograms_of(plane) if grid and plane.kind != EXACT else {}
    totals = {number: (each.used, each.counts.sum(1)) for (_, number, _), each in histograms.items()}
    return CountedPlane(plane.kind, known.density, known.counts(), totals), histograms


def estimated_bits(plane: PlaneToCode) -> float:
    """About what a plane takes in tables that fit it; only for choosing."""
    counts = TableSymbols.of(plane).counts().astype(np.float64)
    rows, escaped = counts[counts.any(1)], plane.levels[(plane.levels >= LEAST) | (plane.levels <= -LEAST)]
    shares = rows / rows.sum(1, keepdims=True)
    bits = -float((rows * np.log2(np.maximum(shares, 1e-12))).sum())
    each = bits_each(escaped[:: max(1, escaped.size // _SAMPLED_ESCAPES)])
    return bits + _CONTEXT_BITS * len(rows) + each * escaped.size


def fit_tables(counted: Counted) -> TableModel:
    """Tables that fit all planes, each plane corrected by factors of its own."""
    groups: dict[tuple[int, int], list[CountedPlane]] = {}
    for plane in counted.planes:
        groups.setdefault((plane.kind, plane.density), []).append(plane)
    return TableModel({key: _cheap_codes(group) for key, group in groups.items()})


def _cheap_codes(planes: list[CountedPlane]) -> Codes:
    """Frequency codes (D, A) of the shared table, rounded to powers of two: the coarser, the less a cell was seen."""
    counts = sum(plane.coarse for plane in planes)
    steps = np.exp2(np.clip(np.floor(np.log2(_ROUNDED_COUNT / np.maximum(counts, 0.5)) / 2), 0, _MAX_STEP_LOG))
    codes = frequency_codes(_shared(planes))
    rounded: Codes = np.minimum(np.rint(codes / steps) * steps, codes.max()).astype(np.uint8)
    return rounded


def _shared(planes: list[CountedPlane]) -> Float64:
    """Table (D, A): in turns each plane's factors and the table meet the counts (iterative scaling)."""
    counts = np.stack([plane.coarse for plane in planes]).astype(np.float64)  # (P, D, A)
    actual = smoothed(counts.sum(0))
    table: Float64 = actual / actual.sum(1, keepdims=True)
    factors = np.ones((len(planes), 1, ALPHABET))
    for _ in range(_TURNS):
        factors *= _correction(counts, _expected(counts, table, factors))
        missing = actual - counts.sum(0)  # what smoothing adds to both
        table *= actual / (_expected(counts, table, factors).sum(0) + missing)
        table /= table.sum(1, keepdims=True)
    return table


def _expected(counts: Float64, table: Float64, factors: Float64) -> Float64:
    """Counts that the table predicts for each plane, (P, D, A)."""
    predicted: Float64 = table * factors
    predicted *= counts.sum(2, keepdims=True) / predicted.sum(2, keepdims=True)
    return predicted


def _correction(counts: Float64, expected: Float64) -> Float64:
    """What brings each plane's expected symbol counts to the actual ones, (P, 1, A)."""
    actual, predicted = (each.sum(1, keepdims=True) + _PRIOR_COUNT for each in (counts, expected))
    correction: Float64 = actual / predicted
    return correction


def factors_of(plane: CountedPlane, tables: TableModel) -> Float64:
    """The plane's corrections (A,) of tables that are given."""
    counts = plane.coarse[None].astype(np.float64)
    table, factors = tables.coarse_rows(plane.kind, plane.density), np.ones((1, 1, ALPHABET))
    for _ in range(_TURNS):
        factors *= _correction(counts, _expected(counts, table, factors))
    return factors.ravel()
