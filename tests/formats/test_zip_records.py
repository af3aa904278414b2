"""A zip that lies about anything is refused at once; honest zips of other writers are read."""

import io
import struct
import time
import tracemalloc
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from damaged.inputs import FLOATS, TORCH_RECORDS, lying_zips, make_zip, torch_file
from formats.helpers import assert_lossless, rebuilt, zip_is_intact
from hypothesis import given, settings
from hypothesis import strategies as st

from ckzd.errors import BadCheckpoint
from ckzd.formats import read_checkpoint

LIES = lying_zips()


def test_the_honest_file_is_read(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(torch_file())
    checkpoint = read_checkpoint(path)
    assert [(t.path, t.shape) for t in checkpoint.tensors] == [(("w",), (100,))]
    assert_lossless(checkpoint, path)


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_zip_that_lies_is_refused_quickly_and_in_little_memory(tmp_path, lie):
    path = tmp_path / "x.pt"
    path.write_bytes(LIES[lie])
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


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, len(torch_file()) - 1), st.integers(0, 255)), max_size=4))
def test_damaged_zips_raise_nothing_but_bad_checkpoint(tmp_path_factory, changes):
    damaged = bytearray(torch_file())
    for position, value in changes:
        damaged[position] = value
    read_or_refuse(tmp_path_factory.getbasetemp() / "damaged.pt", bytes(damaged))


def read_or_refuse(path: Path, data: bytes) -> None:
    """Only BadCheckpoint may come of it; what is read all the same is rebuilt exactly, up to its checksums."""
    path.write_bytes(data)
    try:
        checkpoint = read_checkpoint(path)
    except BadCheckpoint:
        return
    assert checkpoint.nbytes == len(data)
    checkpoint.source.close()


def test_every_truncation_is_refused(tmp_path):
    path, data = tmp_path / "x.pt", torch_file()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(BadCheckpoint):
            read_checkpoint(path)


def test_a_directory_of_many_empty_promises_costs_nothing(tmp_path):
    """An end that announces 65535 entries, or a ZIP64 end that announces 2^60, before a file of a few bytes."""
    path = tmp_path / "x.pt"
    data = bytearray(torch_file())
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 0, 0, 0, 0, 1 << 60, 1 << 60, 1 << 60, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(data) - 22, 1)
    path.write_bytes(data[:-22] + end64 + locator + data[-22:])
    with pytest.raises(BadCheckpoint, match="disagree"):
        read_checkpoint(path)
    wide = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:-22] + end64 + locator + wide)
    with pytest.raises(BadCheckpoint, match="central directory"):
        read_checkpoint(path)


def python_zip(*, zip64: bool) -> bytes:
    """As Python's zipfile writes it: sizes in the local header, no descriptor; or with ZIP64 local headers."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as out:
        for record in TORCH_RECORDS:
            with out.open(zipfile.ZipInfo(record.name), "w", force_zip64=zip64) as entry:
                entry.write(record.data)
    return stream.getvalue()


@pytest.mark.parametrize("zip64", [False, True])
def test_zips_of_other_writers_have_their_crc_in_the_local_header(tmp_path, zip64):
    path = tmp_path / "x.pt"
    path.write_bytes(python_zip(zip64=zip64))
    checkpoint = read_checkpoint(path)
    ((hole,),) = [layout.holes for layout in checkpoint.files]
    assert len(hole.crc_offsets) == 2
    assert hole.crc_offsets[0] < hole.offset
    assert_lossless(checkpoint, path)
    (changed,) = rebuilt(checkpoint, lambda _: bytes(400))
    assert zip_is_intact(changed)


def test_deflated_records_beside_the_tensors_are_kept_as_they_are(tmp_path):
    """Their places are proved like those of the others, and their CRC-32 is of bytes that stand nowhere."""
    path, text = tmp_path / "x.pt", b"def forward(self): pass\n" * 400
    packed = zlib.compress(text, wbits=-15)
    code = replace(
        TORCH_RECORDS[3],
        name="x/code.py",
        data=packed,
        method=8,
        crc=zlib.crc32(text),
        central_packed=len(packed),
        central_nbytes=len(text),
        descriptor_nbytes=len(text),
    )
    path.write_bytes(make_zip([*TORCH_RECORDS, code]))
    assert zip_is_intact(path.read_bytes())
    checkpoint = read_checkpoint(path)
    assert [t.path for t in checkpoint.tensors] == [("w",)]
    assert_lossless(checkpoint, path)
    for lie in ({"descriptor_nbytes": 1}, {"central_nbytes": 1}, {"central_packed": 1}, {"flags": 0x809}):
        path.write_bytes(make_zip([*TORCH_RECORDS, replace(code, **lie)]))
        with pytest.raises(BadCheckpoint):
            read_checkpoint(path)


def test_checksums_of_zero_stay_zero(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(torch_file(lambda record: replace(record, crc=0)))
    checkpoint = read_checkpoint(path)
    assert checkpoint.files[0].holes[0].crc_offsets == ()
    assert_lossless(checkpoint, path)


def test_long_records_of_unknown_use_are_opaque_holes(tmp_path):
    path = tmp_path / "x.pt"
    attachment = replace(TORCH_RECORDS[3], name="x/attachment", data=bytes(range(256)) * 8192)
    unused = replace(TORCH_RECORDS[2], name="x/data/7")
    path.write_bytes(make_zip([*TORCH_RECORDS, attachment, unused]))
    checkpoint = read_checkpoint(path)
    assert [(t.path, t.dtype, t.shape) for t in checkpoint.tensors] == [
        (("w",), "float32", (100,)),
        (("<record>", "attachment"), "uint8", (2 << 20,)),
        (("<record>", "data/7"), "uint8", (len(FLOATS),)),
    ]
    assert_lossless(checkpoint, path)
