"""Accelerate's save_state: replaced beside the job, which dies, restored, and resumed unmodified."""

from pathlib import Path

import pytest
import torch
from frameworks.jobs import run_job, serve

from ckzd import ensure_restored
from ckzd.formats import list_checkpoints

pytestmark = pytest.mark.slow

pytest.importorskip("accelerate")
TRAINER = Path(__file__).parent / "accelerate_trainer.py"


def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path):
    twin, own = tmp_path / "twin", tmp_path / "own"
    assert run_job(TRAINER, twin, 40, "", tmp_path / "expected.pt") == [0]
    assert all(run_job(TRAINER, own, 35, "", "")), "killed after step 30"
    run = own / "checkpoints"
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint_0", "checkpoint_1", "checkpoint_2"]
    serve(run, store=tmp_path / "store")
    for name in ("checkpoint_0", "checkpoint_1"):
        assert {entry.name for entry in (run / name).iterdir()} == {
            "ckzd.json", "scheduler.bin", "custom_checkpoint_0.pkl"
        }  # fmt: skip
    assert {entry.name for entry in run.iterdir()} == {f"checkpoint_{number}" for number in range(3)}
    assert all(run_job(TRAINER, own, 40, run / "checkpoint_1", tmp_path / "not.pt")), "it fails loudly, not fresh"
    resume = ensure_restored(run / "checkpoint_1")
    assert run_job(TRAINER, own, 40, resume, tmp_path / "resumed.pt") == [0]
    expected, resumed = torch.load(tmp_path / "expected.pt"), torch.load(tmp_path / "resumed.pt")
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())
