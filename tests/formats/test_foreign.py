"""Small files of others are read whole or taken for nothing, whatever stands under their name."""

import os
import socket
import time

import pytest
import torch

from ckzd.formats import foreign


def fifo(path):
    os.mkfifo(path)


def unix_socket(path):
    os.chdir(path.parent)  # its name has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)


def sparse(path):
    path.touch()
    os.truncate(path, 1 << 40)


ODD = {
    "pipe": fifo,
    "socket": unix_socket,
    "device link": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "looping link": lambda path: path.symlink_to(path.name),
    "link to a file": lambda path: path.symlink_to("/proc/self/status"),
    "directory": lambda path: path.mkdir(),
    "sparse": sparse,
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_what_is_no_small_regular_file_is_nothing(tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "latest")
    began = time.monotonic()
    assert foreign.read_small(tmp_path / "latest", 100) is None
    assert (foreign.marker_text(tmp_path / "latest"), foreign.json_file(tmp_path / "latest")) == ("", None)
    assert time.monotonic() - began < 1


def test_a_name_that_cannot_be_one(tmp_path):
    assert foreign.read_small(tmp_path / "a\0b", 100) is None
    assert foreign.read_small(tmp_path / ("x" * 5000), 100) is None


@pytest.mark.parametrize(("nbytes", "read"), [(0, True), (100, True), (101, False)])
def test_the_limit_is_on_the_bytes(tmp_path, nbytes, read):
    (tmp_path / "latest").write_bytes(b"x" * nbytes)
    assert foreign.read_small(tmp_path / "latest", 100) == (b"x" * nbytes if read else None)


def test_a_marker_names_a_file_that_is_no_text(tmp_path):
    (tmp_path / "latest").write_bytes(b"step\xff.pt")
    assert foreign.marker_text(tmp_path / "latest") == os.fsdecode(b"step\xff.pt")


ODD_JSON = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and whole": b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "list": b"[1]",
    "cut off": b'{"a": 1',
    "not UTF-8": b'{"a": "\xff"}',
    "a number without end": b'{"a": ' + b"9" * 10_000 + b"}",
    "nothing": b"",
    "many values": b'{"a": [' + b"[]," * 4_000_000 + b"[]]}",
}


@pytest.mark.parametrize("data", ODD_JSON.values(), ids=ODD_JSON)
def test_odd_json(tmp_path, data):
    (tmp_path / "trainer_state.json").write_bytes(data)
    assert foreign.json_file(tmp_path / "trainer_state.json") is None
    with pytest.raises(ValueError, match=r"deep|no object|values|Expecting|codec|digits|Exceeds"):
        foreign.json_object(data)


def test_json(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3}')
    assert foreign.json_file(tmp_path / "trainer_state.json") == {"global_step": 3}


def test_a_small_checkpoint_is_no_text_of_names(tmp_path):
    """`last.pth` beside others: among the bytes of its numbers are words, and the others' names may be in it, too."""
    torch.save({"files": ["step_1.pth 1"], "weight": torch.zeros(9)}, tmp_path / "last.pth")
    assert foreign.marker_text(tmp_path / "last.pth") == ""
    (tmp_path / "last").write_text("step_1.pth")
    assert foreign.marker_text(tmp_path / "last") == "step_1.pth"
