"""Compiled passes over weights and moments give the bits of their NumPy twins, whatever they are given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec.kernels import plain_elementwise as plain
from ckzd.codec.kernels.native import library
from ckzd.codec.kernels.native_elementwise import NativeElementwise
from ckzd.codec.kernels.plain_elementwise import Lengths, Moments, Used

BUILT = library()
pytestmark = pytest.mark.skipif(BUILT is None, reason="ckzd was installed without a C compiler")
draws = settings(deadline=None, max_examples=100)
shapes = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 21)),
    st.tuples(st.integers(1, 3), st.sampled_from([511, 512, 513, 1024, 1031])),
)
lengths = st.floats(2.0**-40, 2.0**40)
EDGES = [0.0, -0.0, 1e-45, -1e-45, 2.0**-126, 1.0, -3.0e38, 3.4e38, 1e-30]


@pytest.fixture(scope="module")
def native():
    return NativeElementwise(BUILT)


@st.composite
def cases(draw):
    """A shape, a maker of matrices for it in float32 or float64, and what multiplies its rows and columns."""
    shape = draw(shapes)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))

    def matrix(*, positive=False, edges=EDGES):
        values = random.standard_normal(shape) * 10.0 ** random.integers(-9, 3)
        odd = random.random(shape) < 0.2
        values[odd] = random.choice(edges, int(odd.sum()))
        values = values.astype(draw(st.sampled_from([np.float32, np.float64])))
        return np.abs(values) if positive else values

    rows, columns = (draw(arrays(np.float64, length, elements=lengths)) for length in shape)
    used = Used(*(draw(arrays(np.bool_, length)) for length in shape))
    return shape, matrix, Lengths(rows, columns), used, random


def alike(one, other):
    ones, others = (found if isinstance(found, tuple) else (found,) for found in (one, other))
    for each, twin in zip(ones, others, strict=True):
        assert each.dtype == twin.dtype
        assert each.tobytes() == twin.tobytes()


def both(native, name, *arguments, **options):
    alike(getattr(native, name)(*arguments, **options), getattr(plain, name)(*arguments, **options))


@draws
@given(cases(), st.booleans(), st.booleans())
def test_passes_over_weights_are_alike(native, case, single, has_reference):
    _, matrix, weighting, used, random = case
    weight, first, second = matrix(), matrix(), matrix(positive=True)
    before = matrix(edges=[*EDGES, np.inf, -np.inf, np.nan]) if has_reference else None
    residual = random.standard_normal(weight.shape) * 10
    both(native, "moment_sums", Moments(first, second))
    both(native, "restored", before, residual, 0.37, weighting, single=single)
    both(native, "trend", residual)
    finite = matrix() if has_reference else None
    both(native, "weighed", weight, finite, weighting)
    both(native, "energies", weight, finite, Moments(first, second), weighting, used)
    both(native, "losses", weight, matrix(), matrix(), first, weighting)


@draws
@given(cases(), st.booleans(), st.floats(1e-3, 1e3))
def test_passes_over_moments_are_alike(native, case, single, step):
    shape, matrix, weighting, used, random = case
    first, second = matrix(), matrix(positive=True)
    trend = random.integers(-127, 128, shape, dtype=np.int8)
    both(native, "fill", weighting, 2.0**-149, single=single)
    both(native, "fill", Lengths(weighting.rows * used.rows, weighting.columns * used.columns), 2.0**-24, single=single)
    both(native, "updates", Moments(first, second), 1e-8)
    both(native, "along_trend", Moments(first, second), trend, weighting)
    both(native, "against_trend", trend, step, weighting, used, single=single)
    both(native, "quantize_update", Moments(first, second), step, 0.6)
    levels = random.integers(-32768, 32768, shape).astype(np.int16)
    both(native, "restored_update", levels, second, step, single=single)


def test_sums_are_those_of_their_elements(native):
    random = np.random.default_rng(0)
    first, second = random.standard_normal((7, 1000)), random.random((7, 1000))
    found = native.moment_sums(Moments(first, second))
    np.testing.assert_allclose(found.rows, second.sum(1))
    np.testing.assert_allclose(found.columns, second.sum(0))
    np.testing.assert_allclose(
        native.updates(Moments(first, second), 1e-3).length, ((first / (second**0.5 + 1e-3)) ** 2).sum(1)
    )
