"""Exact coding gives back every bit, with and without a reference, and refuses what it did not write."""

import numpy as np
import plain_decoder
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckzd.codec.lossless import exact
from ckzd.codec.lossless.exact import decode_exact, encode_exact

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


@pytest.fixture
def _always_aligned(monkeypatch):
    """The second layout for tensors of any size, and whether it pays or not."""
    monkeypatch.setattr(exact, "_MIN_ALIGNED", 0)
    monkeypatch.setattr(exact, "_MIN_PREDICTED", 2)
    monkeypatch.setattr(exact, "_encode_planes", lambda bits, _: bytes(8 * bits.size + 1000))


@pytest.mark.usefixtures("_always_aligned")
@given(st.data(), st.sampled_from(ITEMSIZES[1:]), st.integers(0, 6), st.integers(0, 9), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_bit_comes_back_aligned(data, itemsize, rows, columns, against):
    nbytes = itemsize * rows * columns
    payload = data.draw(st.binary(min_size=nbytes, max_size=nbytes) | st.just(bytes(nbytes)))
    reference = data.draw(st.binary(min_size=nbytes, max_size=nbytes)) if against else None
    coded = encode_exact(memoryview(payload), itemsize, reference, columns)
    assert coded.startswith(exact._ALIGNED)
    assert decode_exact(coded, nbytes, itemsize, reference) == payload


@pytest.mark.usefixtures("_always_aligned")
@pytest.mark.parametrize("name", ["<f2", "<f4", "<f8"])
def test_special_values_come_back_aligned(name):
    test_special_values_come_back_from_any_reference(name)


@pytest.mark.parametrize("name", ["<f2", "<f4", "<f8"])
def test_matrices_come_back_whatever_is_in_them(name):
    """Zeros, constants, NaNs, a scale a row, and all of them together."""
    draw = np.random.default_rng(0)
    scaled = np.exp2(draw.normal(0, 2, (60, 1)) + draw.normal(0, 1, (60, 80)))
    holes = np.where(draw.random((60, 80)) < 0.3, 0, scaled)
    matrices = [np.zeros((60, 80)), np.full((60, 80), -3.5), np.full((60, 80), np.nan), scaled, holes]
    for matrix in (*matrices, np.concatenate(matrices)):
        payload = matrix.astype(name).tobytes()
        width, reference = np.dtype(name).itemsize, np.resize(scaled, matrix.shape).astype(name).tobytes()
        for before in (None, reference):
            coded = encode_exact(payload, width, before, 80)
            assert decode_exact(coded, len(payload), width, before) == payload
            assert len(coded) <= len(exact._encode_planes(exact._bits(payload, width), exact._before(before, width)))


def test_scales_of_rows_and_exponents_of_the_reference_pay():
    draw = np.random.default_rng(0)
    scales = np.exp2(draw.normal(0, 2, (256, 1)) + draw.normal(0, 2, (1, 512)))
    second = (scales * np.exp2(draw.normal(0, 0.2, (256, 512)))).astype("<f4").tobytes()
    assert len(encode_exact(second, 4, None, 512)) < 0.95 * len(encode_exact(second, 4, None))
    before = draw.normal(0, 1, 1 << 17).astype("<f4")
    after = (before + draw.normal(0, 0.01, before.size)).astype("<f4").tobytes()
    planes = exact._encode_planes(exact._bits(after, 4), exact._bits(before.tobytes(), 4))
    assert len(encode_exact(after, 4, before.tobytes())) < 0.96 * len(planes)


@pytest.mark.usefixtures("_always_aligned")
@pytest.mark.parametrize("name", ["<f2", "<f4", "<f8"])
def test_a_decoder_written_from_the_format_page_reads_aligned_streams(name):
    draw = np.random.default_rng(0)
    matrix = np.exp2(draw.normal(0, 2, (60, 1)) + draw.normal(0, 2, 80) + draw.normal(0, 0.1, (60, 80)))
    matrix[20:40] += matrix[:20] @ draw.normal(0, 9, (80, 80))
    reference, payload = ((matrix * scale).astype(name) for scale in (1, draw.normal(1, 0.01, matrix.shape)))
    for before in (None, reference.tobytes()):
        coded = encode_exact(payload.tobytes(), payload.itemsize, before, 80)
        assert coded.startswith(exact._ALIGNED)
        assert plain_decoder.exact(coded, payload.size, payload.itemsize, before) == payload.tobytes()


def test_what_repeats_itself_stays_in_planes():
    repeated = np.tile(np.random.default_rng(0).normal(0, 1, 1 << 10).astype("<f4"), 1 << 7).tobytes()
    assert len(encode_exact(repeated, 4, None, 1 << 10)) < 10_000


def test_equal_tensors_give_equal_bytes():
    payload = np.random.default_rng(0).normal(0, 1, (300, 400)).astype("<f4").tobytes()
    assert encode_exact(payload, 4, None, 400) == encode_exact(payload, 4, None, 400)


def test_a_prediction_beside_a_reference_is_refused():
    payload = np.exp2(np.random.default_rng(0).normal(0, 1, (300, 400))).astype("<f4").tobytes()
    coded = encode_exact(payload, 4, None, 400)
    assert coded.startswith(exact._ALIGNED)
    with pytest.raises(ValueError, match="expected a difference to the reference"):
        decode_exact(coded, len(payload), 4, payload)


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
    payload = np.arange(100, dtype="<u8").tobytes()[: 96 * itemsize] * data.draw(st.sampled_from((1, 20)))
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
