"""The law of second moments: 0 only where both were, else at least the smallest normal; and the first in its units."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ckzd.codec import scales as moments
from ckzd.codec.arrays import Float64
from ckzd.codec.dtypes import SMALLEST, SMALLEST_NORMAL, from_float64, to_float64
from ckzd.codec.restoring import restore_first, restore_second
from ckzd.codec.scales import MAX_CODE, ZERO, checked_scales, code_of, value_of
from ckzd.codec.transform.quantize import Codebook, KmeansCode

DTYPES = ["float32", "bfloat16", "float16"]
positive = st.one_of(st.just(0.0), st.floats(2.0**-149, 2.0**120, width=32), st.floats(2.0**-46, 2.0**-7, width=32))
signed = st.one_of(st.just(0.0), st.floats(-(2.0**100), 2.0**100, width=32))
matrices = array_shapes(min_dims=2, max_dims=2, max_side=6)


def stored(values: Float64, dtype: str) -> Float64:
    return to_float64(from_float64(values, dtype), dtype)


codes = st.one_of(st.integers(-MAX_CODE, MAX_CODE), st.just(int(ZERO)))


def plain_half_octaves(scales):
    """FORMAT.md, section Planes, in Python's integers and fractions."""
    used = [int(code) for code in scales.rows if code != ZERO]
    middle = 0
    if used:
        shares = [int(value_of(np.array(code - max(used), np.int16)) * 2**30) for code in used]
        mean = Fraction(sum(shares), len(used)) / 2**30
        middle = max(used) + min(range(-400, 1), key=lambda code: abs(Fraction(2.0 ** (code / 8)) - mean))
    near = [[(int(r) + int(c) - middle + 2) // 4 for c in scales.columns] for r in scales.rows]
    return np.clip(near, -64, 63)


@given(arrays(np.int16, st.integers(1, 9), elements=codes), arrays(np.int16, st.integers(1, 9), elements=codes))
def test_half_octaves_are_what_the_format_says(rows, columns):
    scales = checked_scales(rows, columns, None)
    found = moments.half_octaves(scales)
    assert found.dtype == np.int8
    assert np.array_equal(found, plain_half_octaves(scales))


@given(st.lists(codes, min_size=1))
def test_a_scale_code_says_its_value(numbers):
    given_codes = np.array(numbers, np.int16)
    assert code_of(value_of(given_codes)).tolist() == numbers


@given(st.lists(st.floats(2.0**-400, 2.0**400), min_size=1))
def test_a_value_is_said_to_a_sixteenth_of_an_octave(values):
    again = value_of(code_of(np.array(values)))
    assert np.all(np.abs(np.log2(again / np.array(values))) <= 1 / 16 + 1e-9)


def test_values_are_powers_of_two_to_the_last_bit():
    """Nearest float64 of 2**(code / 8), for every code that can occur."""
    for code in range(-MAX_CODE, MAX_CODE + 1):
        value = Fraction(float(value_of(np.array([code], np.int16))[0]))
        octave, eighth = divmod(code, 8)
        mantissa = value / Fraction(2) ** octave * 2**52
        assert mantissa.denominator == 1
        assert abs(float(mantissa) - 2**52 * 2 ** (eighth / 8)) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_restored_second_moments_are_zero_only_where_both_were(dtype, data):
    shape = data.draw(matrices)
    second = stored(data.draw(arrays(np.float64, shape, elements=positive)), dtype)
    first = stored(data.draw(arrays(np.float64, shape, elements=signed)), dtype)
    scales = moments.scales_of(second, first, dtype)
    restored = to_float64(restore_second(None, scales, dtype), dtype)
    assert restored.shape == shape
    assert np.isfinite(restored).all()
    assert not ((restored == 0) & ((second != 0) | (first != 0))).any()
    assert ((restored == 0) | (restored >= SMALLEST[dtype])).all()
    dead = (second == 0) & (first == 0)
    assert (restored[dead.all(1)] == 0).all()
    assert (restored[:, dead.all(0)] == 0).all()
    checked_scales(scales.rows, scales.columns, scales.reach)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_a_kept_second_moment_is_never_zero(dtype, data):
    """A codebook may hold a 0: a second moment that had underflowed beside a first one that had not."""
    shape = data.draw(matrices)
    levels = data.draw(arrays(np.int16, shape, elements=st.integers(0, 2)))
    code = KmeansCode(levels, Codebook(np.array([0.0, 1e-30], np.float32), 0))
    scales = moments.scales_of(np.ones(shape), np.ones(shape), "float32")
    restored = to_float64(restore_second(code, scales, dtype), dtype)
    assert (restored >= SMALLEST_NORMAL[dtype]).all()


def test_a_rank_one_second_moment_comes_back_to_a_sixteenth_of_an_octave_a_side():
    rows, columns = np.geomspace(1e-12, 1e-4, 40)[:, None], np.geomspace(0.01, 100, 30)[None, :]
    second = rows * columns
    restored = to_float64(restore_second(None, moments.scales_of(second, second, "float32"), "float32"), "float32")
    assert np.abs(np.log2(restored / second)).max() < 2 / 16 + 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_first_moments_come_back_within_their_step_or_dead_zone(dtype, data):
    shape = data.draw(matrices)
    elements = st.one_of(st.just(0.0), st.floats(SMALLEST_NORMAL[dtype], 100, width=16 if dtype == "float16" else 32))
    second = stored(data.draw(arrays(np.float64, shape, elements=elements)), dtype)
    relative = data.draw(arrays(np.float64, shape, elements=st.floats(-30, 30)))
    step = data.draw(st.floats(0.1, 5))
    first = relative * np.sqrt(second)
    levels = moments.quantize_first(first, second, step)
    exact = moments.restore_first(levels, second, step)
    assert (np.abs(exact - first) <= moments._DEAD_ZONE * step * np.sqrt(second) * (1 + 1e-9)).all()
    assert (exact[second == 0] == 0).all()
    rounded = restore_first(levels, second, step, dtype)
    assert np.array_equal(rounded, from_float64(exact, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_relative_second_moments_come_back_within_a_quarter_octave(dtype, data):
    """Half octaves of the fill, wherever the stored dtype has numbers that near; never 0 beside a fill that is not."""
    shape = data.draw(matrices)
    elements = st.floats(SMALLEST_NORMAL[dtype], 100, width=16 if dtype == "float16" else 32)
    second, fill = (stored(data.draw(arrays(np.float64, shape, elements=elements)), dtype) for _ in range(2))
    levels = moments.quantize_second(second, fill)
    found = moments.restore_second(levels, fill, SMALLEST[dtype])
    assert np.abs(np.log2(found / second)).max(initial=0) <= 0.25 + 1e-9
    assert (moments.restore_second(moments.quantize_second(0 * second, fill), fill, SMALLEST[dtype]) > 0).all()
    assert not moments.restore_second(levels, 0 * fill, SMALLEST[dtype]).any()


def test_a_level_no_encoder_writes_of_a_second_moment_is_refused():
    with pytest.raises(ValueError, match="half octaves"):
        moments.restore_second(np.full((2, 2), 401, np.int16), np.ones((2, 2)), SMALLEST["float32"])


def test_masked_elements_do_not_make_the_others_smaller():
    """Of a tensor of which half never had a gradient, the other half comes back as if it were alone."""
    draw = np.random.default_rng(0)
    second = np.where(
        draw.random((64, 48)) < 0.5, 0.0, np.outer(np.geomspace(1e-8, 1e-4, 64), np.geomspace(0.1, 10, 48))
    )
    restored = to_float64(restore_second(None, moments.scales_of(second, second, "float32"), "float32"), "float32")
    alive = second > 0
    assert np.abs(np.log2(restored[alive] / second[alive])).max() < 0.5


def test_a_wild_first_moment_stays_in_the_alphabet():
    second = np.array([[2.0**-126, 1.0]])
    levels = moments.quantize_first(np.array([[3e38, -3e38]]), second, 1e-3)
    assert levels.tolist() == [[32767, -32767]]


@pytest.mark.parametrize("bad", [MAX_CODE + 1, -MAX_CODE - 1, 32767, -32767])
def test_an_impossible_scale_is_refused(bad):
    fine, wrong = np.zeros(3, np.int16), np.array([0, bad, 0], np.int16)
    for rows, columns in ((fine, wrong), (wrong, fine)):
        with pytest.raises(ValueError, match="a scale outside"):
            checked_scales(rows, columns, None)
    with pytest.raises(ValueError, match="a scale outside"):
        checked_scales(fine.astype(np.int32), fine, None)
