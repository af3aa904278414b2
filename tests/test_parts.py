"""Parts of tensors: bytes come back to where they lay, and only parts that are all of a tensor are taken for one."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckzd.parts import Part, box, cover


@st.composite
def grids(draw):
    """A shape, and the places at which each of its dimensions is cut."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    return shape, [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]


def boxes_of(cuts):
    """Start and sizes of every box of a grid."""
    for box_ in itertools.product(*(list(itertools.pairwise(places)) for places in cuts)):
        yield tuple(start for start, _ in box_), tuple(stop - start for start, stop in box_)


@settings(max_examples=200)
@given(grids(), st.sampled_from([1, 2, 4]))
def test_boxes_of_a_grid_are_all_of_an_array(grid, element_bytes):
    shape, cuts = grid
    array = np.random.default_rng(0).integers(0, 256, (*shape, element_bytes)).astype(np.uint8)
    cut = max([axis for axis, places in enumerate(cuts) if len(places) > 2], default=0)
    again, parts = bytearray(array.nbytes), []
    for start, sizes in boxes_of(cuts):
        own = list(box(shape, start, sizes, cut, element_bytes))
        data = array[tuple(slice(at, at + size) for at, size in zip(start, sizes, strict=True))].tobytes()
        assert b"".join(part.taken_from(array.tobytes()) for part in own) == data
        at = 0
        for part in own:
            part.put_into(again, data[at : at + part.nbytes])
            at += part.nbytes
        parts += own
    assert again == array.tobytes()
    assert cover(parts, array.nbytes)
    if len(parts) > 1:
        assert not cover(parts[1:], array.nbytes)
        assert not cover([*parts, parts[0]], array.nbytes)


several = st.builds(lambda start, run, count, gap: Part(start, run, count, run + gap),
                    st.integers(0, 20), st.integers(1, 6), st.integers(2, 5), st.integers(0, 4))  # fmt: skip


@settings(max_examples=200)
@given(st.builds(Part, st.integers(0, 20), st.integers(1, 6)) | several, st.integers(0, 50), st.integers(0, 50))
def test_what_lies_between_two_places(part, left, right):
    data = bytes(range(200))
    left, right = sorted((left, right))
    pieces = [piece.taken_from(data[left:right]) for piece in part.between(left, right)]
    places = [part.start + row * part.pitch + column for row in range(part.count) for column in range(part.run)]
    assert b"".join(pieces) == bytes(data[place] for place in places if left <= place < right)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([Part(0, 8)], True),
        ([Part(4, 4), Part(0, 4)], True),
        ([Part(0, 1, 4, 2), Part(1, 1, 4, 2)], True),
        ([Part(0, 1, 2, 2), Part(1, 1, 2, 2), Part(4, 4)], True),
        ([Part(0, 1, 2, 2), Part(1, 1, 2, 2), Part(4, 1), Part(5, 3)], True),
        ([Part(0, 3), Part(3, 1), Part(4, 1, 2, 2), Part(5, 1, 2, 2)], True),
        ([], False),
        ([Part(0, 9)], False),
        ([Part(0, 4)], False),
        ([Part(0, 5), Part(4, 4)], False),
        ([Part(0, 8), Part(8, 1)], False),
        ([Part(0, 1, 4, 2), Part(1, 1, 3, 2)], False),
        ([Part(0, 1, 4, 2), Part(0, 1, 4, 2)], False),
        ([Part(0, 2, 2, 4), Part(2, 2, 2, 4)], True),
        ([Part(0, 2, 2, 4), Part(3, 2, 2, 4)], False),
        ([Part(0, 1, 4, 2), Part(1, 1, 2, 4), Part(3, 1, 2, 4)], False),  # right, but of two pitches
        ([Part(0, 1, 2, 3), Part(1, 2, 2, 3)], False),
    ],
)
def test_parts_that_are_all_of_eight_bytes(parts, expected):
    assert cover(parts, 8) is expected


def test_many_parts_take_no_longer_each():
    rows = [Part(4 * n, 4) for n in range(100_000)]
    assert cover(rows, 400_000)
    assert not cover([*rows[:-1], replace(rows[-1], run=3)], 400_000)
    columns = [Part(n, 1, 1 << 40, 1 << 16) for n in range(1 << 16)]
    assert cover(columns, 1 << 56)
