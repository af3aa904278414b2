"""Words are what any range decoder of the format reads; damage is an error or another symbol, never a crash."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_range_decoder import PlainRangeDecoder, cumulative

from ckzd.codec.entropy import range_coder
from ckzd.codec.entropy.range_coder import SymbolDecoder, SymbolEncoder

frequency = st.one_of(st.integers(1, 3), st.integers(1, 1 << 16), st.sampled_from([1, 2**15, 2**31, 2**40, 2**52])).map(
    float
)


@st.composite
def streams(draw):
    alphabet = draw(st.integers(2, 20))
    contexts = draw(st.integers(1, 5))
    rows = np.array([draw(st.lists(frequency, min_size=alphabet, max_size=alphabet)) for _ in range(contexts)])
    count = draw(st.integers(0, 80))
    ids = np.array(draw(st.lists(st.integers(0, contexts - 1), min_size=count, max_size=count)), np.int16)
    symbols = np.array(draw(st.lists(st.integers(0, alphabet - 1), min_size=count, max_size=count)), np.int32)
    return rows, ids, symbols


def encoded(rows, ids, symbols):
    encoder = SymbolEncoder()
    encoder.encode(symbols, ids, rows)
    return encoder.finish()


@settings(max_examples=300, deadline=None)
@given(streams())
def test_both_decoders_read_what_was_written(stream):
    rows, ids, symbols = stream
    words = encoded(rows, ids, symbols)
    assert SymbolDecoder(words).decode(ids, rows).tolist() == symbols.tolist()
    assert PlainRangeDecoder(words).decode(ids, rows).tolist() == symbols.tolist()


def test_both_decoders_read_a_long_stream_of_likely_symbols():
    """Ranges shrink slowly and carries run through many words."""
    draw = np.random.default_rng(1)
    rows = np.floor(2.0 ** draw.uniform(0, 16, (40, 18))) + 1
    ids = draw.integers(0, 40, 20_000).astype(np.int16)
    likely = rows / rows.sum(1, keepdims=True)
    symbols = (likely[ids].cumsum(1) < draw.random((ids.size, 1))).sum(1).clip(0, 17).astype(np.int32)
    words = encoded(rows, ids, symbols)
    ideal = -np.log2(likely[ids, symbols]).sum() / 8
    assert len(words) < ideal * 1.001 + 8
    assert np.array_equal(SymbolDecoder(words).decode(ids, rows), symbols)
    assert np.array_equal(PlainRangeDecoder(words).decode(ids, rows), symbols)


@given(st.binary(max_size=40).map(lambda data: data[: len(data) // 4 * 4]), st.integers(0, 60))
def test_both_decoders_make_the_same_of_words_that_nobody_wrote(words, count):
    rows, ids = np.array([[1.0, 5.0, 60000.0, 1.0], [3.0, 3.0, 3.0, 2.0**40]]), (np.arange(count) % 2).astype(np.int16)
    try:
        expected = PlainRangeDecoder(words).decode(ids, rows).tolist()
    except ValueError:
        with pytest.raises(ValueError, match="no encoder"):
            SymbolDecoder(words).decode(ids, rows)
    else:
        assert SymbolDecoder(words).decode(ids, rows).tolist() == expected


def test_half_a_word_is_malformed():
    with pytest.raises(ValueError, match="multiple of element size"):
        SymbolDecoder(b"abcde")


def test_calls_and_chunks_leave_no_trace(monkeypatch):
    """One call or many, long chunks or short: the same words."""
    draw = np.random.default_rng(2)
    rows = draw.integers(1, 1000, (7, 5)).astype(np.float64)
    ids, symbols = draw.integers(0, 7, 1000).astype(np.int16), draw.integers(0, 5, 1000).astype(np.int32)
    words = encoded(rows, ids, symbols)
    for chunk in (1, 17, 1000):
        monkeypatch.setattr(range_coder, "_CHUNK", chunk)
        encoder = SymbolEncoder()
        encoder.encode(symbols[:300], ids[:300], rows)
        encoder.encode(symbols[300:], ids[300:], rows)
        assert encoder.finish() == words
        decoder = SymbolDecoder(words)
        assert [*decoder.decode(ids[:7], rows), *decoder.decode(ids[7:], rows)] == symbols.tolist()


@given(st.lists(frequency, min_size=2, max_size=18))
def test_every_symbol_has_a_share_of_the_range(frequencies):
    left = cumulative(frequencies)
    assert left[0] == 0
    assert all(low < high for low, high in pairwise(left))
