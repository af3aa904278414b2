"""What is measured of young runs: a restore that is exact counts as such, and one that is not shows where it is not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import YOUNG, SmallJob, mlp, regression
from training import checkpoint_path, run_series
from young import Optimizer, Row, compared, measure

SCRIPT = Path(__file__).with_name("young.py")


def changed(path, change):
    """A copy of a checkpoint whose optimizer's states went through `change`."""
    state = torch.load(path, weights_only=True)
    for moments in state["optimizer"]["state"].values():
        change(moments)
    torch.save(state, copy := path.with_suffix(".changed"))
    return copy


@pytest.fixture
def checkpoint(tmp_path):
    job = SmallJob(mlp, lambda size, seed: regression(0, size, seed), steps=5, every=5)
    list(run_series(job, tmp_path))
    return checkpoint_path(tmp_path, 5)


def test_the_script_prints_a_row_a_checkpoint_and_its_exit_code_tells_whether_one_misses_a_bar():
    command = [sys.executable, SCRIPT, "--kinds", "mlp", "--optimizers", "adam", "--steps", "20", "--every", "10"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    _, header, *rows, verdict = done.stdout.splitlines()
    assert [row.split()[:3] for row in rows] == [["mlp", "adam", f"step_{step:06d}"] for step in (10, 20)]
    missing = sum(len(row) > header.index("missed") for row in rows)
    assert verdict.startswith(f"{missing} of 2 miss a bar")
    assert done.returncode == (missing > 0)


def test_an_exact_restore_meets_every_bar():
    (row,) = measure(SmallJob(mlp, lambda size, seed: regression(0, size, seed), steps=5, every=5), "lossless")
    assert (row.gaps["resume_gap"], row.gaps["heldout_gap"]) == (0, 0)
    assert row.optimizer == Optimizer(1, 1, 1, 1)
    assert row.missed() == []


def test_second_moments_that_grew_show_in_sums_and_lengths(checkpoint):
    seen = compared(checkpoint, changed(checkpoint, lambda moments: moments["exp_avg_sq"].mul_(4)))
    assert seen.worst_sum == pytest.approx(4, rel=1e-3)
    assert seen.worst_median == pytest.approx(0.5, rel=1e-2)
    missed = Row("", 1.0, {"resume_gap": 0.0, "heldout_gap": 0.0}, seen).missed()
    assert missed == ["length", "worst length", "median", "v"]


def test_first_moments_that_are_gone_show_in_lengths_alone(checkpoint):
    seen = compared(checkpoint, changed(checkpoint, lambda moments: moments["exp_avg"].zero_()))
    assert (seen.length, seen.worst_length, seen.worst_median, seen.worst_sum) == (0, 0, 0, 1)


@pytest.mark.parametrize("kind", YOUNG)
def test_every_kind_learns_and_repeats_itself(kind, tmp_path):
    job = YOUNG[kind]
    (model, optimizer), (again, other) = job.make(), job.make()
    losses = [[job.train_step(m, o, step) for step in range(3)] for m, o in ((model, optimizer), (again, other))]
    assert losses[0] == losses[1]
    before = next(job.heldout(job.make()[0]))[1]
    assert next(job.heldout(model))[1] < before
