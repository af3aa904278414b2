"""What models earn: one checkpoint's symbols under order-0, tables, and tables refined by LSTMs of several sizes.

usage: gain.py REFERENCE.pt... CURRENT.pt [--preset resume] [--steps 400]      one run, oldest first
Encodes the run in closed loop, keeps the last checkpoint's planes, and codes exactly these with each model; bytes are
with those of the model itself. LSTMs start cold: 24 hidden units are what `paper` has.
"""

import json
import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from closed_loop import chain_of, choices_of, run_parser
from machine import machine

from ckzd.codec import zstd
from ckzd.codec.arrays import Float64
from ckzd.codec.entropy.context import GRID
from ckzd.codec.entropy.fitting import Counted, counted, fit_tables
from ckzd.codec.entropy.models import COARSE, Histograms, Models, TableModel, smoothed
from ckzd.codec.entropy.planes import PlaneToCode, encode_plane, histograms_of
from ckzd.codec.entropy.range_coder import Rows
from ckzd.codec.kernels.plain import ALPHABET
from ckzd.codec.paper import train
from ckzd.codec.paper.fitting import MeanPrediction
from ckzd.codec.paper.lstm import LstmModel, shapes_of
from ckzd.codec.paper.refined import RefinedModel
from ckzd.codec.presets import PRESETS

SIZES = ((4, 8), (8, 16), (12, 24), (16, 48), (24, 96))  # of embedding and hidden state


class AdaptiveTables(TableModel):
    """Tables that nobody sends: counts of all that was coded before, pass by pass, plane by plane."""

    def __init__(self) -> None:
        super().__init__({})
        self._counts: dict[tuple[int, int], Float64] = {}
        self._plane: Histograms = {}

    def begin(self, plane: PlaneToCode) -> None:
        """The next plane is this one; the last one is known by now."""
        for (kind, _, density), histogram in self._plane.items():
            self._counts[kind, density] = self._before(kind, density) + histogram.coarse()
        self._plane = histograms_of(plane)

    def rows(self, kind: int, number: int, density: int) -> Rows:
        """Frequencies (GRID, A) before a pass: of contexts that are rare drawn towards the average."""
        counts = self._before(kind, density) + sum(self._plane[kind, n, density].coarse() for n in range(number))
        return np.repeat(_frequencies(smoothed(counts)), GRID // COARSE, axis=0)

    def _before(self, kind: int, density: int) -> Float64:
        return self._counts.get((kind, density), np.full((COARSE, ALPHABET), 1 / ALPHABET))


def _frequencies(counts: Float64) -> Rows:
    """Integers for the range coder, the likeliest symbol of each context at 2**15."""
    return np.floor(counts * (2.0**15 / counts.max(1, keepdims=True))) + 1


def coded_bytes(planes: Iterable[PlaneToCode], models: Models) -> int:
    """Of all planes, each with its cheapest coder."""
    total = 0
    for plane in planes:
        if isinstance(models.tables, AdaptiveTables):
            models.tables.begin(plane)
        total += len(encode_plane(plane, models)[0])
    return total


def lstms(counted: Counted, tables: TableModel, steps: int) -> Iterator[tuple[str, Models, int, float]]:
    """An LSTM of every size beside the tables: name, models, bytes of its weights, seconds of its training."""
    for embedding, hidden in SIZES:
        started = time.perf_counter()
        prior = MeanPrediction(counted, tables)
        weights = train.fit(counted.histograms, prior, None, steps=steps, shapes=shapes_of(embedding, hidden))
        seconds = time.perf_counter() - started
        models = Models(tables, RefinedModel(tables, LstmModel(weights)))
        yield f"tables + lstm of {hidden}", models, len(zstd.compress(weights.to_bytes())), seconds


def main() -> None:
    parser = run_parser(__doc__)
    parser.add_argument("--steps", type=int, default=400, help="of training at most")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    torch.set_num_threads(1)
    *earlier, current = options.checkpoints
    planes = list(choices_of(current, chain_of(earlier, preset), preset).planes())
    counts = counted(planes, grid=True)
    tables = fit_tables(counts)
    table_bytes = len(tables.to_bytes())
    print(json.dumps({**machine(), "checkpoint": current.name, "preset": preset.name}), flush=True)
    order0 = 0

    def show(name: str, models: Models, model_bytes: int, training_seconds: float = 0.0) -> None:
        nonlocal order0
        size = coded_bytes(planes, models) + model_bytes
        order0 = order0 or size
        line = {"model": name, "bytes": size, "model_bytes": model_bytes, "below_order0": round(1 - size / order0, 5)}
        print(json.dumps(line | {"training_seconds": round(training_seconds, 2)}), flush=True)

    show("order-0", Models(), 0)
    show("adaptive tables", Models(AdaptiveTables()), 0)
    show("tables", Models(tables), table_bytes)
    for name, models, lstm_bytes, seconds in lstms(counted, tables, options.steps):
        show(name, models, table_bytes + lstm_bytes, seconds)


if __name__ == "__main__":
    main()
