"""Differences come back from any cut, chunk and class; what no encoder writes is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckzd.codec.lossless import aligned
from ckzd.codec.lossless.aligned import decode_aligned, encode_aligned
from ckzd.codec.parsing import read_leb

WIDTHS = (2, 4, 8)


def noise(count, width, bits, seed=0):
    """Differences of about so many bits, of either sign."""
    draw = np.random.default_rng(seed)
    return np.rint(draw.standard_normal(count) * 2.0**bits).astype(f"<i{width}").view(f"<u{width}")


@given(st.data(), st.sampled_from(WIDTHS), st.integers(0, 80), st.booleans())
def test_every_difference_comes_back(data, width, count, with_classes):
    drawn = data.draw(st.binary(min_size=width * count, max_size=width * count))
    differences = np.frombuffer(drawn, f"<u{width}")
    if data.draw(st.booleans()):
        differences = differences >> data.draw(st.integers(0, 8 * width - 1))
    numbers = st.lists(st.sampled_from((0, 1, 127, 255)), min_size=count, max_size=count)
    classes = np.array(data.draw(numbers), np.uint8) if with_classes else None
    coded = b"head" + encode_aligned(differences, classes).data
    assert np.array_equal(decode_aligned(coded, 4, count, differences.dtype, classes), differences)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("over", [-1, 0, 1, 5])
def test_chunks(monkeypatch, width, over):
    monkeypatch.setattr(aligned, "_CHUNK", 256)
    differences = noise(512 + over, width, 6 * width)
    classes = (np.arange(differences.size) % 7).astype(np.uint8)
    for given_classes in (classes, None):
        coded = encode_aligned(differences, given_classes).data
        again = decode_aligned(coded, 0, differences.size, differences.dtype, given_classes)
        assert np.array_equal(again, differences)


@pytest.mark.parametrize("bits", range(3, 28, 3))
def test_noise_costs_what_it_must(bits):
    """Normally distributed: log2(deviation) + 2.05 bits each."""
    differences = noise(1 << 17, 4, bits)
    coded = encode_aligned(differences, None)
    assert 8 * len(coded.data) < differences.size * (bits + 2.05 + 0.12)


def test_each_class_is_cut_at_its_own_place():
    wide, narrow = noise(1 << 16, 4, 20), noise(1 << 16, 4, 6, seed=1)
    mixed = np.stack([wide, narrow], 1).ravel()
    classes = np.tile(np.array([9, 3], np.uint8), wide.size)
    by_class, alike = (len(encode_aligned(mixed, given).data) for given in (classes, None))
    assert by_class * 8 < wide.size * (20 + 6 + 2 * (2.05 + 0.12)) < alike * 8


def test_only_noise_with_a_scale_is_regular():
    assert encode_aligned(noise(1 << 16, 4, 20), None).is_regular
    assert not encode_aligned(noise(1 << 16, 4, 20) & np.uint32(0xFFFF0000), None).is_regular  # zeros below
    sparse = np.where(np.arange(1 << 16) % 20, np.uint32(0), noise(1 << 16, 4, 28))
    assert not encode_aligned(sparse, None).is_regular  # much above


@given(st.data(), st.sampled_from(WIDTHS))
def test_damage_is_refused_or_gives_as_many_differences(data, width):
    classes = (np.arange(300) % 3).astype(np.uint8)
    coded = bytearray(encode_aligned(noise(300, width, 4 * width), classes).data)
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, len(coded) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = bytes(coded[: data.draw(st.integers(0, len(coded)))]) if data.draw(st.booleans()) else bytes(coded)
    try:
        assert decode_aligned(damaged, 0, 300, np.dtype(f"<u{width}"), classes).size == 300
    except (ValueError, IndexError):
        return


def test_what_no_encoder_writes_is_refused():
    differences = noise(300, 4, 20)
    coded = encode_aligned(differences, None).data
    cut = 0
    for _ in range(3):
        _, cut = read_leb(coded, cut)
    beyond = coded[:cut] + b"\x19" + coded[cut + 1 :]  # bit 25: a symbol has eight, an element 32
    refused = [(coded + b"x", 300), (coded, 301), (coded, 1 << 38), (coded[:-1], 300), (b"", 300), (beyond, 300)]
    for data, count in refused:
        with pytest.raises((ValueError, IndexError)):
            decode_aligned(data, 0, count, differences.dtype, None)
