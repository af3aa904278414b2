"""A plane comes back from its bytes, whatever is in it and whichever coder was cheapest."""

import numpy as np
import pytest
from codec.counted_tables import counted_tables
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from plain_range_decoder import PlainRangeDecoder

from ckzd.codec.entropy import planes
from ckzd.codec.entropy.context import EXACT, FIRST, SECOND, WEIGHTS, SideInformation
from ckzd.codec.entropy.models import Models
from ckzd.codec.entropy.planes import Coder, PlaneToCode, decode_plane, encode_plane, histograms_of
from ckzd.codec.kernels import plain
from ckzd.codec.kernels.plain import ALPHABET
from ckzd.codec.paper.lstm import SHAPES, LstmModel, LstmWeights
from ckzd.codec.paper.refined import RefinedModel
from ckzd.codec.parsing import read_leb, write_leb

shapes = st.tuples(st.integers(0, 14), st.integers(0, 14))
levels = st.one_of(st.just(0), st.integers(-2, 2), st.integers(-9, 9), st.integers(-32768, 32767))


def random_lstm(seed):
    draw = np.random.default_rng(seed)
    return LstmWeights(**{name: draw.integers(-30, 31, shape).astype(np.int8) for name, shape in SHAPES.items()})


def sparse(shape, seed=0, scale=0.6):
    """Levels that fall off as those of a residual do."""
    draw = np.random.default_rng(seed)
    return np.rint(draw.laplace(scale=scale, size=shape) * draw.lognormal(0, 0.7, (shape[0], 1))).astype(np.int16)


def fitted(plane, kind=WEIGHTS, guide=None, seed=1):
    tables = counted_tables(histograms_of(PlaneToCode(0, kind, plane, guide or SideInformation())))
    return Models(tables, RefinedModel(tables, LstmModel(random_lstm(seed))))


TRAINED = fitted(sparse((60, 60)))


@settings(deadline=None, max_examples=150)
@given(st.data(), shapes, st.sampled_from([WEIGHTS, FIRST, SECOND, EXACT]), st.sampled_from([Models(), TRAINED]))
def test_levels_come_back(data, shape, kind, models):
    plane = data.draw(arrays(np.int16, shape, elements=levels))
    guides = arrays(np.int8, shape, elements=st.integers(-128, 127))
    guide = SideInformation(*(data.draw(st.none() | guides) for _ in range(3)))
    coded, coder = encode_plane(PlaneToCode(0, kind, plane, guide), models)
    decoded = decode_plane(coded, shape, kind, guide, models)
    assert decoded.dtype == np.int16
    assert np.array_equal(decoded, plane)
    assert len(coded) <= 1 + 2 * plane.size
    assert coder is Coder(coded[0] & 15)


CASES = {
    "nothing": np.zeros((30, 20)),
    "constant": np.full((30, 20), 3),
    "constant beyond the alphabet": np.full((30, 20), -500),
    "more beyond the alphabet than zstd takes at its highest level": np.full((400, 400), -500),
    "one element": np.array([[1]]),
    "one large element": np.array([[-32767]]),
    "vector": sparse((300, 1)),
    "row": sparse((1, 300)),
    "outliers": np.where(np.arange(600).reshape(30, 20) % 37 == 0, 30000, sparse((30, 20))),
    "noise": np.random.default_rng(3).integers(-32768, 32768, (30, 20)),
    "mostly beyond": np.random.default_rng(4).integers(-300, 300, (30, 20)),
    "no rows": np.zeros((0, 5)),
    "no columns": np.zeros((5, 0)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("models", [Models(), TRAINED], ids=["untrained", "trained"])
def test_odd_planes_come_back(name, models):
    plane = CASES[name].astype(np.int16)
    coded, coder = encode_plane(PlaneToCode(0, WEIGHTS, plane, SideInformation()), models)
    assert np.array_equal(decode_plane(coded, plane.shape, WEIGHTS, SideInformation(), models), plane)
    assert coder is (Coder.EMPTY if not plane.any() else Coder.RAW if name == "noise" else coder)


@pytest.mark.parametrize("coder", [Coder.ORDER0, Coder.TABLES, Coder.LSTM])
@pytest.mark.parametrize("biased", [False, True])
def test_every_coder_brings_every_plane_back(monkeypatch, coder, biased):
    """Also where another one would have been cheaper; the words are those of the plain decoder."""
    plane = sparse((25, 31), seed=2, scale=2.0)
    guide = SideInformation(np.roll(plane, 1, 0).clip(-127, 127).astype(np.int8))
    codes = np.array([128, *range(100, 117)], np.uint8) if biased or coder is Coder.ORDER0 else np.empty(0, np.uint8)
    monkeypatch.setattr(planes, "_cheapest", lambda _: planes._Choice(coder, codes, 0.0))
    coded, used = encode_plane(PlaneToCode(0, WEIGHTS, plane, guide), TRAINED)
    assert used is coder
    assert np.array_equal(decode_plane(coded, plane.shape, WEIGHTS, guide, TRAINED), plane)
    monkeypatch.setattr(planes, "SymbolDecoder", PlainRangeDecoder)
    assert np.array_equal(decode_plane(coded, plane.shape, WEIGHTS, guide, TRAINED), plane)


def test_the_cheapest_coder_is_taken():
    """Never worse than a simpler one: dropping a model never makes a plane smaller."""
    for seed in range(3):
        plane = sparse((80, 50), seed)
        models = fitted(plane, seed=seed)
        sizes = [
            len(encode_plane(PlaneToCode(0, WEIGHTS, plane, SideInformation()), m)[0])
            for m in (models, Models(models.tables), Models())
        ]
        assert sizes[0] <= sizes[1] + 8
        assert sizes[1] <= sizes[2] + 8


def test_contexts_pay():
    """Against a guide that foretells where levels are, a plane costs less than its order-0 entropy."""
    draw = np.random.default_rng(0)
    guide = (draw.random((200, 200)) < 0.3).astype(np.int8)
    plane = np.where(guide, draw.integers(-1, 2, (200, 200)), 0).astype(np.int16)
    seen = SideInformation(guide)
    models = Models(counted_tables(histograms_of(PlaneToCode(0, WEIGHTS, plane, seen))))
    coded, coder = encode_plane(PlaneToCode(0, WEIGHTS, plane, seen), models)
    shares = np.unique(plane, return_counts=True)[1] / plane.size
    assert coder is Coder.TABLES
    assert 8 * len(coded) < 0.8 * plane.size * -(shares * np.log2(shares)).sum()


@settings(deadline=None, max_examples=150)
@given(st.data())
@example(None)
def test_a_damaged_plane_is_malformed_or_another_plane(data):
    """Never a crash, a hang or a large allocation: the caller knows what ValueError and IndexError mean."""
    plane = CASES["outliers"][:12, :9].astype(np.int16)
    coded = bytearray(encode_plane(PlaneToCode(0, WEIGHTS, plane, SideInformation()), TRAINED)[0])
    if data is not None:
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, min(40, len(coded) - 1)) | st.integers(0, len(coded) - 1))
            coded[place] = data.draw(st.integers(0, 255))
        coded = coded[: data.draw(st.integers(0, len(coded)))] if data.draw(st.booleans()) else coded
    for models in (Models(), TRAINED):
        try:
            assert decode_plane(bytes(coded), plane.shape, WEIGHTS, SideInformation(), models).shape == plane.shape
        except (ValueError, IndexError):
            continue


