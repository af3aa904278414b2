"""The adaptive code length is that of coding symbol by symbol, and fields that say nothing cost."""

import math

import numpy as np
import pytest
from contexts import NAMES, adaptive_bytes

from ckzd.codec.context import GRID
from ckzd.codec.lstm import ALPHABET
from ckzd.codec.models import Histogram

PLACE = GRID // 5  # of one class of the first field


def coded(symbols, classes):
    """Bytes of symbols, one by one, with counts of their own for each class of the first field."""
    bits, counts = 0.0, {}
    for symbol, cls in zip(symbols.tolist(), classes.tolist(), strict=True):
        seen = counts.setdefault(cls, np.full(ALPHABET, 1 / ALPHABET))
        bits -= math.log2(seen[symbol] / seen.sum())
        seen[symbol] += 1
    return bits / 8


def test_it_is_the_length_of_coding_one_by_one():
    draw = np.random.default_rng(0)
    classes = draw.integers(0, 3, 400)
    symbols = np.minimum(draw.geometric(0.3 + 0.2 * classes), 17).astype(np.uint8)
    histograms = {(0, 0, 2): Histogram.of((classes * PLACE).astype(np.int16), symbols)}
    alone = coded(symbols, np.zeros(400, int))
    assert adaptive_bytes(histograms, ()) == pytest.approx(alone)
    assert alone > adaptive_bytes(histograms, NAMES[:1]) == pytest.approx(coded(symbols, classes))
    assert adaptive_bytes(histograms, NAMES[1:]) == pytest.approx(alone)
