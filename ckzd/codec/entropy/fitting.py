"""Symbols of all planes -> the models that an archive carries.

A plane corrects the shared frequencies by a factor for each symbol (`BiasedModel`). Tables and LSTM are fitted to what
the planes share beside that: tables and factors in turns, the LSTM on the planes' mean prediction in every context.

# P = planes of one kind and density, D = contexts that the tables tell apart, G = contexts of the grid, A = alphabet
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckzd.codec.arrays import Codes, Float64
from ckzd.codec.choose import PlaneToCode
from ckzd.codec.entropy.context import GRID
from ckzd.codec.entropy.models import (
    Counts,
    Histogram,
    Histograms,
    Models,
    RefinedModel,
    TableModel,
    cost_bits,
    frequency_codes,
    seen,
    smoothed,
)
from ckzd.codec.entropy.planes import histograms_of
from ckzd.codec.entropy.range_coder import Rows
from ckzd.codec.paper.lstm import ALPHABET, LSTM_BYTES, LstmModel, LstmWeights
from ckzd.codec.parallel import in_order
from ckzd.codec.presets import Preset
from ckzd.codec.records.reconstruction import Reconstruction
from ckzd.codec.records.side import encode_lstm

_TURNS = 12  # of factors and tables: from 9 on they gain less than 0.01 %
_PRIOR_COUNT = 0.5  # of a symbol in a plane, seen or not
_ROUNDED_COUNT = 20_000  # a cell seen so often keeps its code; each quarter doubles the step (6000, 60000: worse)
_MAX_STEP_LOG = 6
_SUM_OF_FREQUENCIES = 2.0**24  # of a mean prediction


@dataclass(frozen=True, slots=True)
class _Plane:
    """What one plane adds to the sums over all."""

    kind: int
    density: int
    coarse: Counts  # (D, A): how often each symbol follows each context of the tables
    totals: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]  # pass -> its contexts, how often each


@dataclass(frozen=True, slots=True)
class Counted:
    """All planes' symbols together, and what tells the planes apart."""

    histograms: Histograms
    planes: tuple[_Plane, ...]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Models, and the bytes of the LSTM in them (none: tables alone)."""

    models: Models
    lstm: bytes = b""


def histograms_over(planes: Iterable[PlaneToCode]) -> Counted:
    """Count the symbols of all planes that are not empty: those are not coded."""
    grids: dict[tuple[int, int, int], Counts] = {}
    found = []
    for own in in_order(_histograms, planes, lambda plane: plane.levels.size):
        if not own:
            continue
        for key, histogram in own.items():
            grid = grids.setdefault(key, np.zeros((GRID, ALPHABET), np.int64))
            grid[histogram.used] += histogram.counts
        ((kind, _, density), _), *_ = own.items()  # the same in all passes
        totals = {number: (each.used, each.counts.sum(1)) for (_, number, _), each in own.items()}
        found.append(_Plane(kind, density, np.sum([each.coarse() for each in own.values()], axis=0), totals))
    return Counted({key: Histogram.of_grid(grid) for key, grid in grids.items()}, tuple(found))


def _histograms(plane: PlaneToCode) -> Histograms:
    return histograms_of(plane.levels, plane.kind, plane.guide) if plane.levels.any() else {}


def fit_models(counted: Counted, reference: Reconstruction | None, preset: Preset, device: str) -> Fitted:
    """Tables for all contexts, and an LSTM that refines them if it pays for its own bytes."""
    histograms = counted.histograms
    tables = fit_tables(counted)
    best = Fitted(Models(tables))
    if not histograms or not preset.lstm_cold_steps:
        return best
    from ckzd.codec.paper import train  # noqa: PLC0415  # a second of torch, for the one preset that trains

    prior = MeanPrediction(counted, tables)
    before = reference.blob("lstm") if reference is not None else b""
    start = LstmWeights.from_bytes(before) if len(before) == LSTM_BYTES else None
    steps = preset.lstm_steps if start is not None else preset.lstm_cold_steps
    fitted = train.fit(histograms, prior, start, steps=steps, device=device)
    best_bits = cost_bits(seen(histograms, prior))
    for weights in (start, fitted):
        if weights is None:
            continue
        lstm = LstmModel(weights)
        bits = cost_bits(seen(histograms, RefinedModel(prior, lstm)))
        bits += 8 * len(encode_lstm(weights.to_bytes(), reference))
        if bits < best_bits:
            best_bits, best = bits, Fitted(Models(tables, RefinedModel(tables, lstm)), weights.to_bytes())
    return best


def fit_tables(counted: Counted) -> TableModel:
    """Tables that fit all planes, each plane corrected by factors of its own."""
    groups: dict[tuple[int, int], list[_Plane]] = {}
    for plane in counted.planes:
        groups.setdefault((plane.kind, plane.density), []).append(plane)
    return TableModel({key: _cheap_codes(group) for key, group in groups.items()})


def _cheap_codes(planes: list[_Plane]) -> Codes:
    """Frequency codes (D, A) of the shared table, rounded to powers of two: the coarser, the less a cell was seen."""
    counts = sum(plane.coarse for plane in planes)
    steps = np.exp2(np.clip(np.floor(np.log2(_ROUNDED_COUNT / np.maximum(counts, 0.5)) / 2), 0, _MAX_STEP_LOG))
    codes = frequency_codes(_shared(planes))
    rounded: Codes = np.minimum(np.rint(codes / steps) * steps, codes.max()).astype(np.uint8)
    return rounded


def _shared(planes: list[_Plane]) -> Float64:
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


class MeanPrediction:
    """What the tables, corrected for each plane, predict in a context for all planes together.

    For an LSTM that changes little this is as good as to train it on every plane apart, which costs P times as much.
    """

    def __init__(self, counted: Counted, tables: TableModel) -> None:
        self._rows: dict[tuple[int, int, int], Rows] = {}
        for plane in counted.planes:
            factors = _factors_of(plane, tables)
            for number, (used, totals) in plane.totals.items():
                key = plane.kind, number, plane.density
                predicted = tables.rows(*key)[used] * factors
                mean = self._rows.setdefault(key, np.zeros((GRID, ALPHABET)))
                mean[used] += predicted * (totals[:, None] / predicted.sum(1, keepdims=True))

    def rows(self, kind: int, number: int, density: int) -> Rows:
        """Frequencies (GRID, A); even odds where no plane has been."""
        rows = self._rows[kind, number, density]
        relative = rows / np.maximum(rows.sum(1, keepdims=True), 1)
        return np.asarray(np.floor(relative * _SUM_OF_FREQUENCIES) + 1, np.float64)


def _factors_of(plane: _Plane, tables: TableModel) -> Float64:
    """The plane's corrections (A,) of tables that are given."""
    counts = plane.coarse[None].astype(np.float64)
    table, factors = tables.coarse_rows(plane.kind, plane.density), np.ones((1, 1, ALPHABET))
    for _ in range(_TURNS):
        factors *= _correction(counts, _expected(counts, table, factors))
    return factors.ravel()
