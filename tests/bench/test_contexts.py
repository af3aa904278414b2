"""The adaptive code length is that of coding symbol by symbol, and fields that say nothing cost."""

import math

import numpy as np
import pytest
from contexts import NAMES, SIZES, adaptive_bytes, along, counted

from ckzd.codec.entropy.context import SideInformation
from ckzd.codec.entropy.planes import PlaneToCode
from ckzd.codec.kernels.plain import ALPHABET, to_symbols
from ckzd.codec.transform.adaptive_basis import BasisSide

PLACE = math.prod(SIZES[1:])  # of one class of the first field


def coded(symbols, classes):
    """Bytes of symbols, one by one, with counts of their own for each class."""
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
    counts = np.zeros((math.prod(SIZES), ALPHABET), np.int64)
    np.add.at(counts, (classes * PLACE, symbols), 1)
    alone = coded(symbols, np.zeros(400, int))
    assert adaptive_bytes({(0, 2): counts}, ()) == pytest.approx(alone)
    assert alone > adaptive_bytes({(0, 2): counts}, NAMES[:1]) == pytest.approx(coded(symbols, classes))
    assert adaptive_bytes({(0, 2): counts}, NAMES[1:]) == pytest.approx(alone)


def test_every_symbol_is_counted_once_and_the_second_moment_tells_classes_apart():
    draw = np.random.default_rng(0)
    loud = np.repeat([1.0, 2.0**12], 20)[:, None] * np.ones((40, 24))  # a fourth root of 8 between the halves
    levels = np.rint(draw.normal(0, 2 * loud / loud.max(), (40, 24))).astype(np.int16)
    cells = counted([(PlaneToCode(0, 0, levels, SideInformation()), loud)])
    assert np.array_equal(sum(cells.values()).sum(0), np.bincount(to_symbols(levels).ravel(), minlength=ALPHABET))
    halves = np.repeat([0, 1], 20 * 24)
    assert adaptive_bytes(cells, ("second moment",)) == pytest.approx(coded(to_symbols(levels).ravel(), halves))


def test_directions_that_are_coordinates_see_the_moments_as_they_are():
    moments = np.linspace(1, 3, 300)
    assert along(BasisSide.identity(300), moments) == pytest.approx(moments)
