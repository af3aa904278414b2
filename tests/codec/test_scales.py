"""Codes of scales: nearest values, the same on every machine; and how rows and columns weigh."""

from fractions import Fraction

import numpy as np
import pytest
from codec.drawn import matrices
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec.scales import MAX_SCALE_CODE as MOST
from ckzd.codec.scales import ZERO, Scales, checked_scales, code_of, fisher_weighting, half_octaves, value_of

codes = st.one_of(st.integers(-MOST, MOST), st.just(int(ZERO)))


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
    found = half_octaves(scales)
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
    for code in range(-MOST, MOST + 1):
        value = Fraction(float(value_of(np.array([code], np.int16))[0]))
        octave, eighth = divmod(code, 8)
        mantissa = value / Fraction(2) ** octave * 2**52
        assert mantissa.denominator == 1
        assert abs(float(mantissa) - 2**52 * 2 ** (eighth / 8)) <= 1


@pytest.mark.parametrize("bad", [MOST + 1, -MOST - 1, 32767, -32767])
def test_an_impossible_scale_is_refused(bad):
    fine, wrong = np.zeros(3, np.int16), np.array([0, bad, 0], np.int16)
    for rows, columns in ((fine, wrong), (wrong, fine)):
        with pytest.raises(ValueError, match="a scale outside"):
            checked_scales(rows, columns, None)
    with pytest.raises(ValueError, match="a scale outside"):
        checked_scales(fine.astype(np.int32), fine, None)


# Weighting


def scale_codes(size):
    return arrays(np.int16, size, elements=st.one_of(st.integers(-1000, 1000), st.just(int(ZERO))))


@given(st.data(), matrices)
def test_weighing_is_undone(data, shape):
    weighting = fisher_weighting(Scales(data.draw(scale_codes(shape[0])), data.draw(scale_codes(shape[1]))))
    values = data.draw(arrays(np.float64, shape, elements=st.floats(-1e3, 1e3, width=32)))
    assert (weighting.rows > 0).all()
    assert (weighting.columns > 0).all()
    assert np.allclose(weighting.unweigh(weighting.weigh(values)), values, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "codes",
    [[MOST], [-MOST], [int(ZERO)], [int(ZERO), -MOST], [MOST, -MOST]],
)
def test_the_most_extreme_scales_weigh_finitely(codes):
    weighting = fisher_weighting(Scales(np.array(codes, np.int16), np.array(codes, np.int16)))
    back = weighting.unweigh(np.full((len(codes), len(codes)), 2.0**128))
    assert np.isfinite(back).all()