MALFORMED = {
    "no bytes": b"",
    "an unknown coder": bytes([5, 1, 0]),
    "empty with a tail": bytes([0, 0]),
    "empty with codes": bytes([128, 1, 0, *range(18)]),
    "raw, too short": bytes([1, 0, 0]),
    "order-0 without codes": bytes([2, 1, 0]),
    "an LSTM that is not there": bytes([4, 1, 0]),
    "a total without an end": bytes([3, *[255] * 9, 0]),
    "escapes beyond the end": bytes([3, 1, 255, 127]),
    "half a word": bytes([3, 1, 0, 1, 2]),
    "a total that is not there": bytes([3, 9, 0]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_no_encoder_writes_is_refused(name):
    with pytest.raises((ValueError, IndexError)):
        decode_plane(MALFORMED[name], (3, 4), WEIGHTS, SideInformation(), Models())


def test_a_plane_of_an_earlier_format_sees_no_second_moment():
    """Its first byte says so, whatever the caller knows by now."""
    plane = sparse((40, 30))
    second = SideInformation(second=np.full(plane.shape, 5, np.int8))
    coded, _ = encode_plane(PlaneToCode(0, FIRST, plane, SideInformation()), TRAINED)
    assert np.array_equal(decode_plane(coded, plane.shape, FIRST, second, TRAINED), plane)
    seeing, _ = encode_plane(PlaneToCode(0, FIRST, plane, second), TRAINED)
    assert seeing[0] & 32
    with pytest.raises(ValueError, match="second moment"):
        decode_plane(seeing, plane.shape, FIRST, SideInformation(), TRAINED)


def test_what_is_exact_knows_no_lstm():
    """Its kind has no tokens: neither is it coded so, nor believed."""
    plane = sparse((40, 30))
    _, coder = encode_plane(PlaneToCode(0, EXACT, plane, SideInformation()), TRAINED)
    assert coder in (Coder.ORDER0, Coder.TABLES)
    with pytest.raises(ValueError, match="no lanes"):
        decode_plane(bytes([4, 1, 0]), (3, 4), EXACT, SideInformation(), TRAINED)


def test_symbols_and_levels():
    plane = np.array([[0, 1, -1, 2, -2, 8, -8, 9, -9, 32767, -32768]], np.int16)
    assert plain.to_symbols(plane).tolist() == [[0, 1, 2, 3, 4, 15, 16, 17, 17, 17, 17]]
    assert ALPHABET == 18


@given(st.integers(0, 1 << 62), st.integers(0, 255))
@settings(deadline=None, max_examples=60)
def test_a_total_that_lies_is_an_error_and_reads_nothing_else(total, seed):
    """Energies of rows follow from the total: as large or as negative as it makes them, they index a table."""
    plane = sparse((40, 30), seed)
    coded, coder = encode_plane(PlaneToCode(0, WEIGHTS, plane, SideInformation()), TRAINED)
    honest, start = read_leb(coded, 1)
    forged = coded[:1] + write_leb(total) + coded[start:]
    assume(total != honest and coder in (Coder.ORDER0, Coder.TABLES))
    with pytest.raises(ValueError, match=r"."):
        decode_plane(forged, plane.shape, WEIGHTS, SideInformation(), TRAINED)


def test_side_information_of_another_shape_is_an_error():
    plane = sparse((40, 30))
    seen = SideInformation(np.zeros((40, 30), np.int8))
    coded, coder = encode_plane(PlaneToCode(0, WEIGHTS, plane, seen), Models())
    assert coder is Coder.ORDER0
    with pytest.raises(ValueError, match="side information of"):
        decode_plane(coded, plane.shape, WEIGHTS, SideInformation(np.zeros((30, 40), np.int8)), Models())
