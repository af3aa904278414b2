"""Files are put together in turns: a tensor that lies in many is made once, and few are held at a time."""

import random
from functools import partial

import pytest

from ckzd.assembly import MOST_TIMES, assembled
from ckzd.checkpoint import FileLayout, FileStat, Hole
from ckzd.parts import Part

STAT = FileStat(0, 0, 0, 0)
RANKS, TENSORS, SHARE = 5, 12, 16  # bytes of a tensor that each file has


def file_of(rank: int, order: list[int]) -> FileLayout:
    """A header of one byte, then its share of each tensor."""
    holes = (Hole(n, 1 + at * SHARE, SHARE, part=Part(rank * SHARE, SHARE)) for at, n in enumerate(order))
    return FileLayout(f"{rank}", 2 + SHARE * len(order), STAT, tuple(holes))


def randbytes(seed, count):
    return random.Random(seed).randbytes(count)


@pytest.fixture
def tensors():
    return [randbytes(number, RANKS * SHARE) for number in range(TENSORS)]


def files_of(layouts, tensors, **limits):
    """Their bytes, and the order in which tensors were made."""
    made, found = [], [b""] * len(layouts)

    def payload(number):
        made.append(number)
        return tensors[number]

    verbatim = [[b"(", *[b""] * (len(layout.holes) - 1), b")"] for layout in layouts]
    for file, piece in assembled(layouts, verbatim, partial(map, payload), **limits):
        found[file] += piece
    return found, made


def expected(rank, order, tensors):
    return b"(" + b"".join(tensors[n][rank * SHARE : (rank + 1) * SHARE] for n in order) + b")"


def test_of_one_order_each_tensor_is_made_once_and_let_go(tensors):
    order = list(range(TENSORS))
    found, made = files_of([file_of(rank, order) for rank in range(RANKS)], tensors, held_bytes=0)
    assert found == [expected(rank, order, tensors) for rank in range(RANKS)]
    assert made == order


def test_of_other_orders_what_is_not_held_is_made_again(tensors):
    orders = [random.Random(rank).sample(range(TENSORS), TENSORS) for rank in range(RANKS)]
    layouts = [file_of(rank, order) for rank, order in enumerate(orders)]
    for held_bytes in (0, 3 * RANKS * SHARE, 1 << 20):
        found, made = files_of(layouts, tensors, held_bytes=held_bytes)
        assert found == [expected(rank, order, tensors) for rank, order in enumerate(orders)]
        assert (len(made) == TENSORS) == (held_bytes == 1 << 20)
        assert len(made) <= RANKS * TENSORS


@pytest.mark.parametrize("tiles", [2, 5])
def test_ranks_that_have_rows_of_different_tiles_wait_for_each_other(tiles):
    """The first tensor is cut into tiles, each in some ranks alone: who has the first went on as far as is held.

    So all that was let go was made again for those who have another.
    """
    ranks, per_tile = 2 * tiles, 2
    others = list(range(tiles, TENSORS))
    layouts, contents = [], [randbytes(number, ranks * SHARE) for number in range(TENSORS)]
    for rank in range(ranks):
        tile, place = divmod(rank, per_tile)
        holes = [Hole(tile, 1, SHARE, part=Part(place * SHARE, SHARE))]
        holes += (Hole(n, 1 + at * SHARE, SHARE, part=Part(rank * SHARE, SHARE)) for at, n in enumerate(others, 1))
        layouts.append(FileLayout(f"{rank}", 2 + SHARE * len(holes), STAT, tuple(holes)))
    contents[:tiles] = [content[: per_tile * SHARE] for content in contents[:tiles]]
    found, made = files_of(layouts, contents, held_bytes=2 * ranks * SHARE)
    assert sorted(made) == list(range(TENSORS))
    for rank, data in enumerate(found):
        tile, place = divmod(rank, per_tile)
        own = contents[tile][place * SHARE :][:SHARE], *(contents[n][rank * SHARE :][:SHARE] for n in others)
        assert data == b"(" + b"".join(own) + b")"


def test_what_would_be_made_again_without_end_is_refused_before_any_of_it_is(tensors):
    """A crafted archive: one tensor is large, and another file has bytes of it and of a second in turns."""
    large = FileLayout("large", 1 << 20, STAT, (Hole(0, 0, 1 << 20),))
    turns = tuple(Hole(n % 2, n, 1, part=Part(n // 2, 1)) for n in range(4 * MOST_TIMES))
    with pytest.raises(ValueError, match="without end"):
        files_of([large, FileLayout("turns", len(turns), STAT, turns)], tensors, held_bytes=0)


def test_files_without_tensors_and_tensors_in_one_place():
    layouts = [FileLayout("a", 3, STAT, ()), FileLayout("b", 4, STAT, (Hole(1, 0, 2), Hole(0, 2, 2)))]
    found = [b"", b""]
    for file, piece in assembled(layouts, [[b"abc"], [b"", b"", b""]], partial(map, [b"xy", b"zw"].__getitem__)):
        found[file] += piece
    assert found == [b"abc", b"zwxy"]
