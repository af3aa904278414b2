"""Factors: their stream gives them back, their sums are exact, and no stream makes a sum that is not."""

import numpy as np
import pytest
from codec.exactness import largest_sum, watched
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from plain_decoder import Models as PlainModels
from plain_decoder import factored

from ckzd.codec.entropy.context import WEIGHTS
from ckzd.codec.entropy.models import Models
from ckzd.codec.entropy.planes import PlaneToCode, encode_plane
from ckzd.codec.entropy.tables import OCTAVE
from ckzd.codec.transform import factors as module
from ckzd.codec.transform.factors import MAX_FACTOR_CODE, Factors, Head, unit_of


@st.composite
def factors_of(draw, largest=30):
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    count = draw(st.integers(1, min(rows, columns)))
    level = st.integers(-largest, largest)
    left, right = (draw(arrays(np.int16, (length, count), elements=level)) for length in (rows, columns))
    return Factors(left, right, draw(arrays(np.int16, count, elements=st.integers(0, MAX_FACTOR_CODE))))


def stream_of(factors):
    """As an archive has it."""
    head, plane = factors.head(), factors.plane
    shape = len(factors.left), len(factors.right)
    seen = Head.of(head, shape).side_information(shape)
    coded, _ = encode_plane(PlaneToCode(0, WEIGHTS, plane, seen), Models())
    return head + coded


@given(factors_of(), st.binary(max_size=4))
def test_they_come_back(factors, behind):
    head, plane = factors.head(), factors.plane
    found = Head.of(head + behind, (len(factors.left), len(factors.right)))
    again = found.joined(plane, len(factors.left))
    assert found.nbytes == len(head)
    for name in ("left", "right", "codes"):
        assert np.array_equal(getattr(again, name), getattr(factors, name))


@given(factors_of())
def test_sums_are_those_of_whole_numbers(factors):
    """Python's integers, halves to even."""
    units = [OCTAVE[-code % 8] // 2 ** (32 - (-code // 8)) for code in factors.codes.tolist()]
    left, right = factors.left.tolist(), factors.right.tolist()
    for i, j in np.ndindex(len(left), len(right)):
        total = sum(a * b * unit for a, b, unit in zip(left[i], right[j], units, strict=True))
        whole, part = divmod(total, 256)
        assert factors.fixed[i, j] == whole + (part > 128 or (part == 128 and whole % 2))


@given(factors_of())
def test_the_page_says_the_same(factors):
    shape = len(factors.left), len(factors.right)
    assert np.array_equal(factored(stream_of(factors), shape, PlainModels(b"", b"")), factors.fixed)


def test_units_are_whole_and_halve_every_octave():
    units = unit_of(np.arange(MAX_FACTOR_CODE + 1, dtype=np.int16))
    assert (units == np.rint(units)).all()
    assert units[[0, 8, MAX_FACTOR_CODE]].tolist() == [2**20, 2**19, 1]


@pytest.mark.parametrize("order", ["backwards", "sevens"])
def test_no_order_of_summation_matters(order):
    draw = np.random.default_rng(0)
    levels = draw.integers(-2000, 2001, (2, 400, 60)).astype(np.int16)
    codes = np.full(60, 120, np.int16)
    plain = Factors(levels[0], levels[1], codes).fixed
    assert np.abs(plain).max() > 2**20
    with largest_sum(order) as largest:
        again = Factors(Unsigned(levels[0]), levels[1], codes).fixed
    assert np.array_equal(np.asarray(again), plain)
    assert 2**30 < largest[0] < 2**53


class Unsigned(np.ndarray):
    """Levels whose float64 form is watched."""

    def __new__(cls, levels):
        return np.asarray(levels).view(cls)

    def astype(self, dtype, *_args, **_options):
        return watched(np.asarray(self).astype(dtype))


@pytest.mark.parametrize(
    ("left", "code", "message"),
    [(2**14, 0, "beyond"), (600, 0, "a residual beyond"), (32767, 8, "a sum of factors beyond")],
)
def test_sums_that_no_encoder_writes_are_refused(left, code, message):
    side = np.full((64, 64), left, np.int16)
    factors = Factors(side, side, np.full(64, code, np.int16))
    with pytest.raises(ValueError, match=message):
        _ = factors.fixed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x05" + bytes(40),  # more than the shorter side
        b"\x01\xa1" + bytes(40),  # a code beyond 160
        b"\x02\x08",
        b"\x01\x08\x0c" + bytes(10),  # low bits that end too early
        b"\x01\x08\x0d" + bytes(100),
    ],
)
def test_heads_that_cannot_be_are_refused(data):
    with pytest.raises((ValueError, IndexError)):
        Head.of(data, (9, 4))


def test_side_information_tells_how_large_levels_are():
    """Of unit vectors; whatever is in the low bits is not seen."""
    draw = np.random.default_rng(0)
    rows, columns, codes = 512, 128, np.array([64, 40, 24, 12], np.int16)
    sides = [draw.standard_normal((n, 4)) / n**0.5 * 2.0 ** (codes / 8) for n in (rows, columns)]
    factors = Factors(*(np.rint(side).astype(np.int16) for side in sides), codes)
    head, plane = factors.head(), factors.plane
    seen = Head.of(head, (rows, columns)).side_information((rows, columns)).levels
    for part in (slice(0, rows), slice(rows, None)):
        deviation = np.sqrt((plane[part].astype(float) ** 2).mean(0))
        large = deviation > 1
        assert large.any()
        assert seen[part][0][large] / module._UNITS_A_DEVIATION == pytest.approx(deviation[large], rel=0.25)


def test_levels_that_do_not_fit_are_refused():
    """Where another decoder would have more bits for them."""
    head = Head.of(b"\x01\xa0" + 2 * (b"\x0c" + bytes(12)), (8, 8))
    assert head.joined(np.full((16, 1), 7, np.int16), 8).left.max() == 7 << 12
    with pytest.raises(ValueError, match="more than 16 bits"):
        head.joined(np.full((16, 1), 8, np.int16), 8)
