"""Exact coding gives back every bit, with and without a reference, and refuses what it did not write."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckzd.codec.exact import decode_exact, encode_exact

ITEMSIZES = (1, 2, 4, 8)


@given(st.data(), st.sampled_from(ITEMSIZES), st.integers(0, 50), st.booleans())
def test_every_bit_comes_back(data, itemsize, elements, against):
    nbytes = itemsize * elements
    payload = data.draw(st.binary(min_size=nbytes, max_size=nbytes))
    reference = data.draw(st.binary(min_size=nbytes, max_size=nbytes)) if against else None
    coded = encode_exact(memoryview(payload), itemsize, reference)
    assert decode_exact(coded, nbytes, itemsize, reference) == payload


@pytest.mark.parametrize("name", ["<f2", "<f4", "<f8"])
def test_special_values_come_back_from_any_reference(name):
    """Infinities, NaNs with payloads, both zeros and subnormals, each against each."""
    width = np.dtype(name).itemsize
    bits = np.array([0, 1, 2, 3], f"<u{width}")
    special = np.concatenate([bits, ~bits, np.array([np.inf, -np.inf, np.nan, -0.0, 1.0], name).view(bits.dtype)])
    payload, reference = (grid.astype(bits.dtype).tobytes() for grid in np.meshgrid(special, special))
    assert decode_exact(encode_exact(payload, width, reference), len(payload), width, reference) == payload


def test_a_small_change_costs_little():
    """Ordered integers: across a power of two and across zero the difference stays small."""
    reference = np.linspace(-1e-38, 1e-38, 10_000).astype("<f4")
    payload = np.nextafter(reference, np.float32(1)).astype("<f4")
    assert len(encode_exact(payload.tobytes(), 4, reference.tobytes())) < 200
    drift = np.random.default_rng(0).standard_normal(10_000).astype("<f4")
    moved = (drift * (1 + 1e-6)).astype("<f4")
    alone, delta = encode_exact(moved.tobytes(), 4, None), encode_exact(moved.tobytes(), 4, drift.tobytes())
    assert len(delta) < 0.4 * len(alone)


@given(st.data(), st.sampled_from(ITEMSIZES))
def test_damage_is_refused_or_gives_as_many_bytes(data, itemsize):
    """The container's hashes find damage; here it must not crash, hang or allocate."""
    payload = np.arange(100, dtype="<u8").tobytes()[: 96 * itemsize]
    coded = bytearray(encode_exact(payload, itemsize, None))
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, len(coded) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = bytes(coded[: data.draw(st.integers(0, len(coded)))]) if data.draw(st.booleans()) else bytes(coded)
    try:
        assert len(decode_exact(damaged, len(payload), itemsize, None)) == len(payload)
    except (ValueError, IndexError):
        return


@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_a_size_other_than_the_tensors_is_refused(itemsize):
    coded = encode_exact(bytes(8 * itemsize), itemsize, None)
    for nbytes in (0, 7 * itemsize, 9 * itemsize, 1 << 40):
        with pytest.raises(ValueError, match=r"expected|claims|determining"):
            decode_exact(coded, nbytes, itemsize, None)
    with pytest.raises(ValueError, match="expected"):
        decode_exact(coded + b"x", 8 * itemsize, itemsize, None)
