"""Histograms of all contexts -> the models that an archive carries."""

from collections.abc import Iterable
from dataclasses import dataclass

from ckzd.codec import train
from ckzd.codec.lstm import LSTM_BYTES, LstmModel, LstmWeights
from ckzd.codec.models import Histograms, Models, RefinedModel, TableModel, cost_bits, seen
from ckzd.codec.planes import histograms_of
from ckzd.codec.presets import Preset
from ckzd.codec.reconstruction import Reconstruction
from ckzd.codec.side import encode_lstm
from ckzd.codec.transform import PlaneToCode


@dataclass(frozen=True, slots=True)
class Fitted:
    """Models, and the bytes of the LSTM in them (none: tables alone)."""

    models: Models
    lstm: bytes = b""


def histograms_over(planes: Iterable[PlaneToCode]) -> Histograms:
    """All planes' symbols together."""
    histograms: Histograms = {}
    for plane in planes:
        for key, histogram in histograms_of(plane.levels, plane.kind, plane.guide).items():
            histograms[key] = histograms[key] + histogram if key in histograms else histogram
    return histograms


def fit_models(histograms: Histograms, reference: Reconstruction | None, preset: Preset, device: str) -> Fitted:
    """Tables for all contexts, and an LSTM that refines them if it pays for its own bytes."""
    tables = TableModel.fit(histograms)
    best = Fitted(Models(tables))
    if not histograms or not preset.lstm_cold_steps:
        return best
    before = reference.blob("lstm") if reference is not None else b""
    start = LstmWeights.from_bytes(before) if len(before) == LSTM_BYTES else None
    steps = preset.lstm_steps if start is not None else preset.lstm_cold_steps
    fitted = train.fit(histograms, tables, start, steps=steps, device=device)
    best_bits = cost_bits(seen(histograms, tables))
    for weights in (start, fitted):
        if weights is None:
            continue
        model = RefinedModel(tables, LstmModel(weights))
        bits = cost_bits(seen(histograms, model)) + 8 * len(encode_lstm(weights.to_bytes(), reference))
        if bits < best_bits:
            best_bits, best = bits, Fitted(Models(tables, model), weights.to_bytes())
    return best
