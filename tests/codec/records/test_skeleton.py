"""The bytes between tensors: what repeats is kept once."""

import numpy as np
import pytest
from codec.chains import decode, encode
from dcp_directories import state_of, trained, write_dcp
from hypothesis import given
from hypothesis import strategies as st

from ckzd.checkpoint import Checkpoint, FileLayout, FileStat, Hole
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.codec.records.skeleton import skeleton_bytes, skeleton_of, split_skeleton
from ckzd.formats import read_checkpoint

STAT = FileStat(0o644, 0, 0, 0)


class Held:
    """Files in memory."""

    def __init__(self, files):
        self.files = files

    def read(self, file, offset, nbytes):
        return self.files[file][offset : offset + nbytes]


def checkpoint_of(lengths, kinds):
    """Files of pieces as long as that, one of a few kinds each, with a hole of a byte between two."""
    layouts, contents, pieces = [], [], []
    for number, own in enumerate(lengths):
        own_pieces = [bytes([next(kinds)]) * length for length in own]
        starts = np.cumsum([0, *(length + 1 for length in own)])
        holes = tuple(Hole(0, int(start) - 1, 1) for start in starts[1:-1])
        layouts.append(FileLayout(f"f{number}", sum(own) + len(holes), STAT, holes))
        contents.append(b"\xff".join(own_pieces))
        pieces.append(own_pieces)
    return Checkpoint("c", True, STAT, 1, tuple(layouts), (), (), Held(contents)), pieces


@given(st.lists(st.lists(st.sampled_from([0, 1, 7, 40]), min_size=1, max_size=9), max_size=4), st.data())
def test_pieces_come_back_whatever_repeats(lengths, data):
    kinds = iter(lambda: data.draw(st.integers(0, 2)), None)
    checkpoint, pieces = checkpoint_of(lengths, kinds)
    skeleton = skeleton_of(checkpoint)
    assert split_skeleton(skeleton, checkpoint.files) == pieces
    assert len(skeleton) <= skeleton_bytes(checkpoint.files)
    assert len(skeleton) <= sum(len(set(own)) * 40 for own in pieces) + 4 * sum(map(len, pieces))


@given(st.binary(max_size=140))
def test_what_is_no_skeleton_is_refused(data):
    checkpoint, _ = checkpoint_of([[40, 40, 7], [40]], iter([0, 0, 1, 0]))
    try:
        found = split_skeleton(data, checkpoint.files)
    except ValueError:
        return
    assert [[len(piece) for piece in own] for own in found] == [[40, 40, 7], [40]]


@pytest.mark.parametrize("number", [2, 1 << 31])
def test_a_number_of_no_piece_is_refused(number):
    checkpoint, _ = checkpoint_of([[40, 40, 40]], iter([0, 0, 0]))
    skeleton = skeleton_of(checkpoint)
    assert len(skeleton) == 40 + 4 * 3
    wrong = skeleton[:-4] + number.to_bytes(4, "little")
    with pytest.raises(ValueError, match="expected a skeleton"):
        split_skeleton(wrong, checkpoint.files)


def test_ranks_that_write_the_same_headers_take_numbers(tmp_path):
    """The verbatim bytes of 32 ranks are 4 times those of 8; what is kept of them grows by four bytes a piece."""
    state = state_of(*trained())
    found = {}
    for ranks in (8, 32):
        checkpoint = in_tiles(read_checkpoint(write_dcp(tmp_path / f"step_{ranks}", ranks, state)))
        inert = len((tmp_path / f"step_{ranks}" / ".metadata").read_bytes())  # which lists all parts
        found[ranks] = skeleton_bytes(checkpoint.files) - inert, len(skeleton_of(checkpoint)) - inert
        files = [(tmp_path / f"step_{ranks}" / layout.name).read_bytes() for layout in checkpoint.files]
        assert decode(encode(checkpoint, preset="lossless")) == files
    assert found[32][0] > 3 * found[8][0]
    assert found[32][1] < 1.7 * found[8][1]
