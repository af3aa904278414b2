"""ExCP's masks and codebooks, against its formulas and the best codebook that there is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec.paper import kmeans
from ckzd.codec.paper.codebook import dequantize_kmeans
from ckzd.codec.presets import EXCP_ALPHA, EXCP_BETA, EXCP_CAP, EXCP_CENTRES


def test_masks_follow_the_formulas():
    draw = np.random.default_rng(0)
    residual, first = draw.standard_normal((2, 40, 50))
    for mean in (1e-12, 4e-10, 1e-6):
        second = np.full((40, 50), mean)
        kept = kmeans.kept_weights(residual, second)
        threshold = min(EXCP_CAP, EXCP_ALPHA / np.sqrt(mean)) * np.median(np.abs(residual))
        assert np.array_equal(kept, np.abs(residual) > threshold)
        moments = kmeans.kept_moments(first, kept)
        assert np.array_equal(moments, kept & (np.abs(first) > EXCP_BETA * np.abs(first).mean()))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_kept_value_gets_its_nearest_centre(data):
    values = data.draw(arrays(np.float64, (8, 9), elements=st.floats(-1, 1, width=32)))
    kept = data.draw(arrays(np.bool_, (8, 9)))
    code = kmeans.quantize_kmeans(values, kept)
    centres = code.codebook.centres.astype(np.float64)
    assert centres.size <= EXCP_CENTRES
    assert (np.diff(centres) >= 0).all()
    assert np.array_equal(code.levels != 0, kept)
    assert np.abs(code.levels).max(initial=0) <= 8  # what the symbol alphabet holds without an escape
    restored = dequantize_kmeans(code)
    distances = np.abs(values[kept][:, None] - centres).min(1, initial=np.inf)
    assert np.allclose(np.abs(restored - values)[kept], distances, atol=1e-6)


def test_few_values_are_kept_exactly():
    values = np.array([[0.5, -0.25, 0.5], [3.0, 0.0, 1e-30]])
    code = kmeans.quantize_kmeans(values, np.ones((2, 3), np.bool_))
    assert np.array_equal(dequantize_kmeans(code), values.astype(np.float32).astype(np.float64))


@pytest.mark.parametrize("spread", ["normal", "laplace", "positive"])
def test_the_codebook_is_about_as_good_as_any(spread):
    """Lloyd's algorithm finds a local optimum: within 15 % of the best 15 centres of the same values."""
    draw = np.random.default_rng(0)
    ways = {"normal": draw.standard_normal, "laplace": draw.laplace, "positive": lambda size: draw.random(size) ** 3}
    values = ways[spread](size=1500).reshape(30, 50)
    code = kmeans.quantize_kmeans(values, np.ones(values.shape, np.bool_))
    error = ((dequantize_kmeans(code) - values) ** 2).mean()
    assert error < 1.15 * best_error(np.sort(values.ravel()))


def best_error(points: np.ndarray) -> float:
    """Mean squared error of the best 15 centres of these sorted points, by dynamic programming."""
    sums, squares = np.concatenate([[0], points.cumsum()]), np.concatenate([[0], (points**2).cumsum()])
    size = points.size
    start, stop = np.arange(size)[:, None], np.arange(1, size + 1)[None, :]
    count = np.maximum(stop - start, 1)
    cost = np.where(stop > start, squares[stop] - squares[start] - (sums[stop] - sums[start]) ** 2 / count, np.inf)
    best = cost[0]
    for _ in range(EXCP_CENTRES - 1):
        best = np.minimum(best, (best[:-1, None] + cost[1:]).min(0))
    return float(best[-1]) / size


def test_the_same_values_give_the_same_codebook():
    values = np.random.default_rng(1).standard_normal((300, 300))
    found = {kmeans.quantize_kmeans(values, np.abs(values) > 1).codebook.to_bytes() for _ in range(5)}
    assert len(found) == 1
