"""Frequencies are integers of at least 1; tables and a plane's own correction fit what was counted."""

import numpy as np
import pytest
from codec.counted_tables import counted_tables
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec import zstd
from ckzd.codec.entropy.context import DENSITIES, GRID, KINDS
from ckzd.codec.entropy.models import (
    BiasedModel,
    Histogram,
    TableModel,
    UniformModel,
    biased,
    cost_bits,
    fit_bias,
    frequency_codes,
    seen,
)
from ckzd.codec.entropy.tables import FREQUENCY
from ckzd.codec.kernels.plain import ALPHABET
from ckzd.codec.paper.lstm import SHAPES, LstmModel, LstmWeights
from ckzd.codec.paper.refined import RefinedModel

KEY = (0, 1, 3)
largest_tables = TableModel({(k, d): np.full((120, ALPHABET), 255, np.uint8) for k in range(KINDS) for d in range(8)})


def histograms(seed=0, scale=40.0):
    draw = np.random.default_rng(seed)
    falling = np.exp(-np.arange(ALPHABET) / draw.uniform(0.3, 6, (GRID, 1)))
    return {(0, number, 3): Histogram.of_grid(draw.poisson(scale * falling)) for number in range(4)}


def check(rows):
    assert rows.shape == (GRID, ALPHABET)
    assert rows.dtype == np.float64
    assert (rows >= 1).all()
    assert (rows == np.floor(rows)).all()
    assert rows.max() < 2**40  # sums stay far below 2**53


def test_all_models_give_integers_of_at_least_one():
    weights = LstmWeights(**{name: np.full(shape, 127, np.int8) for name, shape in SHAPES.items()})
    refined = RefinedModel(largest_tables, LstmModel(weights))
    loudest = np.full(ALPHABET, 255, np.uint8)
    for model in (largest_tables, refined, UniformModel(loudest), BiasedModel(refined, loudest)):
        check(model.rows(*KEY))
    faintest = np.zeros(ALPHABET, np.uint8)
    for model in (TableModel({}), UniformModel(faintest), BiasedModel(TableModel({}), faintest)):
        check(model.rows(*KEY))
        assert (model.rows(*KEY) == 1).all()


def test_a_histogram_counts_every_symbol_in_its_context():
    draw = np.random.default_rng(1)
    ids = draw.choice([3, 47, 48, 5759], 500).astype(np.int16)
    symbols = draw.integers(0, ALPHABET, 500).astype(np.uint8)
    grid = np.zeros((GRID, ALPHABET), np.int64)
    np.add.at(grid, (ids, symbols), 1)
    found, same = Histogram.of(ids, symbols), Histogram.of_grid(grid)
    assert found.used.tolist() == [3, 47, 48, 5759] == same.used.tolist()
    assert np.array_equal(found.counts, same.counts)
    assert np.array_equal(found.coarse(), grid.reshape(120, 48, ALPHABET).sum(1))
    assert Histogram.of(ids[:0], symbols[:0]).counts.shape == (0, ALPHABET)


@given(arrays(np.float64, (3, ALPHABET), elements=st.floats(0, 1e9)).map(lambda counts: counts + 1e-9))
def test_a_frequency_code_is_the_nearest(counts):
    """To a thirty-second of an octave, down to the faintest."""
    codes = frequency_codes(counts)
    assert codes.max() == 240
    got = np.array(FREQUENCY, float)[codes]
    expected = np.maximum(counts / counts.max(-1, keepdims=True) * 2**15, 1)
    loud = expected > 8
    assert (np.abs(np.log2(got[loud] / expected[loud])) < 1 / 32 + 0.05).all()
    assert (got[~loud] <= 12).all()


def test_tables_come_back_from_their_bytes():
    fitted = counted_tables(histograms() | {(2, 0, 7): Histogram.of_grid(np.ones((GRID, ALPHABET), np.int64))})
    again = TableModel.from_bytes(fitted.to_bytes())
    for key in [KEY, (2, 3, 7), (1, 0, 0)]:
        assert np.array_equal(fitted.rows(*key), again.rows(*key))
    assert (TableModel.from_bytes(b"").rows(*KEY) == 1).all()


@pytest.mark.parametrize("size", [1, 2161, 2163, (2 + 120 * ALPHABET) * KINDS * DENSITIES + 2162])
def test_tables_of_another_size_are_refused(size):
    with pytest.raises(ValueError, match=r"expected records|claims"):
        TableModel.from_bytes(zstd.compress(bytes(size)))


def test_tables_cost_little_more_than_what_was_counted():
    """Coarse contexts and one-byte frequencies lose little against the counts themselves."""
    counted = histograms(scale=400.0)
    each = [histogram.coarse() for histogram in counted.values()]
    together = sum(each)
    shares = np.log2(np.maximum(together, 1e-9) / together.sum(1, keepdims=True))
    best = sum(-(counts * shares)[counts > 0].sum() for counts in each)
    assert cost_bits(seen(counted, counted_tables(counted))) < 1.01 * best


def test_a_planes_own_correction_meets_its_own_counts():
    counted = histograms()
    fitted = counted_tables(counted)
    own = {key: Histogram(each.used, np.roll(each.counts, 1, axis=1)) for key, each in counted.items()}
    plain = seen(own, fitted)
    bias = fit_bias(plain)
    corrected = cost_bits(seen(own, BiasedModel(fitted, bias)))
    assert corrected == cost_bits(biased(plain, bias))
    assert corrected < 0.9 * cost_bits(plain)
    neutral = np.full(ALPHABET, 128, np.uint8)
    assert cost_bits(biased(plain, neutral)) == pytest.approx(cost_bits(plain), rel=1e-2)
