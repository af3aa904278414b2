"""Compiled kernels and their NumPy twins give the same bits, whatever they are given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec.entropy.context import _ENERGY_CLASS
from ckzd.codec.entropy.lanes import cumulative_of, lanes_of
from ckzd.codec.kernels import plain
from ckzd.codec.kernels.native import Native, elements_of, library
from ckzd.codec.kernels.plain import Lines

BUILT = library()
pytestmark = pytest.mark.skipif(BUILT is None, reason="ckzd was installed without a C compiler")
shapes = st.tuples(st.integers(0, 21), st.integers(0, 21))
levels = st.one_of(st.just(0), st.integers(-9, 9), st.integers(-32768, 32767))
draws = settings(deadline=None, max_examples=200)


@pytest.fixture(scope="module")
def native():
    return Native(BUILT)


def planes(shape):
    return arrays(np.int16, shape, elements=levels)


def lines_alike(one, other):
    return np.array_equal(one.rows, other.rows) and np.array_equal(one.columns, other.columns)


@draws
@given(shapes, st.integers(0, 3))
def test_a_pass_has_as_many_elements_as_the_lattice_says(shape, number):
    assert elements_of(number, *shape) == np.count_nonzero(plain.lattice(shape) == number)


@draws
@given(shapes.flatmap(planes), st.integers(0, 3))
def test_levels_are_gathered_and_scattered_alike(native, plane, number):
    sums = [Lines.zeros(plane.shape) for _ in range(4)]
    symbols = native.gather(plane, number, sums[0])
    assert np.array_equal(symbols, plain.gather(plane, number, sums[1]))
    beyond = plane[(plain.lattice(plane.shape) == number) & (np.abs(plane.astype(np.int32)) > 8)]
    found = [np.zeros_like(plane), np.zeros_like(plane)]
    used = native.scatter(symbols, number, beyond, found[0], sums[2])
    assert used == plain.scatter(symbols, number, beyond, found[1], sums[3]) == beyond.size
    assert np.array_equal(*found)
    assert np.array_equal(found[0], np.where(plain.lattice(plane.shape) == number, plane, 0))
    assert all(lines_alike(sums[0], other) for other in sums[1:])


@pytest.mark.parametrize("which", ["native", "plain"])
def test_escapes_that_are_missing_are_an_error(native, which):
    kernels = native if which == "native" else plain
    symbols = np.full(8, plain.ESCAPE, np.uint8)
    with pytest.raises(ValueError, match="3 escapes"):
        kernels.scatter(symbols, 0, np.ones(3, np.int16), np.zeros((8, 8), np.int16), Lines.zeros((8, 8)))


@draws
@given(st.data(), shapes, st.integers(0, 3), st.booleans())
def test_contexts_are_alike(native, data, shape, number, second_alone):
    side = arrays(np.int8, shape, elements=st.integers(-128, 127))
    guide, second = data.draw(st.none() | side), data.draw(st.none() | side)
    numbers = st.integers(0, 1 << 30) | st.integers(-(1 << 63), (1 << 63) - 1)  # the second of damaged totals
    energies = Lines(*(data.draw(arrays(np.int64, length, elements=numbers)) for length in shape))
    found = [
        kernels.contexts(number, energies, _ENERGY_CLASS, guide, second, second_alone=second_alone)
        for kernels in (native, plain)
    ]
    assert found[0].dtype == found[1].dtype == np.uint8
    assert np.array_equal(*found)
    if guide is not None:
        assert lines_alike(native.line_sums(guide), plain.line_sums(guide))


@draws
@given(st.data(), st.lists(st.integers(0, 90), min_size=1, max_size=4), st.sampled_from([1, 2, 8, 64]))
def test_symbols_are_coded_alike(native, data, passes, lanes):
    count = sum(passes)
    symbols = data.draw(arrays(np.uint8, count, elements=st.integers(0, 17)))
    ids = data.draw(arrays(np.uint8, count, elements=st.integers(0, 4)))
    frequencies = st.one_of(st.just(1), st.integers(1, 20), st.integers(1, 1 << 24))
    cumulative = cumulative_of(data.draw(arrays(np.float64, (5, 18), elements=frequencies.map(float))))
    states, words = native.rans_encode(symbols, ids, passes, cumulative, lanes)
    again = plain.rans_encode(symbols, ids, passes, cumulative, lanes)
    assert np.array_equal(states, again[0])
    assert np.array_equal(words, again[1])
    assert np.array_equal(native.count(ids, symbols, 5), plain.count(ids, symbols, 5))
    for kernels in (native, plain):
        at, start, left = 0, 0, states.copy()
        for length in passes:
            found, at = kernels.rans_decode(ids[start : start + length], cumulative, left, words, at)
            assert np.array_equal(found, symbols[start : start + length])
            start += length
        assert at == words.size
        assert np.all(left == plain.LEAST)


@pytest.mark.parametrize("which", ["native", "plain"])
def test_words_that_are_missing_are_an_error(native, which):
    kernels = native if which == "native" else plain
    even = cumulative_of(np.ones((1, 18)))
    ids, states = np.zeros(40, np.uint8), np.full(2, plain.LEAST, np.uint32)
    with pytest.raises(ValueError, match="3 words"):
        kernels.rans_decode(ids, even, states, np.zeros(3, np.uint16), 0)


@pytest.mark.parametrize(
    ("elements", "lanes"), [(1, 1), (32767, 1), (32768, 2), (1 << 18, 16), (1 << 20, 64), (1 << 24, 64)]
)
def test_lanes_grow_with_the_plane(elements, lanes):
    assert lanes_of(elements) == lanes


@pytest.mark.parametrize("length", [1, 7, 16, 100, 129, 256])
@pytest.mark.parametrize("kind", ["any", "covariance", "alike", "zero"])
def test_rows_are_made_orthonormal_alike(native, length, kind):
    draw = np.random.default_rng(length)
    rows = np.rint(draw.standard_normal((2, length, length)) * draw.lognormal(0, 3, length) * 2.0**14)
    if kind == "covariance":
        rows = rows @ rows.swapaxes(1, 2)
    if kind == "alike":
        rows[:, 1:] = rows[:, :1]
    if kind == "zero":
        rows[1] = 0.0
    before = rows.copy()
    assert np.array_equal(native.orthonormal(rows), plain.orthonormal(rows))
    assert np.array_equal(rows, before)


@draws
@given(st.data(), shapes, st.sampled_from([1e-3, 0.25, 1.0, 7.5]), st.sampled_from([0.4, 0.5, 0.6]))
def test_values_are_quantized_and_restored_alike(native, data, shape, step, dead_zone):
    numbers = st.floats(-10, 10, width=32) | st.floats(-1e30, 1e30) | st.integers(-8, 8).map(lambda n: n / 4)
    values = data.draw(arrays(np.float64, shape, elements=numbers))
    found, expected = (kernels.quantize(values, step, dead_zone) for kernels in (native, plain))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    restored = data.draw(arrays(np.float64, 3, elements=st.integers(0, 900).map(lambda n: n / 256)))
    again = [kernels.dequantize(found[0], restored, step) for kernels in (native, plain)]
    assert again[0].tobytes() == again[1].tobytes()


def test_as_many_are_summed_as_there_are():
    """Over more elements than are worked on at a time."""
    native, values = Native(BUILT), np.random.default_rng(0).normal(0, 2, (61, 67))
    levels, sums, counts = native.quantize(values, 0.5, 0.5)
    assert counts.tolist() == [np.count_nonzero(np.abs(levels) == level) for level in (1, 2, 3)]
    exact = [np.abs(values[np.abs(levels) == level] / 0.5).sum() for level in (1, 2, 3)]
    assert sums.tolist() == pytest.approx([total * 2**20 for total in exact], rel=1e-5)


@draws
@given(st.data(), shapes.flatmap(planes))
def test_magnitudes_are_counted_alike(native, data, plane):
    assert lines_alike(native.near_sums(plane), plain.near_sums(plane))
    logs = [data.draw(arrays(np.float64, length, elements=st.floats(-20, 20))) for length in plane.shape]
    assert np.array_equal(native.class_counts(plane, *logs), plain.class_counts(plane, *logs))
