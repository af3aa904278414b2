"""Contexts: both directions see the same ids, every element comes once, nothing is looked at before it is decoded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec.entropy import context
from ckzd.codec.entropy.context import (
    DENSITIES,
    FIELDS,
    FIRST,
    GRID,
    PASSES,
    SECOND,
    WEIGHTS,
    SideInformation,
    density_class,
    lattice,
    magnitudes,
    passes,
)

shapes = st.tuples(st.integers(0, 12), st.integers(0, 12))
levels = st.one_of(st.just(0), st.integers(-3, 3), st.integers(-40, 40), st.sampled_from([-32768, 32767]))


@st.composite
def planes(draw):
    shape = draw(shapes)
    plane = draw(arrays(np.int16, shape, elements=levels))

    def guide():
        return draw(st.none() | arrays(np.int8, shape, elements=st.integers(-128, 127)))

    return draw(st.sampled_from([WEIGHTS, FIRST, SECOND])), plane, SideInformation(guide(), guide(), guide())


def coded(kind, plane, guide):
    """The passes as the encoder sees them: it fills in what it codes."""
    magnitude = magnitudes(plane)
    known = np.zeros_like(magnitude)
    for number, places, ids in passes(kind, guide, known, int(magnitude.sum(dtype=np.int64))):
        yield number, np.unravel_index(places, plane.shape) if plane.size else ([], []), ids.copy()
        known.ravel()[places] = magnitude.ravel()[places]


@settings(deadline=None)
@given(planes())
def test_every_element_is_coded_once_in_the_order_of_the_lattice(given_plane):
    kind, plane, guide = given_plane
    times = np.zeros(plane.shape, int)
    for position, (number, places, ids) in enumerate(coded(kind, plane, guide)):
        assert number == position
        assert np.array_equal(np.transpose(places), np.argwhere(lattice(plane.shape) == number))
        assert ids.dtype == np.int16
        assert ids.size == len(places[0])
        assert ((ids >= 0) & (ids < GRID)).all()
        times[places] += 1
    assert (times == 1).all()


@settings(deadline=None)
@given(planes(), st.randoms(use_true_random=False))
def test_a_context_depends_on_nothing_that_comes_later(given_plane, random):
    """Whatever the elements of this and later passes are, their contexts are the same, if the total is."""
    kind, plane, guide = given_plane
    total = int(magnitudes(plane).sum(dtype=np.int64))
    for number, places, ids in coded(kind, plane, guide):
        changed = magnitudes(plane)
        later = np.argwhere(lattice(plane.shape) >= number)
        for i, j in later:
            changed[i, j] = random.randrange(16)
        known = np.zeros_like(changed)
        for again, places_again, ids_again in passes(kind, guide, known, total):
            if again == number:
                assert len(places[0]) == len(places_again)
                assert np.array_equal(ids, ids_again)
                break
            known.ravel()[places_again] = changed.ravel()[places_again]


@settings(deadline=None, max_examples=30)
@given(planes(), st.integers(0, 2**62))
def test_a_lie_about_the_total_is_harmless(given_plane, total):
    """A damaged header says any total: ids stay inside the grid, no overflow, no warning."""
    kind, plane, guide = given_plane
    known = np.zeros(plane.shape, np.uint8)
    for _, places, ids in passes(kind, guide, known, total):
        assert ((ids >= 0) & (ids < GRID)).all()
        known.ravel()[places] = 15
    assert 0 <= density_class(total, plane.size) < DENSITIES


def test_the_grid_is_the_product_of_its_fields():
    assert int(np.prod([size for _, size in FIELDS])) == GRID
    assert np.unique(lattice((8, 8))).tolist() == list(range(PASSES))
    assert GRID < 2**14


def test_each_pass_knows_as_many_neighbours_as_it_counts_on():
    pass_of = lattice((24, 24))
    for number, expected in enumerate((0, 0, 2, 4)):
        inner = np.argwhere(pass_of[1:-1, 1:-1] == number) + 1
        counts = {int((pass_of[i - 1 : i + 2, j - 1 : j + 2] < number).sum()) for i, j in inner}
        assert counts == {expected}


def plain_ids(kind, plane, guide, only=slice(None)):
    """FORMAT.md, section Contexts, element by element in Python integers; of some columns only."""
    magnitude = magnitudes(plane).astype(int)
    rows, columns = plane.shape
    size, total = plane.size, int(magnitude.sum())
    pass_of = lattice(plane.shape)
    reference = None if guide.levels is None else np.minimum(np.abs(guide.levels.astype(int)), 15)

    def neighbours(values, i, j):
        around = [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
        return sum(int(values[y, x]) for y, x in around if 0 <= y < rows and 0 <= x < columns)

    def against(found, average, whole):
        return sum(found > step * average * whole // (256 * size) for step in (141, 226, 333))

    def share(found, whole):
        return int(found) * ((size << 30) // max(whole, 1)) >> 18

    def energy(line, seen, guided, length):
        found = share(line[seen].sum(), total)
        weight = int(seen.sum())
        if guided is not None and reference.sum():
            found += share(guided.sum(), int(reference.sum())) // 2
            weight += length // 2
        return (found + 4096 * 8) // (weight + 8)

    steps = [362, 431, 512, 609, 724, 861, 1024, 1218, 1448, 1722, 2048, 2435, 2896, 3444, 4096, 4871, 5793, 6889]
    steps += [8192, 9742, 11585, 13777, 16384]
    found = np.full(plane.shape, -1)
    for number in range(4):
        for i, j in np.argwhere((pass_of == number) & np.isin(np.arange(columns), np.arange(columns)[only])):
            before = pass_of < number
            row = energy(magnitude[i], before[i], None if reference is None else reference[i], columns)
            column = energy(magnitude[:, j], before[:, j], None if reference is None else reference[:, j], rows)
            level = 0 if guide.levels is None else int(guide.levels[i, j])
            guided = 0 if level == 0 else 1 + (level < 0) + 2 * (abs(level) > 2)
            around = 0
            if reference is not None:
                around = against(neighbours(reference, i, j), 8, int(reference.sum()))
            coded_before = magnitude * before
            close = against(neighbours(coded_before, i, j), (0, 0, 2, 4)[number], total)
            previous = 0 if guide.previous is None else min(abs(int(guide.previous[i, j])), 2)
            relative = sum(step <= row * column >> 12 for step in steps)
            if guide.second is not None:
                half_octaves = int(guide.second[i, j])
                relative = min(max(half_octaves + (12 if kind == SECOND else relative), 0), 23)
            found[i, j] = (((guided * 24 + relative) * 4 + around) * 4 + close) * 3 + previous
    return found


@settings(deadline=None, max_examples=40)
@given(planes())
def test_ids_are_what_the_format_says(given_plane):
    kind, plane, guide = given_plane
    expected = plain_ids(kind, plane, guide)
    for _, places, ids in coded(kind, plane, guide):
        assert ids.tolist() == expected[places].tolist()


@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1), (3, 70_000)])
def test_long_vectors_do_not_overflow(shape):
    """All that counts is one large level: the shares are as large as they can get."""
    plane = np.zeros(shape, np.int16)
    plane[0, 0] = 15
    guide = SideInformation(plane.astype(np.int8))
    expected = plain_ids(WEIGHTS, plane, guide, slice(20)) if shape[0] < 100 else None
    for _, places, ids in coded(WEIGHTS, plane, guide):
        if expected is not None:
            row, column = (each[places[1] < 20] for each in places)
            assert np.array_equal(ids[places[1] < 20], expected[row, column])
        assert ((ids >= 0) & (ids < GRID)).all()


def test_density_classes_are_monotonous():
    classes = [density_class(total, 1000) for total in range(0, 15_001, 10)]
    assert classes == sorted(classes)
    assert set(classes) == set(range(DENSITIES))
    assert context.density_class(0, 0) == 0
