"""ckzd's entropy stage against xz and adaptive order-0, on identical index arrays.

usage: symbols.py REFERENCE.npz CURRENT.npz [--steps 400]
Both files are written by the baseline script's --symbols, for two consecutive checkpoints of a run: arrays of indices
0..15 (0 = pruned) named PARAMETER/w, PARAMETER/exp_avg, PARAMETER/exp_avg_sq. xz -9 codes two indices a byte, as the
baseline does; adaptive order-0 is the Krichevsky-Trofimov code length of each array. Every coded plane is decoded again
and compared.
"""

import argparse
import json
import lzma
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine

from ckzd.codec.entropy.context import FIRST, SECOND, WEIGHTS, SideInformation
from ckzd.codec.entropy.fitting import counted, fit_tables
from ckzd.codec.entropy.models import Models
from ckzd.codec.entropy.planes import PlaneToCode, decode_plane, encode_plane
from ckzd.codec.paper import train
from ckzd.codec.paper.fitting import MeanPrediction
from ckzd.codec.paper.lstm import LstmModel, encode_lstm
from ckzd.codec.paper.refined import RefinedModel

INDICES = 16


def plane(indices: np.ndarray) -> np.ndarray:
    """Indices 1..15 as levels -7..-1, 1..8; int16 (R, C)."""
    matrix = indices.reshape(indices.shape[0], -1).astype(np.int16)
    return np.where(matrix == 0, 0, np.where(matrix <= 7, matrix - 8, matrix - 7)).astype(np.int16)


def xz_bytes(arrays: list[np.ndarray]) -> int:
    """xz -9 of all indices, two a byte, array by array."""
    packed = []
    for array in arrays:
        flat = np.append(array.ravel(), np.zeros(array.size % 2, np.uint8))
        packed.append((flat[::2] << 4 | flat[1::2]).astype(np.uint8).tobytes())
    return len(lzma.compress(b"".join(packed), preset=9))


def order0_bytes(array: np.ndarray) -> float:
    """Code length of the adaptive order-0 (Krichevsky-Trofimov) coder."""
    counts = np.bincount(array.ravel(), minlength=INDICES)
    ones = np.array([np.log2(np.arange(count) + 0.5).sum() for count in counts])
    return float(np.log2(np.arange(array.size) + INDICES / 2).sum() - ones.sum()) / 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path)
    parser.add_argument("current", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    current, reference = np.load(options.current), np.load(options.reference)
    names = [name.removesuffix("/w") for name in current.files if name.endswith("/w")]
    planes = []
    for name in names:
        weight, first, second = (plane(current[f"{name}/{part}"]) for part in ("w", "exp_avg", "exp_avg_sq"))
        planes.append(PlaneToCode(0, WEIGHTS, weight, SideInformation(plane(reference[f"{name}/w"]).astype(np.int8))))
        planes.append(PlaneToCode(0, FIRST, first, SideInformation(weight.astype(np.int8))))
        planes.append(PlaneToCode(0, SECOND, second, SideInformation(first.astype(np.int8))))
    print(json.dumps(machine()))
    arrays = [current[name] for name in current.files]
    xz, order0 = xz_bytes(arrays), sum(order0_bytes(array) for array in arrays)
    counts = counted(planes, grid=True)
    tables = fit_tables(counts)
    started = time.perf_counter()
    weights = train.fit(counts.histograms, MeanPrediction(counts, tables), None, steps=options.steps)
    seconds = time.perf_counter() - started
    refined = Models(tables, RefinedModel(tables, LstmModel(weights)))
    side = {"tables": len(tables.to_bytes()), "tables + lstm": len(encode_lstm(weights.to_bytes(), None))}
    side["tables + lstm"] += side["tables"]
    print(json.dumps({"coder": "xz -9", "bytes": xz}))
    print(json.dumps({"coder": "adaptive order-0", "bytes": round(order0)}))
    for coder, models in (("tables", Models(tables)), ("tables + lstm", refined)):
        total = side[coder]
        for each in planes:
            seen = each.side_information
            data, _ = encode_plane(PlaneToCode(0, each.kind, each.levels, seen), models)
            if not (decode_plane(data, each.levels.shape, each.kind, seen, models) == each.levels).all():
                raise SystemExit("a plane does not decode to itself")
            total += len(data)
        line = {
            "coder": coder,
            "bytes": total,
            "below_xz": round(1 - total / xz, 4),
            "below_order0": round(1 - total / order0, 4),
        }
        print(json.dumps(line | ({"training_seconds": round(seconds, 1)} if "lstm" in coder else {})))


if __name__ == "__main__":
    main()
