"""The committed tables, recomputed with 50 digits."""

from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import pytest

from ckzd.codec.entropy import tables


def power_of_two(exponent: Decimal) -> Decimal:
    return (exponent * Decimal(2).ln()).exp()


def rounded(value: Decimal) -> int:
    """To the nearest integer; no value here is near a tie."""
    assert abs(value % 1 - Decimal("0.5")) > Decimal("1e-20") or value == value.to_integral_value()
    return int(value.to_integral_value(ROUND_HALF_EVEN))


@pytest.fixture(autouse=True)
def _fifty_digits():
    with localcontext() as context:
        context.prec = 50
        yield


def test_sigmoid():
    expected = [min(rounded(2**15 / (1 + (Decimal(-k) / 32).exp())), 2**15 - 1) for k in range(257)]
    assert list(tables.SIGMOID) == expected


def test_negative_powers_of_two():
    assert list(tables.EXP2_NEGATIVE) == [rounded(2**16 * power_of_two(Decimal(-k) / 64)) for k in range(64)]


def test_frequencies():
    assert list(tables.FREQUENCY) == [rounded(power_of_two(Decimal(k) / 16)) for k in range(256)]
    assert min(tables.FREQUENCY) == 1


def test_octave():
    assert list(tables.OCTAVE) == [rounded(2**52 * power_of_two(Decimal(k) / 8)) for k in range(8)]
