"""What the bound on sparse weights is made of: numbers that round as the framework's do, and counted changes."""

import numpy as np
import pytest
import sparse
import torch
from sparse import Run, bfloat16, in_order


def test_numbers_round_as_the_frameworks_do():
    values = np.random.default_rng(0).normal(0, 1, 10_000).astype(np.float32)
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(bfloat16(values), expected)


def test_neighbours_are_one_apart():
    """Across 0 too, which there is twice."""
    below = np.array([0x8001, 0x8000, 0x0000, 0x0001, 0x3F7F, 0xBF81], np.uint16)
    above = np.array([0x8000, 0x0000, 0x0001, 0x0002, 0x3F80, 0xBF80], np.uint16)
    assert (in_order(above) - in_order(below) == 1).all()


def test_a_run_changes_as_much_as_it_is_asked_to_and_its_entropy_is_that_of_the_counts(monkeypatch):
    monkeypatch.setattr(sparse, "SHAPES", {"w": (64, 64)})
    run = Run(3, 4)
    rate = run.rate_for(0.1)
    assert run.changed(rate) == pytest.approx(0.1, rel=0.1)
    bound = 64 * 64 * (0.1 * np.log2(10) + 0.9 * np.log2(1 / 0.9) + 0.1 * 8) / 8  # whether, and which of 256
    assert 0 < run.entropy_bytes(rate) < bound
    assert run.entropy_bytes(0.0) == 0
