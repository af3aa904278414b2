"""What the LSTM earns: one checkpoint's symbols under order-0, tables, and tables refined by the LSTM, with seconds.

usage: gain.py REFERENCE.pt... CURRENT.pt [--preset resume] [--steps 150]      one run, oldest first
Encodes the run in closed loop, keeps the last checkpoint's planes, and codes exactly these with each model.
"""

import argparse
import io
import json
import time
from pathlib import Path

import torch
from machine import machine

from ckzd.codec import train
from ckzd.codec.encode import Encoder
from ckzd.codec.fitting import MeanPrediction, fit_tables, histograms_over
from ckzd.codec.inputs import Inputs
from ckzd.codec.lstm import LSTM_BYTES, LstmModel, LstmWeights
from ckzd.codec.models import Models, RefinedModel
from ckzd.codec.planes import encode_plane
from ckzd.codec.presets import PRESETS, Preset
from ckzd.codec.reconstruction import ArrayFile, Reconstruction, ReconstructionWriter
from ckzd.codec.side import encode_lstm
from ckzd.codec.survey import survey
from ckzd.codec.transform import PlaneToCode, Transform
from ckzd.formats import read_checkpoint


def reconstruction_of(path: Path, reference: Reconstruction | None, preset: Preset) -> Reconstruction:
    """Encode a checkpoint for what its successor needs of it; the streams are thrown away."""
    file = io.BytesIO()
    Encoder(
        read_checkpoint(path),
        reference,
        preset,
        put=lambda kind, data: (kind, 0, len(data)),
        add=lambda _name, _data: None,
        reconstruction=file,
        scratch=io.BytesIO(),
    ).encode()
    return Reconstruction(file)


def planes_of(path: Path, reference: Reconstruction | None, preset: Preset) -> list[PlaneToCode]:
    """The planes of one checkpoint, not yet coded."""
    inputs = Inputs(read_checkpoint(path), reference)
    kept, scratch = ReconstructionWriter(io.BytesIO()), ArrayFile(io.BytesIO())
    transform = Transform(inputs, survey(inputs, preset), preset, kept, scratch)
    transform.run()
    return list(transform.planes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--preset", default="resume")
    parser.add_argument("--steps", type=int, default=150, help="of training: presets that leave the LSTM off have none")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    torch.set_num_threads(1)
    reference = None
    *earlier, current = options.checkpoints
    for path in earlier:
        reference = reconstruction_of(path, reference, preset)
    planes = planes_of(current, reference, preset)
    counted = histograms_over(planes)
    tables = fit_tables(counted)
    stored = reference.blob("lstm") if reference is not None else b""
    start = LstmWeights.from_bytes(stored) if len(stored) == LSTM_BYTES else None
    started = time.perf_counter()
    weights = train.fit(counted.histograms, MeanPrediction(counted, tables), start, steps=options.steps)
    seconds = time.perf_counter() - started
    refined = RefinedModel(tables, LstmModel(weights))
    table_bytes, lstm_bytes = len(tables.to_bytes()), len(encode_lstm(weights.to_bytes(), reference))
    rows = {
        "order-0": (Models(), 0, 0.0),
        "tables": (Models(tables), table_bytes, 0.0),
        "tables + lstm": (Models(tables, refined), table_bytes + lstm_bytes, seconds),
    }
    print(json.dumps({**machine(), "checkpoint": current.name, "preset": preset.name, "warm_start": start is not None}))
    order0 = 0
    for name, (models, model_bytes, training) in rows.items():
        coded = sum(len(encode_plane(plane.levels, plane.kind, plane.guide, models)[0]) for plane in planes)
        order0 = order0 or coded
        line = {"model": name, "bytes": coded + model_bytes, "model_bytes": model_bytes}
        line |= {"below_order0": round(1 - (coded + model_bytes) / order0, 5), "training_seconds": round(training, 2)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
