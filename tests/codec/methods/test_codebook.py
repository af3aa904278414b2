"""Moments by codebooks."""

import numpy as np
import pytest
from codec.drawn import DTYPES, matrices
from codec.known import known_moments
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec.dtypes import SMALLEST_NORMAL, to_float64
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.methods.codebook import CodebookSecond
from ckzd.codec.methods.method import Coded
from ckzd.codec.paper.codebook import Codebook
from ckzd.codec.scales import scales_of


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_a_kept_second_moment_is_never_zero(dtype, data):
    """A codebook may hold a 0: a second moment that had underflowed beside a first one that had not."""
    shape = data.draw(matrices)
    levels = data.draw(arrays(np.int16, shape, elements=st.integers(0, 2)))
    head = Codebook(np.array([0.0, 1e-30], np.float32), 0).to_bytes()
    scales = scales_of(Moments(np.ones(shape), np.ones(shape)), "float32")
    restored = to_float64(CodebookSecond().restored(Coded(head, levels), known_moments(scales, dtype)), dtype)
    assert (restored >= SMALLEST_NORMAL[dtype]).all()
