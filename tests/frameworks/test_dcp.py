"""torch.distributed.checkpoint under FSDP2: replaced beside the job, which dies, restored, and resumed unmodified."""

import shutil
from pathlib import Path

import pytest
from frameworks.jobs import are_equal, job, run_job, train_until_replaced

from ckzd import ensure_restored

pytestmark = pytest.mark.slow

TRAINER = Path(__file__).parent / "dcp_trainer.py"
LEFT = {
    "plain": {".metadata", "ckzd.json"},
    "titan": {".metadata", "ckzd.json"},
    "safetensors": {"model.safetensors.index.json", "sharded", "ckzd.json"},
}


@pytest.mark.parametrize(("layout", "ranks"), [("plain", 1), ("plain", 2), ("titan", 2), ("safetensors", 2)])
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path, layout, ranks):
    run, copy = tmp_path / "own" / "checkpoint", tmp_path / "copy" / "checkpoint"
    expected, resumed = tmp_path / "expected.pt", tmp_path / "resumed.pt"
    with job(TRAINER, layout, tmp_path / "twin", 40, "", expected, ranks=ranks) as twin:
        train_until_replaced(TRAINER, layout, run=run, replaced=["step-10", "step-20"], ranks=ranks)
        assert twin.wait() == [0] * ranks
    for name in ("step-10", "step-20"):
        assert {entry.name for entry in (run / name).iterdir()} == LEFT[layout]
    shutil.rmtree(run / "step-30")  # as if it had not been written to its end
    shutil.copytree(run, copy)
    resume = ensure_restored(run / "step-20")
    with job(TRAINER, layout, copy, 40, copy / "step-20", tmp_path / "not.pt", ranks=ranks) as unrestored:
        assert run_job(TRAINER, layout, run, 40, resume, resumed, ranks=ranks) == [0] * ranks
        assert all(unrestored.wait()), "it does not go on with a fresh optimizer, nor from an older step"
    assert are_equal(expected, resumed)
