"""Codebooks come back, and what cannot be one is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec.paper.codebook import Codebook, KmeansCode, dequantize_kmeans


@given(st.data(), st.integers(0, 15))
def test_a_codebook_comes_back(data, size):
    centres = np.sort(data.draw(arrays(np.float32, size, elements=st.floats(-1e3, 1e3, width=32))))
    book = Codebook(centres, data.draw(st.integers(0, size)))
    again, length = Codebook.from_bytes(book.to_bytes() + b"plane")
    assert length == len(book.to_bytes())
    assert again.below == book.below
    assert again.centres.tolist() == centres.tolist()
    levels = np.array([range(-book.below, size - book.below + 1)], np.int16)
    expected = [*centres[: book.below], 0.0, *centres[book.below :]]
    assert dequantize_kmeans(KmeansCode(levels, again)).tolist() == [expected]


@pytest.mark.parametrize("level", [-3, 2, 32767, -32768])
def test_a_level_without_a_centre_is_refused(level):
    code = KmeansCode(np.array([[level]], np.int16), Codebook(np.array([-2, -1, 1], np.float32), 2))
    with pytest.raises(ValueError, match="outside the codebook"):
        dequantize_kmeans(code)


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02\x00aaaa", b"\x01\x02aaaa", b"\x01\x00\x00\x00\x80\x7f"])
def test_a_codebook_that_cannot_be_is_refused(data):
    import struct

    with pytest.raises((ValueError, struct.error)):
        Codebook.from_bytes(data)
