"""The pure parts of the comparison: sizes at equal error, the table, names moved apart, planes there and back."""

from itertools import pairwise

import numpy as np
import pytest
from comparison_equal import Equal, Reading, Setting, size_at_divergence, size_at_gap
from comparison_report import equal_sizes, summaries, table
from lossless import from_planes, to_planes
from scaled import scaled

from ckzd.codec.presets import PRESETS

POWER_LAW = [Setting(kl, 100 * kl**-0.5) for kl in (1e-4, 1e-3, 1e-2)]


@pytest.mark.parametrize("kl", [1e-4, 3e-4, 4e-3, 1e-2])
def test_a_power_law_is_read_exactly_between_its_settings(kl):
    size, extrapolated = size_at_divergence(POWER_LAW, kl)
    assert size == pytest.approx(100 * kl**-0.5)
    assert not extrapolated


@pytest.mark.parametrize(("kl", "known"), [(6e-5, True), (1.9e-2, True), (4e-5, False), (2.1e-2, False)])
def test_a_curve_is_extrapolated_a_little_and_says_so(kl, known):
    reading = size_at_divergence(POWER_LAW, kl)
    assert (reading is not None) == known
    if reading is not None:
        assert reading.size == pytest.approx(100 * kl**-0.5)
        assert reading.extrapolated


def test_nothing_is_made_of_one_setting_or_none_or_of_a_curve_that_rises():
    assert size_at_divergence([], 1e-3) is None
    assert size_at_divergence(POWER_LAW[:1], 1.5e-4) is None
    assert size_at_divergence([Setting(1e-4, 10), Setting(1e-3, 20)], 1.5e-3) is None


def test_a_curve_that_has_an_error_twice_is_read_at_its_best():
    noisy = [Setting(0.004, 10.0), Setting(0.001, 100.0), Setting(0.003, 1000.0)]
    assert size_at_gap(noisy, 0.0025).size == pytest.approx(10 ** (1 + 0.5))
    assert size_at_gap(noisy, 0.001).size == pytest.approx(100)
    assert size_at_gap(noisy, 0.0005) is None


def test_the_factor_is_the_baseline_over_ckzd_and_unknown_without_both():
    assert Equal("KL", 1e-3, Reading(300, extrapolated=False), Reading(100, extrapolated=True)).factor == 3
    assert Equal("KL", 1e-3, None, Reading(100, extrapolated=False)).factor is None


def rows(name: str, size: int, kl: float, gap: float, version: str = "1"):
    """What the log has of one lossy method: a base and two deltas."""
    known = {"method": name, "version": version}
    for step, stored in ((10, 500), (20, size), (30, size)):
        delta = {"part": "delta", "step": step, "lossy": True, "original_bytes": 1000, "bytes": stored, "seconds": 2.0}
        yield known | delta
    yield known | {"part": "quality", "step": 20, "kl": kl, "resume_gap": gap, "heldout_gap": gap}


HEADER = {
    "subject": {"size": "ci", "step": 20},
    "parameters": 80,
    "cpu": "c", "cores": 2, "memory_gib": 1, "gpu": "none", "python": "3", "torch": "2",
}  # fmt: skip


def test_sizes_at_equal_error_are_those_of_the_restored_delta():
    log = [*rows("ckzd resume", 20, 1e-3, 0.002), *rows("ckzd paper", 60, 1e-3, 0.002)]
    log += [*rows("ExCP + fill x1", 160, 1e-4, 0.001), *rows("ExCP + fill x3", 40, 1e-2, 0.003)]
    by_measure = {(equal.measure, equal.error): equal for equal in equal_sizes(list(summaries(log).values()), 20)}
    assert by_measure["KL", 1e-3].factor == pytest.approx(80 / 20)
    assert by_measure["held-out gap", 0.002].factor == pytest.approx(80 / 20)
    assert by_measure["KL", 3e-4].factor is None


def test_the_table_has_a_row_a_method_of_the_newest_code():
    log = [*rows("ckzd resume", 50, 1e-3, 0.002), *rows("ckzd resume", 20, 5e-4, -0.001, version="2")]
    found = summaries(log)
    lines = table(list(found.values()), found, HEADER)
    (line,) = (line for line in lines if line.startswith("| ckzd resume |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:4] == ["50", "5.556", "2"]
    assert cells[8:11] == ["5.00e-04", "-0.10 %", "-0.10 %"]


def test_planes_give_back_every_bit():
    random = np.random.default_rng(0)
    before_N, words_N = random.integers(0, 2**32, (2, 1001), dtype=np.uint32)
    planes = to_planes(words_N, before_N)
    assert [len(plane) for plane in planes] == [1001] * 4
    assert (from_planes(planes, before_N) == words_N).all()


def test_planes_of_small_differences_of_either_sign_are_small():
    before_N = np.array([2**31, 5, 0], np.uint32)
    low, *high = to_planes(before_N + np.array([1, -1, -2], np.int64).astype(np.uint32), before_N)
    assert list(low) == [2, 1, 3]
    assert all(plane == bytes(3) for plane in high)


def test_names_are_moved_apart_in_their_order():
    pytest.importorskip("matplotlib")
    from comparison_plots import apart

    moved = apart([5.0, 5.0, 1.0, 6.0], least=2.0, low=0.0, high=100.0)
    assert min(moved) == moved[2]
    assert max(moved) == moved[3]
    assert all(after - before >= 2.0 - 1e-9 for before, after in pairwise(sorted(moved)))
    assert min(apart([-5.0, 3.0], 2.0, 0.0, 10.0)) == 0.0


def test_a_scaled_preset_is_coarser_and_may_be():
    fine, coarse = (scaled(PRESETS["resume"], factor) for factor in (0.5, 2.0))
    assert coarse.weight_step == 4 * fine.weight_step
    assert coarse.budget.max_weight_error == pytest.approx(16 * fine.budget.max_weight_error)
    assert scaled(PRESETS["archive"], 1.0) == PRESETS["archive"]
