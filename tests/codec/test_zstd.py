"""A block is decompressed only if the size that it claims can be right."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckzd.codec import zstd


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_blocks_come_back_with_and_without_a_reference(data, reference):
    assert zstd.decompress(zstd.compress(data), len(data)) == data
    assert zstd.decompress_exactly(zstd.compress(data, 3), len(data)) == data
    assert zstd.decompress(zstd.compress_against(data, reference), len(data), reference) == data


@given(st.lists(st.binary(max_size=100), max_size=8), st.integers(1, 100))
def test_parts_are_one_frame(parts, alone):
    block = zstd.compress_parts(parts, 1, alone=alone)
    assert zstd.decompress_exactly(block, len(b"".join(parts))) == b"".join(parts)


def test_a_part_alone_has_tables_of_its_own():
    """Two alphabets of four letters: together they are one of eight."""
    parts = [os.urandom(1 << 14).translate(bytes(64 * half + k % 4 for k in range(256))) for half in (0, 1)]
    together, apart = (len(zstd.compress_parts(parts, 1, alone=alone)) for alone in (1 << 20, 1))
    assert apart < 0.97 * together


def test_what_the_reference_holds_costs_next_to_nothing():
    reference = os.urandom(3 << 20)
    assert len(zstd.compress_against(reference[:-5] + b"12345", reference)) < 500


def test_a_frame_that_claims_too_much_is_refused_before_it_is_unpacked():
    bomb = zstd.compress(bytes(1 << 24))
    assert len(bomb) < 2000
    with pytest.raises(ValueError, match="claims 16777216 bytes, at most 1000 are possible"):
        zstd.decompress(bomb, 1000)
    lie = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 45) + bomb[9:]  # a header with another content size
    with pytest.raises(ValueError, match="claims"):
        zstd.decompress(lie, 1 << 40)


def test_a_frame_without_a_size_is_refused():
    import zstandard

    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")
    with pytest.raises(ValueError, match="claims -1"):
        zstd.decompress(unsized, 100)


@given(st.binary(max_size=60))
def test_noise_is_malformed(noise):
    with pytest.raises(ValueError, match=r".+"):
        zstd.decompress(noise, 1 << 20)


@given(st.data())
def test_a_damaged_frame_is_malformed_or_short(data):
    block = bytearray(zstd.compress(bytes(range(100)) * 3))
    block[data.draw(st.integers(0, len(block) - 1))] ^= data.draw(st.integers(1, 255))
    cut = bytes(block[: data.draw(st.integers(0, len(block)))])
    for damaged in (bytes(block), cut):
        try:
            assert len(zstd.decompress(damaged, 300)) <= 300
        except ValueError:
            continue
