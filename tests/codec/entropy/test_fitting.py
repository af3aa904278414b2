"""Tables and mean predictions are what planes share beside the factors that each has of its own."""

import numpy as np
import pytest
from codec.counted_tables import counted_tables

from ckzd.codec.encode import fit_models
from ckzd.codec.entropy.context import GRID, SideInformation
from ckzd.codec.entropy.fitting import Counted, counted, fit_tables
from ckzd.codec.entropy.models import TableModel, biased, cost_bits, fit_bias, seen
from ckzd.codec.entropy.planes import PlaneToCode, histograms_of
from ckzd.codec.paper.fitting import MeanPrediction
from ckzd.codec.presets import PRESETS


def plane(tilt, seed, size=160):
    """Rows of rising energy; `tilt` is how much likelier than its mirror image a positive level is."""
    draw = np.random.default_rng(seed)
    spread = np.exp2(np.linspace(-1.5, 1.5, size))[:, None]
    levels = np.rint(draw.laplace(0, 1, (size, size)) * spread)
    flipped = np.where(draw.random((size, size)) < tilt, np.abs(levels), levels)
    return PlaneToCode(0, 0, np.clip(flipped, -8, 8).astype(np.int16), SideInformation())


def cost(planes, tables):
    """Bits of the tables and of all symbols."""
    bits = 8.0 * len(tables.to_bytes())
    for each in planes:
        known = seen(histograms_of(each), tables)
        bits += cost_bits(biased(known, fit_bias(known)))
    return bits


def test_counts_add_up():
    planes = [plane(0.2, 0), plane(0.8, 1)]
    counts = counted(planes, grid=True)
    symbols = sum(each.levels.size for each in planes)
    assert sum(histogram.counts.sum() for histogram in counts.histograms.values()) == symbols
    assert sum(each.coarse.sum() for each in counts.planes) == symbols
    assert sum(totals.sum() for each in counts.planes for _, totals in each.totals.values()) == symbols
    assert counted([], grid=True) == Counted({}, ())


def test_tables_leave_to_the_planes_what_is_theirs():
    planes = [plane(tilt, seed) for seed, tilt in enumerate((0.0, 0.9, 0.0, 0.9))]
    counts = counted(planes, grid=True)
    together, apart = counted_tables(counts.histograms), fit_tables(counts)
    assert cost(planes, apart) < cost(planes, together)
    assert fit_tables(counted([], grid=True)).to_bytes() == TableModel({}).to_bytes()


def test_one_plane_alone_gets_what_it_counts_for_fewer_bytes():
    alone = [plane(0.5, 3)]
    counts = counted(alone, grid=True)
    exact, fitted = counted_tables(counts.histograms), fit_tables(counts)
    assert cost(alone, fitted) < cost(alone, exact)
    assert len(fitted.to_bytes()) < 0.7 * len(exact.to_bytes())


def test_the_mean_prediction_expects_what_was_counted():
    counts = counted([plane(0.0, 0), plane(0.9, 1)], grid=True)
    mean, expected, actual = MeanPrediction(counts, fit_tables(counts)), 0.0, 0.0
    for key, histogram in counts.histograms.items():
        rows = mean.rows(*key)
        assert rows.shape == (GRID, 18)
        assert (rows >= 1).all()
        assert (rows == np.floor(rows)).all()
        counts, used = histogram.counts, rows[histogram.used]
        expected = expected + (counts.sum(1, keepdims=True) * used / used.sum(1, keepdims=True)).sum(0)
        actual = actual + counts.sum(0)
    assert expected == pytest.approx(actual, rel=0.02, abs=5)


def test_nothing_to_fit():
    fitted = fit_models(counted([], grid=True), None, PRESETS["resume"], "cpu")
    assert fitted.lstm == b""
    assert fitted.models.lstm is None


def test_fitting_twice_gives_the_same_bytes():
    first, again = (fit_tables(counted([plane(0.3, 5), plane(0.6, 6)], grid=True)).to_bytes() for _ in range(2))
    assert first == again
