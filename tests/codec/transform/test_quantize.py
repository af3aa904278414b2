"""Residuals to levels and back: within the step, whatever the weights of rows and columns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ckzd.codec.dtypes import from_float64, to_float64
from ckzd.codec.restoring import add_residual, restore_scalar
from ckzd.codec.scales import MAX_CODE, ZERO, Scales
from ckzd.codec.transform import quantize
from ckzd.codec.transform.quantize import Codebook, KmeansCode, ScalarCode

matrices = array_shapes(min_dims=2, max_dims=2, max_side=6)


def scale_codes(size):
    return arrays(np.int16, size, elements=st.one_of(st.integers(-1000, 1000), st.just(int(ZERO))))


@given(st.data(), matrices)
def test_weighing_is_undone(data, shape):
    weigher = quantize.weigher_of(Scales(data.draw(scale_codes(shape[0])), data.draw(scale_codes(shape[1]))))
    values = data.draw(arrays(np.float64, shape, elements=st.floats(-1e3, 1e3, width=32)))
    assert (weigher.rows > 0).all()
    assert (weigher.columns > 0).all()
    assert np.allclose(weigher.unweigh(weigher.weigh(values)), values, rtol=1e-14, atol=0)


@pytest.mark.parametrize("codes", [[MAX_CODE], [-MAX_CODE], [int(ZERO)], [int(ZERO), -MAX_CODE], [MAX_CODE, -MAX_CODE]])
def test_the_most_extreme_scales_weigh_finitely(codes):
    weigher = quantize.weigher_of(Scales(np.array(codes, np.int16), np.array(codes, np.int16)))
    back = weigher.unweigh(np.full((len(codes), len(codes)), 2.0**128))
    assert np.isfinite(back).all()


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


@given(st.data(), st.integers(0, 15))
def test_a_codebook_comes_back(data, size):
    centres = np.sort(data.draw(arrays(np.float32, size, elements=st.floats(-1e3, 1e3, width=32))))
    book = Codebook(centres, data.draw(st.integers(0, size)))
    again, length = Codebook.from_bytes(book.to_bytes() + b"plane")
    assert length == len(book.to_bytes())
    assert again.below == book.below
    assert again.centres.tolist() == centres.tolist()
    levels = np.array([range(-book.below, size - book.below + 1)], np.int16)
    expected = [*centres[: book.below], 0.0, *centres[book.below :]]
    assert quantize.dequantize_kmeans(KmeansCode(levels, again)).tolist() == [expected]


@pytest.mark.parametrize("level", [-3, 2, 32767, -32768])
def test_a_level_without_a_centre_is_refused(level):
    code = KmeansCode(np.array([[level]], np.int16), Codebook(np.array([-2, -1, 1], np.float32), 2))
    with pytest.raises(ValueError, match="outside the codebook"):
        quantize.dequantize_kmeans(code)


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02\x00aaaa", b"\x01\x02aaaa", b"\x01\x00\x00\x00\x80\x7f"])
def test_a_codebook_that_cannot_be_is_refused(data):
    import struct

    with pytest.raises((ValueError, struct.error)):
        Codebook.from_bytes(data)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
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


def test_nothing_that_an_archive_can_say_breaks_the_arithmetic():
    """The largest step, levels and scales that the format allows stay finite in float64: no warning, no NaN."""
    for rows in (MAX_CODE, -MAX_CODE):
        scales = Scales(np.array([rows], np.int16), np.array([-MAX_CODE, MAX_CODE], np.int16))
        code = ScalarCode(np.array([[32767, -32768]], np.int16), b"\xff\xff\xff")
        restored = restore_scalar(np.zeros((1, 2), np.float32), code, scales, 2.0**128, "float32")
        assert np.isfinite(restored).all()
