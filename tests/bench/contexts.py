"""Which contexts earn their place: adaptive code length of one checkpoint's symbols under every choice of fields.

usage: contexts.py REFERENCE.pt... CURRENT.pt [--preset resume]      one run, oldest first
Each context keeps counts of its own and learns as it codes (Dirichlet, 1/18 a symbol), so that fields pay for what they
cost to learn: no table is sent. A line a choice; `density` is known in every one but the first.
"""

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from gain import planes_of, reconstruction_of
from machine import machine

from ckzd.codec.context import FIELDS
from ckzd.codec.fitting import histograms_over
from ckzd.codec.lstm import ALPHABET
from ckzd.codec.models import Histograms
from ckzd.codec.presets import PRESETS

NAMES = tuple(name for name, _ in FIELDS)
SIZES = tuple(size for _, size in FIELDS)
PRIOR = 1 / ALPHABET
LOG_GAMMA = np.vectorize(math.lgamma, otypes=[float])


def adaptive_bytes(histograms: Histograms, fields: Iterable[str], *, density: bool = True) -> float:
    """Bytes of all symbols if contexts are told apart by these fields, plane kind and, it may be, density."""
    chosen, found = [NAMES.index(name) for name in fields], []
    for (kind, _, dense), histogram in histograms.items():
        classes = np.unravel_index(histogram.used, SIZES)
        place = np.full(histogram.used.shape, kind * 8 + (dense if density else 0))
        for field in chosen:
            place = place * SIZES[field] + classes[field]
        found.append((place, histogram.counts))
    places = np.concatenate([place for place, _ in found])
    _, inverse = np.unique(places, return_inverse=True)
    counts = np.zeros((inverse.max() + 1, ALPHABET))
    np.add.at(counts, inverse, np.concatenate([each for _, each in found]))
    whole = LOG_GAMMA(counts.sum(1) + 1) - LOG_GAMMA(counts + PRIOR).sum(1) + ALPHABET * math.lgamma(PRIOR)
    return float(whole.sum() / math.log(256))


def choices() -> Iterator[tuple[str, tuple[str, ...]]]:
    """None, each alone, all but each, all, and what the tables use."""
    yield "density alone", ()
    yield from ((name, (name,)) for name in NAMES)
    yield from ((f"all but {name}", tuple(each for each in NAMES if each != name)) for name in NAMES)
    yield "all", NAMES
    yield "guide and energy, as tables do", ("guide", "energy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--preset", default="resume")
    options = parser.parse_args()
    preset, reference = PRESETS[options.preset], None
    *earlier, current = options.checkpoints
    for path in earlier:
        reference = reconstruction_of(path, reference, preset)
    histograms = histograms_over(planes_of(current, reference, preset)).histograms
    print(json.dumps({**machine(), "checkpoint": current.name, "preset": preset.name}))
    order0 = adaptive_bytes(histograms, (), density=False)
    print(json.dumps({"contexts": "none", "bytes": round(order0)}))
    for name, fields in choices():
        size = adaptive_bytes(histograms, fields)
        print(json.dumps({"contexts": name, "bytes": round(size), "below_order0": round(1 - size / order0, 4)}))


if __name__ == "__main__":
    main()
