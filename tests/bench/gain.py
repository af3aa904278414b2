"""What the LSTM earns: one checkpoint's symbols under order-0, tables, and tables refined by the LSTM, with seconds.

usage: gain.py REFERENCE.pt... CURRENT.pt [--preset resume]      the checkpoints of one run, oldest first
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
from ckzd.codec.inputs import Inputs
from ckzd.codec.lstm import LSTM_BYTES, LstmModel, LstmWeights
from ckzd.codec.models import Histograms, Models, RefinedModel, TableModel
from ckzd.codec.planes import encode_plane, histograms_of
from ckzd.codec.presets import PRESETS
from ckzd.codec.reconstruction import ArrayFile, Reconstruction
from ckzd.codec.side import encode_lstm
from ckzd.codec.survey import survey
from ckzd.codec.transform import Transform
from ckzd.formats import read_checkpoint


def encoder_of(path: Path, reference: Reconstruction | None, preset: str) -> tuple[Encoder, io.BytesIO]:
    streams: list[bytes] = []

    def put(kind: str, data: bytes) -> tuple[str, int, int]:
        streams.append(data)
        return kind, 0, len(data)

    file = io.BytesIO()
    checkpoint = read_checkpoint(path)
    encoder = Encoder(
        checkpoint, reference, PRESETS[preset], put=put, add=lambda *_: None, reconstruction=file, scratch=io.BytesIO()
    )
    return encoder, file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--preset", default="resume")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reference = before = None
    for path in options.checkpoints:
        before = reference
        encoder, file = encoder_of(path, reference, options.preset)
        encoder.encode()
        reference = Reconstruction(file)
    inputs, preset = Inputs(read_checkpoint(options.checkpoints[-1]), before), PRESETS[options.preset]
    transform = Transform(inputs, survey(inputs, preset), preset, ArrayFile(io.BytesIO()), ArrayFile(io.BytesIO()))
    transform.run()
    planes = [(plane.kind, plane.levels, plane.guide) for plane in transform.planes()]
    histograms: Histograms = {}
    for kind, levels, guide in planes:
        for key, histogram in histograms_of(levels, kind, guide).items():
            histograms[key] = histograms[key] + histogram if key in histograms else histogram
    tables = TableModel.fit(histograms)
    stored = before.blob("lstm") if before is not None else b""
    start = LstmWeights.from_bytes(stored) if len(stored) == LSTM_BYTES else None
    started = time.perf_counter()
    weights = train.fit(
        histograms, tables, start, steps=preset.lstm_steps if start is not None else preset.lstm_cold_steps
    )
    seconds = time.perf_counter() - started
    side = len(encode_lstm(weights.to_bytes(), before))
    rows = {
        "order-0": (Models(), 0),
        "tables": (Models(tables), len(tables.to_bytes())),
        "tables + lstm": (
            Models(tables, RefinedModel(tables, LstmModel(weights))),
            len(tables.to_bytes()) + side,
        ),
    }
    print(json.dumps(machine()))
    print(json.dumps({"checkpoint": options.checkpoints[-1].name, "preset": options.preset, "warm": start is not None}))
    first = 0
    for name, (models, model_bytes) in rows.items():
        nbytes = sum(len(encode_plane(levels, kind, guide, models)[0]) for kind, levels, guide in planes) + model_bytes
        first = first or nbytes
        line = {"model": name, "bytes": nbytes, "model_bytes": model_bytes, "below_order0": round(1 - nbytes / first, 5)}
        if "lstm" in name:
            line |= {"training_seconds": round(seconds, 2)}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
