"""Training: the same numbers each time, and a float network that is the integer one in all but rounding."""

import numpy as np
import pytest
import torch
from codec.counted_tables import counted_tables

from ckzd.codec import zstd
from ckzd.codec.entropy.context import GRID
from ckzd.codec.entropy.models import Histogram, TableModel, cost_bits, seen
from ckzd.codec.kernels.plain import ALPHABET
from ckzd.codec.paper import train
from ckzd.codec.paper.lstm import SHAPES, LstmModel, LstmWeights
from ckzd.codec.paper.refined import RefinedModel
from ckzd.errors import ConfigError


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def histograms(seed=0):
    """Symbols that follow the whole context, which the tables see only in part."""
    draw = np.random.default_rng(seed)
    neighbours = np.arange(GRID) // 3 % 4
    falling = np.exp(-np.arange(ALPHABET) / (0.4 + neighbours[:, None]))
    seen = draw.random(GRID) < 0.02
    keys = ((0, 0, 3), (1, 3, 3))
    return {key: Histogram.of_grid(draw.poisson(300 * falling) * seen[:, None]) for key in keys}


def bits_of(counted, weights):
    tables = counted_tables(counted)
    return cost_bits(seen(counted, RefinedModel(tables, LstmModel(weights))))


def test_training_pays_and_the_same_seed_gives_the_same_weights():
    counted = histograms()
    tables = counted_tables(counted)
    first, again = (train.fit(counted, tables, None, steps=40) for _ in range(2))
    assert first.to_bytes() == again.to_bytes()
    assert train.fit(counted, tables, None, steps=40, seed=1).to_bytes() != first.to_bytes()
    assert bits_of(counted, first) < 0.98 * cost_bits(seen(counted, tables))


def test_a_warm_start_goes_on_where_the_reference_stopped():
    counted = histograms()
    start = train.fit(counted, counted_tables(counted), None, steps=40)
    moved = histograms(1)
    further = train.fit(moved, counted_tables(moved), start, steps=5)
    assert bits_of(moved, further) < 1.005 * bits_of(moved, start)


@pytest.mark.parametrize("spread", [4, 30])
def test_the_float_networks_bits_are_the_integer_networks(spread):
    """Else the encoder would optimise something that no decoder does."""
    draw = np.random.default_rng(3)
    weights = LstmWeights(**{n: draw.integers(-spread, spread + 1, s).astype(np.int8) for n, s in SHAPES.items()})
    counted = histograms()
    tables = counted_tables(counted)
    levels, counts, prior = train._tree(counted, tables, "cpu")
    parameters = train._parameters(SHAPES, weights, 0, "cpu")
    with torch.no_grad():
        predicted = float(train._bits(levels, counts, prior, parameters))
    often = {key: each.counts.sum(1) >= train._MIN_SEEN for key, each in counted.items()}
    kept = {key: Histogram(each.used[often[key]], each.counts[often[key]]) for key, each in counted.items()}
    assert predicted == pytest.approx(cost_bits(seen(kept, RefinedModel(tables, LstmModel(weights)))), rel=0.01)


@pytest.mark.parametrize("warm", [False, True])
def test_the_weights_own_bytes_are_kept_small(monkeypatch, warm):
    counted, tables = histograms(), counted_tables(histograms())
    start = train.fit(histograms(1), tables, None, steps=10) if warm else None
    before = np.frombuffer(start.to_bytes(), np.uint8) if warm else np.uint8(0)
    priced = train.fit(counted, tables, start, steps=40)
    monkeypatch.setattr(train, "_price", lambda *_: 0)
    free = train.fit(counted, tables, start, steps=40)
    sizes = [len(zstd.compress((np.frombuffer(w.to_bytes(), np.uint8) - before).tobytes())) for w in (priced, free)]
    assert sizes[0] < 0.97 * sizes[1]
    assert bits_of(counted, priced) + 8 * sizes[0] < bits_of(counted, free) + 8 * sizes[1]


def test_an_untrained_network_changes_nothing():
    counted = histograms()
    tables = counted_tables(counted)
    weights = LstmWeights(**{n: train._int8(p) for n, p in train._parameters(SHAPES, None, 0, "cpu").items()})
    assert bits_of(counted, weights) == pytest.approx(cost_bits(seen(counted, tables)), rel=1e-3)


def test_nothing_to_learn_from():
    empty = {(0, 0, 0): Histogram.of_grid(np.zeros((GRID, ALPHABET), np.int64))}
    weights = train.fit(empty, TableModel({}), None, steps=3)
    assert np.isfinite(LstmModel(weights).rows(0, 0, 0)).all()


def test_devices():
    assert train.pick_device("cpu") == "cpu"
    assert train.pick_device("auto") in ("cpu", "cuda")
    for name in ("cuda:99", "abacus", ""):
        with pytest.raises(ConfigError, match="expected a device that is there"):
            train.pick_device(name)


@pytest.mark.gpu
def test_training_on_a_gpu_gives_the_same_weights_each_time():
    counted = histograms()
    tables = counted_tables(counted)
    first, again = (train.fit(counted, tables, None, steps=40, device="cuda") for _ in range(2))
    assert first.to_bytes() == again.to_bytes()
    assert bits_of(counted, first) < 0.98 * cost_bits(seen(counted, tables))


def test_training_takes_one_thread_whatever_torch_was_given(monkeypatch):
    """torch is loaded late: a limit that was set before does not hold for it."""
    torch.set_num_threads(2)
    bits, seen_threads = train._bits, []

    def watched(*arguments):
        seen_threads.append(torch.get_num_threads())
        return bits(*arguments)

    monkeypatch.setattr(train, "_bits", watched)
    train.fit(histograms(), counted_tables(histograms()), None, steps=2)
    assert set(seen_threads) == {1}
