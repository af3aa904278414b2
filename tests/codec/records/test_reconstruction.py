"""What a dependent needs of its reference: one canonical stream, named by its hash."""

import hashlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ckzd.codec.records.reconstruction import ArrayFile, Reconstruction, ReconstructionWriter

dtypes = st.sampled_from(["<f4", "<u2", "<f2", "<f8", "|i1", "<i2"])
names = st.lists(st.text(max_size=4), max_size=3).map(tuple)
some_arrays = dtypes.flatmap(lambda name: arrays(np.dtype(name), array_shapes(min_dims=0, min_side=0, max_side=4)))


@given(st.dictionaries(st.tuples(names, st.text(max_size=3)), some_arrays, max_size=6))
def test_arrays_come_back(contents):
    """Under any names: a NUL or a backslash inside one does not confuse it with another."""
    file = io.BytesIO()
    writer = ReconstructionWriter(file)
    for (key, field), array in contents.items():
        writer.put(key, field, array)
    identity = writer.finish()
    assert identity == hashlib.sha256(file.getvalue()).hexdigest()
    sealed = Reconstruction(file)
    for reader in (sealed, writer):
        for (key, field), array in contents.items():
            got = reader.get(key, field)
            assert (got.dtype, got.shape) == (array.dtype, array.shape)
            assert got.tobytes() == array.tobytes()
        assert reader.get(("not there",), "weights") is None
    for (key, field), array in contents.items():
        assert sealed.form(key, field) == (array.dtype, array.shape)


def test_the_same_content_has_the_same_id_and_other_content_another():
    def identity(values, name="w"):
        writer = ReconstructionWriter(io.BytesIO())
        writer.put((name,), "weights", np.array(values, np.float32))
        writer.put_blob("layout", b"{}")
        return writer.finish()

    assert identity([1, 2]) == identity([1, 2])
    assert len({identity([1, 2]), identity([2, 1]), identity([[1, 2]]), identity([1, 2], "v")}) == 4


def test_blobs():
    file = io.BytesIO()
    writer = ReconstructionWriter(file)
    writer.put_blob("skeleton", b"abc")
    writer.put_blob("lstm", b"")
    writer.finish()
    sealed = Reconstruction(file)
    assert (sealed.blob("skeleton"), sealed.blob("lstm"), sealed.blob("layout")) == (b"abc", b"", b"")


def test_scratch_arrays_may_be_replaced():
    scratch = ArrayFile(io.BytesIO())
    scratch.put(("w",), "levels", np.zeros(3, np.int16))
    scratch.put(("w",), "levels", np.ones((2, 2), np.int16))
    assert scratch.get(("w",), "levels").tolist() == [[1, 1], [1, 1]]


def sealed_with(table: bytes, length: int | None = None) -> io.BytesIO:
    return io.BytesIO(b"CKZREC1\n" + bytes(16) + table + struct.pack("<Q", len(table) if length is None else length))


@pytest.mark.parametrize(
    "file",
    [
        io.BytesIO(),
        io.BytesIO(b"CKZREC1\n"),
        sealed_with(b"{}", 1 << 62),
        sealed_with(b"not json"),
        sealed_with(b"{", 1),
        sealed_with(b"[" * 100_000),
        sealed_with(b"[]"),
    ],
    ids=["empty", "no table", "a table of an exabyte", "no JSON", "half JSON", "deep JSON", "a list"],
)
def test_what_is_no_reconstruction_is_refused(file):
    with pytest.raises((ValueError, OSError, struct.error)):
        Reconstruction(file)


@pytest.mark.parametrize(
    "entry",
    ['["<f4",[1099511627776],8]', '["<f4",[4],1000]', '["|O",[1],8]', '["x",[1],8]', '["<f4",[-1],8]', "[]", "7"],
)
def test_an_entry_that_lies_is_refused(entry):
    sealed = Reconstruction(sealed_with(b'{"w\\u0000weights":' + entry.encode() + b"}"))
    with pytest.raises((ValueError, TypeError, IndexError)):
        sealed.get(("w",), "weights")
