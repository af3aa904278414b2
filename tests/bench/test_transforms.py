"""What factors cost, and that they are looked for at the error that they are compared at."""

import numpy as np
import pytest
from transforms import Components, Matrix, at_error, costs, gaussian_bytes, tables_of, with_levels, without_factors

DRAW = np.random.default_rng(0)
LOW_RANK = DRAW.standard_normal((96, 3)) @ DRAW.standard_normal((3, 64))
NOISE = DRAW.standard_normal((96, 64))


def matrix(values, before=NOISE, error=0.01):
    return Matrix("m", values, before, error * float((values**2).sum()))


def costs_of(subject):
    plain = at_error(with_levels(without_factors, subject, 0.5), subject)
    return costs(subject, tables_of([plain.plane]), 0.5)


def test_a_gaussian_costs_its_entropy():
    levels = np.rint(DRAW.normal(0, [4.0, 16.0], (20_000, 2)))
    entropy = 20_000 * (np.log2(np.array([4.0, 16.0]) * (2 * np.pi * np.e) ** 0.5)).sum() / 8
    assert gaussian_bytes(levels) == pytest.approx(entropy, rel=0.01)


@pytest.mark.parametrize("values", [LOW_RANK, NOISE + 4 * LOW_RANK], ids=["low rank", "noise"])
def test_every_transform_is_held_against_the_same_error(values):
    subject = matrix(values)
    for coder in (Components.of(values).leading(64).coded, with_levels(without_factors, subject, 0.5)):
        lost = ((values - at_error(coder, subject).values) ** 2).sum()
        assert 0.9 * subject.error < lost <= subject.error


def test_few_components_are_cheaper_as_factors_and_noise_as_levels():
    few, noise = costs_of(matrix(LOW_RANK)), costs_of(matrix(NOISE))
    assert few["factors"] < 0.3 * few["levels"]
    assert noise["levels"] < noise["factors"]


def test_directions_that_the_reference_has_cost_nothing_again():
    known = costs_of(matrix(LOW_RANK, before=LOW_RANK + 1e-6 * NOISE))
    assert known["mixed factors"] < 0.3 * known["factors"]


def test_what_no_step_reaches_is_not_offered():
    subject = matrix(NOISE, error=1e-6)
    assert at_error(Components.of(NOISE).leading(2).coded, subject) is None
