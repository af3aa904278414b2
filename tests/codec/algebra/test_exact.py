"""Orthonormal bases: integers whose sums no order can change, orthonormal whatever goes in."""

import itertools

import numpy as np
import plain_decoder
import pytest
from codec.exactness import Watched, largest_sum, watched
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import ThreadpoolController

from ckzd.codec.algebra import exact
from ckzd.codec.algebra.on_cores import CORES
from ckzd.codec.kernels import kernels, plain
from ckzd.codec.kernels.plain import MAX_DIRECTIONS, ROW_BITS

ONE = 2.0**ROW_BITS
draw = np.random.default_rng(0)


def orthonormal(rows):
    """One matrix alone."""
    return kernels.orthonormal(rows[None])[0]


def refined(vectors):
    """Likewise; in 2**-18."""
    found = vectors[None].copy()
    exact.refine(found, ROW_BITS, None, CORES)
    return found[0]


def integers(*shape, bits=22):
    return np.rint(draw.normal(0, 2.0 ** (bits - 2), shape))


def hard_matrices():
    """Full rank, all rows alike, one direction, nothing at all, rows at rest, and magnitudes 2**40 apart."""
    thin, rest = integers(40, 3), integers(40, 40)
    rest[20:] = 0
    return {
        "random": integers(40, 40),
        "low rank": thin @ integers(3, 40, bits=8),
        "constant": np.full((40, 40), 7.0),
        "one direction": np.outer(integers(40), np.ones(40)),
        "nothing": np.zeros((40, 40)),
        "rows at rest": rest,
        "graded": np.rint(integers(40, 40, bits=4) * 2.0 ** np.linspace(40, 0, 40)[:, None]),
        "one number": np.array([[3.0]]),
        "no number": np.zeros((1, 1)),
        "units": np.eye(33) * 5,
        "two panels of the same": np.tile(integers(16, 32), (2, 1)),
    }


def power_of(rows):
    """What a basis makes of such coefficients: its regularisation is what keeps it from losing rank."""
    energy = rows @ rows.T
    whole = np.rint((0.75 * energy * (len(rows) / (np.trace(energy) or 1.0)) + np.eye(len(rows)) / 16) * 2.0**14)
    return whole @ (whole + 2.0**14 * np.eye(len(rows)))


@pytest.mark.parametrize("name", hard_matrices())
def test_rows_become_orthonormal_whatever_was_seen(name):
    found = orthonormal(power_of(hard_matrices()[name]))
    gram = found @ found.T / ONE**2
    assert np.abs(gram - np.eye(len(found))).max() < 1e-3
    assert np.array_equal(found, np.rint(found))


def test_the_first_rows_span_what_they_spanned():
    rows = integers(50, 50)
    found = orthonormal(rows)
    for count in (1, 15, 16, 17, 40):
        inside = found[:count] / ONE
        left = rows[:count] - rows[:count] @ inside.T @ inside
        assert np.abs(left).max() < 1e-3 * np.abs(rows).max()


@pytest.mark.parametrize("name", hard_matrices())
def test_the_page_says_the_same(name):
    rows = hard_matrices()[name]
    assert np.array_equal(orthonormal(rows), plain_decoder.orthonormal(rows.astype(np.int64)))


def test_a_step_of_refinement_brings_columns_closer():
    vectors = orthonormal(integers(60, 60)).T + integers(60, 60, bits=10)
    off = [np.abs(v.T @ v / ONE**2 - np.eye(60)).max() for v in (vectors, refined(vectors))]
    assert off[1] < 0.2 * off[0] < 0.02
    assert np.array_equal(refined(vectors), plain_decoder.refined(vectors.astype(np.int64), ROW_BITS))


@pytest.mark.parametrize("spoil", [0.0, 0.03, 0.12])
def test_what_is_nearly_orthonormal_is_told_from_what_is_not(spoil):
    vectors = orthonormal(integers(20, 20)).T
    vectors[:, 3] += np.rint(spoil * vectors[:, 7])
    lost = np.where(np.arange(20) == 5, 0, vectors)
    assert exact.refine(np.stack([vectors, lost]), ROW_BITS, None, CORES).tolist() == [spoil < 1 / 16, False]


@pytest.mark.parametrize("name", hard_matrices())
def test_compiled_or_not_the_bits_are_the_same(name):
    rows = hard_matrices()[name]
    assert np.array_equal(orthonormal(rows), plain.orthonormal(rows[None])[0])


def test_matrices_do_not_know_of_each_other():
    """Several at once are the same bits as each alone; one that loses a row does not change the others."""
    lost = integers(40, 40)
    lost[7] = lost[3]
    stack = np.stack([integers(40, 40), lost, np.zeros((40, 40)), integers(40, 40)])
    together = kernels.orthonormal(stack)
    for alone, found in zip(stack, together, strict=True):
        assert orthonormal(alone).tobytes() == found.tobytes()


@settings(max_examples=40)
@given(st.lists(st.integers(-(2**30), 2**30), min_size=1), st.integers(-10, 3))
def test_shifts_round_ties_to_even(numbers, bits):
    found = plain.shifted(np.array(numbers, np.float64), bits)
    for number, got in zip(numbers, found.tolist(), strict=True):
        assert got == (round(number / 2**-bits) if bits < 0 else number * 2**bits)  # Python rounds ties to even


@pytest.mark.parametrize("kind", ["random", "equal", "extreme"])
def test_no_sum_reaches_53_bits(kind):
    """At the widest matrix and the largest numbers: what makes every order of summation the same."""
    rows = {
        "random": integers(MAX_DIRECTIONS, MAX_DIRECTIONS, bits=44),
        "equal": np.full((MAX_DIRECTIONS, MAX_DIRECTIONS), 2.0**44),
        "extreme": 2.0**44 * draw.choice([-1.0, 1.0], (MAX_DIRECTIONS, MAX_DIRECTIONS)),
    }[kind]
    with largest_sum() as found:
        turn = refined(plain.orthonormal(watched(rows)[None])[0].T)
    assert isinstance(turn, Watched)
    assert 0 < found[0] < 2.0**53


def test_the_same_bits_on_any_number_of_threads():
    rows, found = integers(MAX_DIRECTIONS, MAX_DIRECTIONS), []
    for threads in (1, 2):
        with ThreadpoolController().limit(limits=threads):
            found.append(refined(orthonormal(rows).T))
    for one, other in itertools.pairwise(found):
        assert one.tobytes() == other.tobytes()


def test_the_same_bits_in_any_order_of_summation():
    """Products summed backwards, and in blocks of seven."""
    rows = integers(48, 48)
    plain = refined(orthonormal(rows).T)
    for order in ("backwards", "sevens"):
        with largest_sum(order):
            assert np.asarray(refined(orthonormal(watched(rows)).T)).tobytes() == plain.tobytes()
