"""Moments relative to what scales tell: within their step, and inside the alphabet."""

import numpy as np
import pytest
from codec.drawn import DTYPES, matrices, stored
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec.dtypes import SMALLEST, SMALLEST_NORMAL
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.methods import scaled


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_first_moments_come_back_within_their_step_or_dead_zone(dtype, data):
    shape = data.draw(matrices)
    elements = st.one_of(st.just(0.0), st.floats(SMALLEST_NORMAL[dtype], 100, width=16 if dtype == "float16" else 32))
    second = stored(data.draw(arrays(np.float64, shape, elements=elements)), dtype)
    relative = data.draw(arrays(np.float64, shape, elements=st.floats(-30, 30)))
    step = data.draw(st.floats(0.1, 5))
    first = relative * np.sqrt(second)
    levels = elementwise.quantize_update(Moments(first, second), step, scaled.DEAD_ZONE)
    exact = elementwise.restored_update(levels, second, step, single=False)
    assert (np.abs(exact - first) <= scaled.DEAD_ZONE * step * np.sqrt(second) * (1 + 1e-9)).all()
    assert (exact[second == 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_relative_second_moments_come_back_within_a_quarter_octave(dtype, data):
    """Half octaves of the fill, wherever the stored dtype has numbers that near; never 0 beside a fill that is not."""
    shape = data.draw(matrices)
    elements = st.floats(SMALLEST_NORMAL[dtype], 100, width=16 if dtype == "float16" else 32)
    second, fill = (stored(data.draw(arrays(np.float64, shape, elements=elements)), dtype) for _ in range(2))
    levels = scaled.quantize_second(second, fill)
    found = scaled.restore_second(levels, fill, SMALLEST[dtype])
    assert np.abs(np.log2(found / second)).max(initial=0) <= 0.25 + 1e-9
    assert (scaled.restore_second(scaled.quantize_second(0 * second, fill), fill, SMALLEST[dtype]) > 0).all()
    assert not scaled.restore_second(levels, 0 * fill, SMALLEST[dtype]).any()


def test_a_level_no_encoder_writes_of_a_second_moment_is_refused():
    with pytest.raises(ValueError, match="half octaves"):
        scaled.restore_second(np.full((2, 2), 401, np.int16), np.ones((2, 2)), SMALLEST["float32"])


def test_a_wild_first_moment_stays_in_the_alphabet():
    second = np.array([[2.0**-126, 1.0]])
    levels = elementwise.quantize_update(Moments(np.array([[3e38, -3e38]]), second), 1e-3, scaled.DEAD_ZONE)
    assert levels.tolist() == [[32767, -32767]]
