"""A residual is added to the reference in float64 and rounded once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec.dtypes import from_float64, to_float64
from ckzd.codec.records.reference_tensors import add_residual


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@given(data=st.data())
def test_a_weight_is_rounded_once(dtype, data):
    """Reference + residual in float64; what was not finite counts as 0, what overflows saturates."""
    special = st.one_of(st.floats(width=16), st.sampled_from([np.inf, -np.inf, np.nan, 0.0, -0.0]))
    before = from_float64(data.draw(arrays(np.float64, (3, 4), elements=special)), dtype)
    residual = data.draw(arrays(np.float64, (3, 4), elements=st.floats(-1e39, 1e39)))
    values = to_float64(before, dtype)
    got = add_residual(before, residual, dtype)
    assert np.array_equal(got, from_float64(np.where(np.isfinite(values), values, 0) + residual, dtype))
    assert np.isfinite(to_float64(got, dtype)).all()
