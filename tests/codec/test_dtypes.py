"""Widening is exact, narrowing rounds once: held against exact fractions."""

import math
from bisect import bisect_left
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckzd.checkpoint import STORED_AS
from ckzd.codec.dtypes import SMALLEST_NORMAL, finite, from_float64, is_finite, stored_array, to_float64

NARROW = ["bfloat16", "float16"]


def all_finite(dtype):
    """Every non-negative finite value of a 16-bit dtype, ascending, and its bits."""
    bits = np.arange(0x8000, dtype=np.uint16)
    values = to_float64(bits.view(STORED_AS[dtype]), dtype)
    return values[np.isfinite(values)].tolist()


VALUES = {dtype: all_finite(dtype) for dtype in NARROW}
EXACT = {dtype: [Fraction(value) for value in values] for dtype, values in VALUES.items()}


def nearest(value: float, dtype: str) -> float:
    """The oracle: nearest value of the dtype, ties to the one with even bits, the largest finite beyond all."""
    exact, magnitude = EXACT[dtype], abs(Fraction(value))
    above = bisect_left(exact, magnitude)
    if above == len(exact):
        found = above - 1
    elif above == 0 or exact[above] - magnitude < magnitude - exact[above - 1]:
        found = above
    elif exact[above] - magnitude > magnitude - exact[above - 1]:
        found = above - 1
    else:
        found = above if above % 2 == 0 else above - 1
    return math.copysign(VALUES[dtype][found], value)


def around(dtype):
    """Values of the dtype, halves between them, and what lies one float64 or one float32 beside."""

    def beside(pick):
        index, side, steps = pick
        low, high = VALUES[dtype][index], VALUES[dtype][min(index + 1, len(VALUES[dtype]) - 1)]
        value = {"low": low, "middle": low + (high - low) / 2, "high": high}[side]
        for _ in range(abs(steps)):
            value = math.nextafter(value, math.inf if steps > 0 else 0.0)
        return value

    picks = st.tuples(
        st.integers(0, len(VALUES[dtype]) - 1), st.sampled_from(["low", "middle", "high"]), st.integers(-2, 2)
    )
    single = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return st.one_of(picks.map(beside), single, st.floats(allow_nan=False, allow_infinity=False))


@pytest.mark.parametrize("dtype", NARROW)
@given(data=st.data())
def test_narrowing_rounds_once_to_nearest_even(dtype, data):
    values = np.array(data.draw(st.lists(around(dtype), min_size=1, max_size=20)))
    values *= np.array([data.draw(st.sampled_from([1.0, -1.0])) for _ in values])
    got = to_float64(from_float64(values, dtype), dtype)
    expected = np.array([nearest(value, dtype) for value in values])
    assert got.tobytes() == expected.tobytes()  # the sign of zero too


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20))
@example([1.0 + 2.0**-24 + 2.0**-60, 1e300, -1e300, math.inf, 2.0**-149, 2.0**-150, -(2.0**-151)])
def test_narrowing_to_float32_rounds_once_and_saturates(values):
    largest = float(np.finfo(np.float32).max)
    expected = [float(np.float32(min(max(value, -largest), largest))) for value in values]
    assert from_float64(np.array(values), "float32").astype(np.float64).tolist() == expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_a_dtype_can_say_survives_a_round_trip(dtype):
    """All 16-bit patterns; for float32 a sample. Infinities saturate, NaN stays NaN."""
    if dtype == "float32":
        bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    else:
        bits = np.arange(1 << 16, dtype=np.uint16)
    stored = bits.view(STORED_AS[dtype])
    finite = np.isfinite(to_float64(stored, dtype))
    again = from_float64(to_float64(stored, dtype), dtype)
    assert again.dtype == STORED_AS[dtype]
    assert np.array_equal(again.view(bits.dtype)[finite], bits[finite])
    assert is_finite(stored[finite], dtype)
    assert not is_finite(stored, dtype)
    nan = np.isnan(to_float64(stored, dtype))
    assert np.isnan(to_float64(again, dtype)[nan]).all()
    assert np.isfinite(to_float64(again, dtype)[~nan]).all()


@pytest.mark.parametrize(("dtype", "torch_name"), [(d, d) for d in ("float32", "float16", "bfloat16")])
def test_the_smallest_normal_is_torchs(dtype, torch_name):
    import torch

    assert torch.finfo(getattr(torch, torch_name)).tiny == SMALLEST_NORMAL[dtype]


def test_float64_is_worked_with_in_the_range_of_float32():
    largest = float(np.finfo(np.float32).max)
    numbers = np.array([0.0, -1e-300, largest, np.nextafter(largest, np.inf), -1e39, np.inf, np.nan])
    assert finite(numbers, "float64").tolist() == [True, True, True, False, False, False, False]
    assert from_float64(numbers[:6], "float64").tolist() == [0.0, -1e-300, largest, largest, -largest, largest]


def test_shapes_are_kept():
    for shape in [(), (0,), (3, 0), (2, 3)]:
        stored = stored_array(bytes(2 * math.prod(shape)), "bfloat16", shape)
        assert from_float64(to_float64(stored, "bfloat16"), "bfloat16").shape == shape
