"""The runs of another kind: what the script prints, and that they are what it says they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from others import JOBS
from training import checkpoint_path, nudge, quality, run_series

BENCH = Path(__file__).parent
KINDS = ["vit-tiny", "convnet-tiny", "experts-tiny"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_trained_archived_and_measured(kind, tmp_path):
    command = [sys.executable, BENCH / "others.py", tmp_path / "runs", tmp_path / "work", "--kind", kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    _, *lines, measured, last = map(json.loads, done.stdout.splitlines())
    archived = [line for line in lines if "archive_bytes" in line]
    assert [line["step"] for line in archived] == [5, 10, 15, 20]
    original = checkpoint_path(tmp_path / "runs" / kind, 20)
    assert last["ratio_last"][-1] == pytest.approx(original.stat().st_size / archived[-1]["archive_bytes"], abs=0.01)
    originals = sum(checkpoint_path(tmp_path / "runs" / kind, line["step"]).stat().st_size for line in archived)
    archives = sum(line["archive_bytes"] for line in archived)
    assert last["ratio_whole"] == pytest.approx(originals / archives, abs=0.01)
    assert measured["restored_step"] == 10
    assert -1e-6 < measured["kl"] < 1e-3  # of so young a run it is as good as 0: rounding decides its sign
    assert abs(measured["heldout_gap"]) < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_repeats_the_uninterrupted_one(kind, tmp_path):
    job = JOBS[kind]
    whole = dict(run_series(job, tmp_path))
    last = checkpoint_path(tmp_path, job.steps)
    model = torch.load(last, weights_only=True)["model"]
    last.unlink()
    assert dict(run_series(job, tmp_path)) == {job.steps: whole[job.steps]}
    resumed = torch.load(last, weights_only=True)["model"]
    assert all(torch.equal(resumed[name], tensor) for name, tensor in model.items())
    assert list(run_series(job, tmp_path)) == []


def test_quality_sees_no_difference_between_equals_and_a_large_one_between_others(tmp_path):
    job = JOBS["vit-tiny"]
    list(run_series(job, tmp_path))
    first, last = checkpoint_path(tmp_path, job.every), checkpoint_path(tmp_path, job.steps)
    same = quality(job, last, last, resume_steps=2)
    other = quality(job, last, first, resume_steps=2)
    assert (same["kl"], same["resume_gap"], same["heldout_gap"]) == (0, 0, 0)
    assert abs(same["resume_gap_control"]) < 1e-5
    assert other["kl"] > 1e-6
    assert other["heldout_gap"] > abs(other["heldout_gap_control"])


def test_the_control_moves_every_weight_by_its_last_bits():
    (model, _), (moved, _) = JOBS["convnet-tiny"].make(), JOBS["convnet-tiny"].make()
    nudge(moved)
    pairs = list(zip(model.parameters(), moved.parameters(), strict=True))
    assert all((before != after).sum() == before.count_nonzero() for before, after in pairs)
    assert all(torch.allclose(before, after, rtol=2.5e-7, atol=0) for before, after in pairs)
