"""How many factors pay, and what they lose, on matrices whose answer is known."""

import numpy as np
import pytest

from ckzd.codec.transform import lowrank
from ckzd.codec.transform.lowrank import fitted
from ckzd.codec.transform.rate_distortion import estimated


def of_rank(rank, shape=(300, 120), size=40.0, seed=0):
    """A sum of so many outer products, each entry of about this size in steps."""
    draw = np.random.default_rng(seed)
    return size / rank**0.5 * draw.standard_normal((shape[0], rank)) @ draw.standard_normal((rank, shape[1]))


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_a_matrix_of_few_directions_takes_as_many_factors_and_loses_less_than_a_step(rank):
    matrix = of_rank(rank)
    factors, estimate = fitted(matrix)
    assert factors.codes.size == rank
    assert np.sqrt(estimate.distortion / matrix.size) < 0.5
    assert estimate.distortion == pytest.approx(((matrix - factors.fixed / 4096) ** 2).sum())


def test_noise_below_a_step_takes_none():
    assert fitted(0.2 * np.random.default_rng(0).standard_normal((100, 80))) is None


@pytest.mark.parametrize("value", [0.0, 1e9, 1e300, np.nan])
def test_what_stands_still_or_is_beyond_the_format_has_none(value):
    assert fitted(np.full((16, 16), value)) is None


def test_noise_is_left_out_and_what_rises_above_it_is_not():
    noise = 0.3 * np.random.default_rng(1).standard_normal((300, 120))
    factors, estimate = fitted(of_rank(4) + noise)
    assert factors.codes.size == 4
    assert estimate.distortion == pytest.approx((noise**2).sum(), rel=0.1)


def test_more_directions_than_the_sketch_are_cut_off():
    factors, estimate = fitted(of_rank(200, shape=(400, 300)))
    assert factors.codes.size == lowrank._MOST_COMPONENTS
    assert estimate.distortion > 400 * 300


@pytest.mark.parametrize("rank", [3, 120])
def test_factors_are_cheaper_where_few_directions_carry_all(rank):
    matrix = of_rank(rank)
    levels = np.rint(matrix)
    plain = estimated(matrix - levels, levels.astype(np.int16))
    assert (fitted(matrix)[1].cost < plain.cost) == (rank == 3)


def test_the_estimate_is_that_of_a_coder_that_knows_rows_and_columns():
    """Entropy of Gaussians of these deviations, rounded."""
    draw = np.random.default_rng(0)
    deviation = np.geomspace(0.3, 4, 200)[:, None] * np.ones(400)
    levels = np.rint(draw.normal(0, deviation)).astype(np.int16)
    rounded = np.rint(draw.normal(0, deviation[:, :1], (200, 40_000)))
    counts = np.stack([np.bincount(row.astype(int) + 40, minlength=81) for row in rounded]) / rounded.shape[1]
    entropy = -400 * (counts * np.log2(np.maximum(counts, 1e-12))).sum()
    assert estimated(np.zeros(1), levels).bits == pytest.approx(entropy, rel=0.05)
