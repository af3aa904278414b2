"""Tables and, where it pays for its own bytes, an LSTM that refines them: only the encoder of `paper` comes here."""

import numpy as np

from ckzd.codec.entropy.context import GRID
from ckzd.codec.entropy.fitting import Counted, Fitted, factors_of
from ckzd.codec.entropy.models import Models, TableModel, cost_bits, seen
from ckzd.codec.entropy.range_coder import Rows
from ckzd.codec.kernels.plain import ALPHABET
from ckzd.codec.paper import train
from ckzd.codec.paper.lstm import LSTM_BYTES, LstmModel, LstmWeights, encode_lstm
from ckzd.codec.paper.refined import RefinedModel
from ckzd.codec.presets import Preset
from ckzd.codec.records.reconstruction import Reconstruction

_SUM_OF_FREQUENCIES = 2.0**24  # of a mean prediction


def with_lstm(
    counted: Counted, tables: TableModel, reference: Reconstruction | None, preset: Preset, device: str
) -> Fitted:
    """The tables with the reference's LSTM, with one trained from there, or alone: whatever is cheapest."""
    histograms, prior, best = counted.histograms, MeanPrediction(counted, tables), Fitted(Models(tables))
    before = reference.blob("lstm") if reference is not None else b""
    start = LstmWeights.from_bytes(before) if len(before) == LSTM_BYTES else None
    steps = preset.lstm_steps if start is not None else preset.lstm_cold_steps
    trained = train.fit(histograms, prior, start, steps=steps, device=device)
    best_bits = cost_bits(seen(histograms, prior))
    for weights in (start, trained):
        if weights is None:
            continue
        lstm = LstmModel(weights)
        bits = cost_bits(seen(histograms, RefinedModel(prior, lstm)))
        bits += 8 * len(encode_lstm(weights.to_bytes(), reference))
        if bits < best_bits:
            best_bits, best = bits, Fitted(Models(tables, RefinedModel(tables, lstm)), weights.to_bytes())
    return best


class MeanPrediction:
    """What the tables, corrected for each plane, predict in a context for all planes together.

    For an LSTM that changes little this is as good as to train it on every plane apart, which costs P times as much.
    """

    def __init__(self, counted: Counted, tables: TableModel) -> None:
        self._rows: dict[tuple[int, int, int], Rows] = {}
        for plane in counted.planes:
            factors = factors_of(plane, tables)
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
