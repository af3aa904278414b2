"""The fill is 0 only where both moments were, else at least the smallest number; and near what it stands for."""

import numpy as np
import pytest
from codec.drawn import DTYPES, matrices, positive, signed, stored
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec.dtypes import SMALLEST, to_float64
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.scales import checked_scales, fill_of, scales_of


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_restored_second_moments_are_zero_only_where_both_were(dtype, data):
    shape = data.draw(matrices)
    second = stored(data.draw(arrays(np.float64, shape, elements=positive)), dtype)
    first = stored(data.draw(arrays(np.float64, shape, elements=signed)), dtype)
    scales = scales_of(Moments(first, second), dtype)
    restored = to_float64(fill_of(scales, dtype), dtype)
    assert restored.shape == shape
    assert np.isfinite(restored).all()
    assert not ((restored == 0) & ((second != 0) | (first != 0))).any()
    assert ((restored == 0) | (restored >= SMALLEST[dtype])).all()
    dead = (second == 0) & (first == 0)
    assert (restored[dead.all(1)] == 0).all()
    assert (restored[:, dead.all(0)] == 0).all()
    checked_scales(scales.rows, scales.columns, scales.reach)


def test_a_rank_one_second_moment_comes_back_to_a_sixteenth_of_an_octave_a_side():
    rows, columns = np.geomspace(1e-12, 1e-4, 40)[:, None], np.geomspace(0.01, 100, 30)[None, :]
    second = rows * columns
    restored = to_float64(fill_of(scales_of(Moments(second, second), "float32"), "float32"), "float32")
    assert np.abs(np.log2(restored / second)).max() < 2 / 16 + 1e-6


def test_masked_elements_do_not_make_the_others_smaller():
    """Of a tensor of which half never had a gradient, the other half comes back as if it were alone."""
    draw = np.random.default_rng(0)
    second = np.where(
        draw.random((64, 48)) < 0.5, 0.0, np.outer(np.geomspace(1e-8, 1e-4, 64), np.geomspace(0.1, 10, 48))
    )
    restored = to_float64(fill_of(scales_of(Moments(second, second), "float32"), "float32"), "float32")
    alive = second > 0
    assert np.abs(np.log2(restored[alive] / second[alive])).max() < 0.5
