"""Residuals to levels and back: within the step."""

import numpy as np
import pytest
from codec.drawn import matrices
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec.transform import quantize


@given(st.data(), matrices, st.floats(1e-6, 10), st.floats(0.5, 1.0))
def test_a_scalar_level_restores_inside_its_step(data, shape, step, dead_zone):
    weighted = data.draw(arrays(np.float64, shape, elements=st.floats(-100, 100))) * step
    code = quantize.quantize_scalar(weighted, step, dead_zone)
    restored = quantize.dequantize_scalar(code, step)
    assert len(code.centres) == 3
    assert (np.abs(restored - weighted) <= max(dead_zone, 1.0) * step * (1 + 1e-9)).all()
    pruned = code.levels == 0
    assert (restored[pruned] == 0).all()
    assert (np.abs(weighted[pruned]) <= dead_zone * step * (1 + 1e-9)).all()
    assert (np.sign(restored) == np.sign(code.levels)).all()


def test_centres_are_the_means_of_their_levels():
    weighted = np.abs(np.random.default_rng(0).laplace(size=(200, 200)))
    code = quantize.quantize_scalar(weighted, 0.5, 0.6)
    restored = quantize.dequantize_scalar(code, 0.5)
    for level in (1, 2, 3):
        chosen = code.levels == level
        assert restored[chosen].mean() == pytest.approx(weighted[chosen].mean(), abs=0.5 / 256)


def test_levels_end_at_int16():
    code = quantize.quantize_scalar(np.array([[1e30, -1e30, 1e3]]), 1e-3, 0.6)
    assert code.levels.tolist() == [[32767, -32767, 32767]]
