"""Levels of many bits: the low ones are packed, the rest is a plane, and all of them come back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from plain_decoder import low_bits

from ckzd.codec.arrays import MAX_LEVEL
from ckzd.codec.transform import wide

levels_of = arrays(
    np.int16,
    array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
    elements=st.one_of(st.integers(-MAX_LEVEL - 1, MAX_LEVEL), st.integers(-20, 20)),
)


@given(levels_of, st.binary(max_size=5))
def test_levels_come_back(levels, behind):
    """Whatever follows the packed bits in their stream."""
    packed, high = wide.split(levels)
    assert wide.packed_bytes(packed + behind, levels.size) == len(packed)
    again = wide.joined(packed, high)
    assert again.dtype == np.int16
    assert np.array_equal(again, levels)


@given(levels_of)
def test_the_page_reads_them_likewise(levels):
    packed, high = wide.split(levels)
    count, low, start = low_bits(packed, levels.size)
    assert start == len(packed)
    assert (high.astype(int).ravel() * 2**count + np.array(low, int) == levels.ravel()).all()


@pytest.mark.parametrize("rms", [0.3, 1.0, 3.0, 40.0, 900.0, 8000.0])
def test_what_is_left_is_a_plane_like_others(rms):
    """Few levels escape, and the low bits are as good as random: nothing is lost by packing them."""
    levels = np.clip(np.rint(np.random.default_rng(0).normal(0, rms, (200, 100))), -MAX_LEVEL, MAX_LEVEL)
    packed, high = wide.split(levels.astype(np.int16))
    assert np.mean(np.abs(high) > 8) < 0.01
    if packed[0]:
        bits = np.unpackbits(np.frombuffer(packed[1:], np.uint8)).reshape(-1, packed[0])
        assert np.abs(bits.mean(0) - 0.5).max() < 0.02


def test_small_levels_have_no_low_bits():
    packed, high = wide.split(np.array([[0, 1], [-1, 2]], np.int16))
    assert packed == b"\0"
    assert high.tolist() == [[0, 1], [-1, 2]]


@pytest.mark.parametrize("data", [b"\x0d" + bytes(100), b"\xff" + bytes(1000), b"\x01", b"\x0c" + bytes(5)])
def test_low_bits_that_cannot_be_are_refused(data):
    with pytest.raises(ValueError, match="low bits of 10 levels"):
        wide.packed_bytes(data, 10)


def test_an_empty_stream_is_malformed():
    with pytest.raises(IndexError):
        wide.packed_bytes(b"", 10)
