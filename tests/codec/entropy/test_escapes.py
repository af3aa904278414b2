"""Levels beyond the alphabet come back; no bytes make more of them than there may be."""

import numpy as np
import plain_decoder
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckzd.codec import zstd
from ckzd.codec.entropy.escapes import LEAST, pack, unpack

beyond = st.integers(-(1 << 15), (1 << 15) - 1).filter(lambda level: abs(level) >= LEAST)


@given(st.lists(beyond | st.sampled_from([9, -9, 10, -10, 32767, -32768]), min_size=1, max_size=40))
def test_levels_come_back(levels):
    plane = np.array(levels, np.int16)
    found = unpack(pack(plane), len(levels))
    assert found.dtype == np.int16
    assert found.tolist() == levels


def test_they_take_fewer_bytes_than_a_general_compressor_needs():
    draw = np.random.default_rng(0)
    levels = np.rint(draw.laplace(0, 20, 4000)).astype(np.int16)
    levels = levels[np.abs(levels) >= LEAST]
    assert len(pack(levels)) < 0.75 * len(zstd.compress(levels.astype("<i2").tobytes()))


@given(st.binary(max_size=60), st.integers(0, 30))
def test_any_bytes_are_refused_or_few_levels(data, limit):
    try:
        levels = unpack(data, limit)
    except (ValueError, IndexError):
        return
    assert levels.size <= limit
    assert (np.abs(levels.astype(int)) >= LEAST).all()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes([15, 1, 128, 0]),  # an order that does not exist
        bytes([0, 3, 0, 0, 1, 0]),  # more bits than a level has
        bytes([0, 1, 128]),  # a sign that is not there
        bytes([0, 1, 128, 0, 0]),  # and one too many
        bytes([14, 1, 32, 255, 255]),  # 16 bits, beyond 32767
    ],
)
def test_what_pack_does_not_write_is_refused(data):
    with pytest.raises((ValueError, IndexError)):
        unpack(data, 10)


@given(st.lists(beyond, min_size=1, max_size=20))
def test_the_plain_decoder_reads_them(levels):
    assert list(plain_decoder.packed_escapes(pack(np.array(levels, np.int16)))) == levels
