"""Constants of the codec, each with other values: what they change of an archive's bytes and errors.

usage: constants.py STEP.pt... [--preset resume] [--only NAME]
The checkpoints of one run, oldest first, are encoded in closed loop, once as the codec is and once with every other
value. A line a value gives, of the last half of them: the archives' bytes, the Fisher-weighted error of their weights
over the energy of these, and how both compare with the codec as it is.
"""

import importlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from closed_loop import run_parser
from machine import machine

from ckzd.codec.encode import Encoder
from ckzd.codec.presets import PRESETS, Preset
from ckzd.codec.records.reconstruction import Reconstruction
from ckzd.formats import read_checkpoint
from ckzd.streams import StreamRef

TRIED = {
    "transform.adaptive_basis._REGULAR": (2.0**-6, 2.0**-5, 2.0**-3),
    "transform.adaptive_basis._FLOOR": (-61, -29),
    "transform.adaptive_basis._REMEMBERED": (0.1, 0.4),
    "transform.factors._UNITS_A_DEVIATION": (2.0, 8.0),
    "transform.wide._HIGH_RMS": (1.0, 2.0),
    "methods.scaled.DEAD_ZONE": (0.5, 0.7),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a run, of its last half."""

    archive_bytes: int
    weight_error: float  # mean


def outcome(paths: Sequence[Path], preset: Preset) -> Outcome:
    """Encode a run in closed loop."""
    reference, found = None, []
    for path in paths:
        parts: list[int] = []

        def put(kind: str, data: bytes, parts: list[int] = parts) -> StreamRef:
            parts.append(len(data))
            return StreamRef(kind, 0, len(data))

        def add(name: str, data: bytes, parts: list[int] = parts) -> None:  # an archive has names
            parts.append(len(data))

        file = io.BytesIO()
        streams = {"put": put, "add": add, "reconstruction": file, "scratch": io.BytesIO()}
        encoded = Encoder(read_checkpoint(path), reference, preset, **streams).encode()
        found.append((sum(parts), encoded.quality["weight_error"]))
        reference = Reconstruction(file)
    late = found[len(found) // 2 :]
    return Outcome(sum(nbytes for nbytes, _ in late), sum(error for _, error in late) / len(late))


def main() -> None:
    parser = run_parser(__doc__)
    parser.add_argument("--only", default="", help="constants whose names hold this")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    print(json.dumps({**machine(), "preset": preset.name, "checkpoints": len(options.checkpoints)}), flush=True)
    plain = outcome(options.checkpoints, preset)
    print(json.dumps({"as it is": plain.archive_bytes, "weight_error": round(plain.weight_error, 7)}), flush=True)
    for place, values in TRIED.items():
        if options.only not in place:
            continue
        module, name = place.rsplit(".", 1)
        home = importlib.import_module(f"ckzd.codec.{module}")
        for value in values:
            with mock.patch.object(home, name, value):
                other = outcome(options.checkpoints, preset)
            line = {"constant": place, "is": getattr(home, name), "tried": value, "bytes": other.archive_bytes}
            change = {
                "bytes_change": f"{other.archive_bytes / plain.archive_bytes - 1:+.2%}",
                "error_change": f"{other.weight_error / plain.weight_error - 1:+.1%}",
            }
            print(json.dumps(line | change), flush=True)


if __name__ == "__main__":
    main()
