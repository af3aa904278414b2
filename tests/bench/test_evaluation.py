"""What is measured of evaluation mode: a bias that only evaluation feels is seen, an exact restore shows nothing."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation import measure, worst_of
from small import EVALUATED
from training import checkpoint_path, divergence, load, run_series

SCRIPT = Path(__file__).with_name("evaluation.py")
KIND = "norm and dropout"
SHORT = dataclasses.replace(EVALUATED[KIND], steps=6, every=6)


def test_the_script_prints_a_row_a_checkpoint_and_its_exit_code_is_its_bar():
    command = [sys.executable, SCRIPT, "--kinds", KIND, "--steps", "20", "--every", "10"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    *_, first, second, verdict = done.stdout.splitlines()
    divergences = [float(row.removeprefix(KIND).split()[2]) for row in (first, second)]
    assert done.returncode == (max(divergences) > 1e-3)
    assert f"{max(divergences):.2e}" in verdict


def test_an_exact_restore_shows_nothing():
    (row,) = measure(SHORT, "lossless")
    assert (row.divergence, row.vector, row.matrix) == (0, (0, ""), (0, ""))


def test_a_bias_before_the_norm_shows_in_evaluation_alone(tmp_path):
    list(run_series(SHORT, tmp_path))
    original = checkpoint_path(tmp_path, 6)
    state = torch.load(original, weights_only=True)
    state["model"]["0.bias"] *= 1.25
    torch.save(state, moved := tmp_path / "moved.pt")
    assert worst_of(original, moved, matrices=False) == (pytest.approx(0.25), "0.bias")
    assert worst_of(original, moved, matrices=True) == (0, "")
    (model, optimizer, step), (other, its_optimizer, _) = load(SHORT, original), load(SHORT, moved)
    assert divergence(SHORT, model, other) > 1e-3
    losses = [SHORT.train_step(*both, step) for both in ((model, optimizer), (other, its_optimizer))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("kind", EVALUATED)
def test_every_network_learns_and_repeats_itself(kind):
    job = EVALUATED[kind]
    pairs = job.make(), job.make()
    losses = [[job.train_step(model, optimizer, step) for step in range(2)] for model, optimizer in pairs]
    assert losses[0] == losses[1]


def test_the_average_follows_and_is_what_evaluation_sees():
    job = EVALUATED["depthwise, averaged"]
    model, optimizer = job.make()
    job.train_step(model, optimizer, 0)
    state = model.state_dict()
    moved = {
        name
        for name in state
        if name.startswith("model_ema.") and not torch.equal(state[name], state[name.replace("model_ema.", "model.")])
    }
    assert any(name.endswith("weight") for name in moved)
    before = next(job.heldout(model))[0]
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.zero_()
    assert torch.equal(next(job.heldout(model))[0], before)
