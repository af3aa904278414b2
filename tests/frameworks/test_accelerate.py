"""Accelerate's save_state: replaced beside the job, which dies, restored, and resumed unmodified."""

import shutil
from pathlib import Path

import pytest
from frameworks.jobs import are_equal, job, need, run_job, train_until_replaced

from ckzd import ensure_restored
from ckzd.formats import list_checkpoints

pytestmark = pytest.mark.slow

need("accelerate")
TRAINER = Path(__file__).parent / "accelerate_trainer.py"


def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path):
    """Nothing else may lie beside its checkpoints: it takes every name for one of them."""
    own, copy = tmp_path / "own" / "project", tmp_path / "copy" / "project"
    expected, resumed = tmp_path / "expected.pt", tmp_path / "resumed.pt"
    run = own / "checkpoints"
    with job(TRAINER, tmp_path / "twin", 40, "", expected) as twin:
        replaced = [f"checkpoints/checkpoint_{number}" for number in range(2)]
        train_until_replaced(TRAINER, run=own, replaced=replaced, store=own / ".ckzd")
        assert twin.wait() == [0]
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint_2"]
    for name in ("checkpoint_0", "checkpoint_1"):
        assert {entry.name for entry in (run / name).iterdir()} == {
            "ckzd.json", "scheduler.bin", "custom_checkpoint_0.pkl"
        }  # fmt: skip
    assert {entry.name for entry in run.iterdir()} == {f"checkpoint_{number}" for number in range(3)}
    shutil.copytree(own, copy)
    resume = ensure_restored(run / "checkpoint_1")
    with job(TRAINER, copy, 40, copy / "checkpoints" / "checkpoint_1", tmp_path / "not.pt") as unrestored:
        assert run_job(TRAINER, own, 40, resume, resumed) == [0]
        assert all(unrestored.wait()), "it fails loudly, not fresh"
    assert are_equal(expected, resumed)
