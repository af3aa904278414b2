"""safetensors: the header is believed only as far as it describes exactly the bytes that are there."""

import json
import struct
import time
import tracemalloc

import numpy as np
import pytest
from damaged.inputs import lying_safetensors, make_safetensors, with_header
from formats.helpers import assert_lossless, rebuilt
from hypothesis import given, settings
from hypothesis import strategies as st

from ckzd.errors import BadCheckpoint
from ckzd.formats import read_checkpoint
from ckzd.formats.safetensors import DTYPES

LIES = lying_safetensors()
FLOATS = np.arange(128, dtype="<f4").tobytes()


def written(tmp_path, data, name="model-5.safetensors"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def test_tensors_are_holes_and_the_header_is_kept(tmp_path):
    data = make_safetensors(
        {
            "b": ("F32", (16, 8), FLOATS),
            "a": ("BF16", (4, 64), FLOATS),
            "scalar": ("F32", (), b"\0\0\x80?"),
            "empty": ("F32", (0, 7), b""),
            "ids": ("I64", (64,), FLOATS),
            "packed": ("F4", (1024,), FLOATS),
        },
        metadata={"format": "pt", "odd": '{"dtype": 1}'},
    )
    path = written(tmp_path, data)
    checkpoint = read_checkpoint(path)
    assert [(t.path, t.dtype, t.shape) for t in checkpoint.tensors] == [
        (("b",), "float32", (16, 8)),
        (("a",), "bfloat16", (4, 64)),
        (("ids",), "int64", (512,)),
        (("packed",), "float4_e2m1fn_x2", (512,)),
    ]
    assert checkpoint.step == 5
    assert_lossless(checkpoint, path)
    (changed,) = rebuilt(checkpoint, lambda _: bytes(512))
    length = int.from_bytes(data[:8], "little")
    assert changed[: 8 + length] == data[: 8 + length]


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_round_trips(tmp_path, dtype):
    elements = 8 * 512 // DTYPES[dtype][1]
    if DTYPES[dtype][1] == 6:
        elements, data = 512, bytes(384)
    else:
        data = FLOATS
    path = written(tmp_path, make_safetensors({"x": (dtype, (elements,), data)}))
    assert_lossless(read_checkpoint(path), path)


def test_tensors_in_any_header_order_are_found(tmp_path):
    one = {"dtype": "F32", "shape": [128], "data_offsets": [512, 1024]}
    two = {"dtype": "F32", "shape": [128], "data_offsets": [0, 512]}
    path = written(tmp_path, with_header(json.dumps({"one": one, "two": two}), FLOATS + bytes(512)))
    checkpoint = read_checkpoint(path)
    assert [t.path for t in checkpoint.tensors] == [("two",), ("one",)]
    assert_lossless(checkpoint, path)


def test_a_file_without_tensors_is_read(tmp_path):
    path = written(tmp_path, with_header("{}"))
    assert read_checkpoint(path).tensors == ()


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_file_that_lies_is_refused_quickly_and_in_little_memory(tmp_path, lie):
    path = written(tmp_path, LIES[lie])
    started = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(BadCheckpoint) as caught:
            read_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 1
    assert str(path) in str(caught.value)


def test_a_header_of_too_many_values_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("ckzd.formats.safetensors.MAX_HEADER_VALUES", 100)
    with pytest.raises(BadCheckpoint, match="more than 100 values"):
        read_checkpoint(written(tmp_path, with_header("[" + "1," * 200 + "1]")))


INTACT = make_safetensors({"b": ("F32", (16, 8), FLOATS), "a": ("I64", (), bytes(8))}, metadata={"k": "v"})


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, len(INTACT) - 1), st.integers(0, 255)), max_size=4))
def test_damaged_files_raise_nothing_but_bad_checkpoint(tmp_path_factory, changes):
    damaged = bytearray(INTACT)
    for position, value in changes:
        damaged[position] = value
    path = written(tmp_path_factory.getbasetemp(), bytes(damaged))
    try:
        assert_lossless(read_checkpoint(path), path)
    except BadCheckpoint:
        return


def test_every_truncation_is_refused(tmp_path):
    for length in range(len(INTACT)):
        with pytest.raises(BadCheckpoint):
            read_checkpoint(written(tmp_path, INTACT[:length]))


def keyed(values):
    """Objects that use the header's own words."""
    return st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "w"]), values)


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=4), lambda v: st.lists(v) | keyed(v)))
def test_any_json_in_the_header_raises_nothing_but_bad_checkpoint(tmp_path_factory, value):
    path = written(tmp_path_factory.getbasetemp(), with_header(json.dumps(value)))
    try:
        read_checkpoint(path)
    except BadCheckpoint:
        return


def test_the_names_of_odd_tensors_can_be_written(tmp_path):
    header = '{"\\ud800":{"dtype":"F32","shape":[128],"data_offsets":[0,512]}}'
    checkpoint = read_checkpoint(written(tmp_path, with_header(header, FLOATS)))
    assert checkpoint.tensors[0].path == ("\\ud800",)


def test_other_names_are_recognised_by_the_first_bytes(tmp_path):
    assert read_checkpoint(written(tmp_path, INTACT, "weights.bin")).tensors
    with pytest.raises(BadCheckpoint, match="no known format"):
        read_checkpoint(written(tmp_path, struct.pack("<Q", 4) + b"abcd", "weights.bin"))
    with pytest.raises(BadCheckpoint, match="empty"):
        read_checkpoint(written(tmp_path, b"", "weights.bin"))


def test_what_the_library_writes_is_read(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    values = {"w": np.arange(300, dtype=np.float32).reshape(3, 100), "h": np.ones(400, np.float16), "i": np.arange(99)}
    library.save_file(values, path, metadata={"format": "np"})
    checkpoint = read_checkpoint(path)
    assert {t.path[0]: t.shape for t in checkpoint.tensors} == {"w": (3, 100), "h": (400,), "i": (99 * 8,)}
    (changed,) = rebuilt(checkpoint, lambda n: bytes(checkpoint.tensors[n].nbytes))
    path.write_bytes(changed)
    assert all((value == 0).all() for value in library.load_file(path).values())
