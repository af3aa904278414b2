"""A checkpoint of many parts costs more than one file by little a part, and no more the more there are."""

import os
import zlib
from dataclasses import dataclass, replace
from typing import Any

import pytest
from codec.chains import encode
from dcp_directories import state_of, trained, write_dcp

from ckzd.checkpoint import Checkpoint, FileLayout, FileStat, Hole, TensorSpec
from ckzd.codec.analysis.contents import read_contents
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.errors import BadCheckpoint
from ckzd.formats import read_checkpoint, source


@dataclass
class Counting:
    """What is read of a checkpoint, in how many pieces."""

    source: Any
    reads: int = 0

    def read(self, file, offset, nbytes):
        self.reads += 1
        return self.source.read(file, offset, nbytes)

    def close(self):
        self.source.close()


@pytest.mark.parametrize("preset", ["lossless", "resume"])
def test_a_part_is_read_six_times_at_most(tmp_path, preset):
    """It was nine to thirteen: each CRC-32, and all headers once more, by themselves."""
    for ranks in (2, 16):
        checkpoint = in_tiles(read_checkpoint(write_dcp(tmp_path / f"step_{ranks}", ranks, state_of(*trained()))))
        counting = Counting(checkpoint.source)
        encode(replace(checkpoint, source=counting), preset=preset)
        holes = sum(len(layout.holes) for layout in checkpoint.files)
        assert counting.reads <= 6 * holes + 3 * ranks


def test_each_file_of_a_rank_is_opened_once(tmp_path, monkeypatch):
    """All of them are read in turns, a part of each tensor: files beyond the eighth were opened for each part."""
    checkpoint = in_tiles(read_checkpoint(write_dcp(tmp_path / "step_1", 24, state_of(*trained()))))
    checkpoint.source.close()
    opened, real = [], os.open
    monkeypatch.setattr(source.os, "open", lambda *arguments: opened.append(arguments[0]) or real(*arguments))
    encode(checkpoint, preset="lossless")
    monkeypatch.undo()
    checkpoint.source.close()
    assert len(opened) == len(set(opened)) == 25


class Held:
    """A file in memory."""

    def __init__(self, data):
        self.data = data

    def read(self, file, offset, nbytes):
        return bytes(self.data[offset : offset + nbytes])


@pytest.mark.parametrize("damaged", range(10))
def test_each_field_of_a_crc_is_held_against_its_tensor(damaged):
    """Before the bytes, right behind them, and at the end of the file as a zip has it: damage of any is found."""
    a, b = b"a" * 40, b"b" * 24
    of_a, of_b = (zlib.crc32(each).to_bytes(4, "little") for each in (a, b))
    data = bytearray(b"." + of_a + a + of_a + b + b"." + of_b + of_a + of_b)
    holes = Hole(0, 5, 40, (1, 45, 78)), Hole(1, 49, 24, (74, 82))
    tensors = [TensorSpec((name,), "int8", (nbytes,), nbytes) for name, nbytes in (("a", 40), ("b", 24))]
    stat = FileStat(0o644, 0, 0, 0)
    files = (FileLayout("f", len(data), stat, holes),)
    checkpoint = Checkpoint("f", False, None, 1, files, tuple(tensors), (), Held(data))
    places = {"a": (1, 45, 78, 7, 40), "b": (74, 82, 49, 60, 72)}
    name = "a" if damaged < 5 else "b"
    read_contents(checkpoint, (), lambda _: None)
    data[places[name][damaged % 5]] ^= 1
    with pytest.raises(BadCheckpoint, match=f"tensor {name}: .*CRC-32"):
        read_contents(checkpoint, (), lambda _: None)
