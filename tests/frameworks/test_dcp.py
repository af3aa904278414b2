"""torch.distributed.checkpoint under FSDP2: replaced beside the job, which dies, restored, and resumed unmodified."""

from pathlib import Path

import pytest
import torch
from frameworks.jobs import run_job, serve

from ckzd import ensure_restored
from ckzd.formats import list_checkpoints

pytestmark = pytest.mark.slow

TRAINER = Path(__file__).parent / "dcp_trainer.py"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path, ranks):
    twin, run = tmp_path / "twin" / "run", tmp_path / "own" / "run"
    assert run_job(TRAINER, twin, 40, "", tmp_path / "expected.pt", ranks=ranks) == [0] * ranks
    assert all(run_job(TRAINER, run, 35, "", "", ranks=ranks)), "killed after step 30"
    assert [path.name for path in list_checkpoints(run)] == ["step-10", "step-20", "step-30"]
    serve(run)
    for name in ("step-10", "step-20"):
        assert {entry.name for entry in (run / name).iterdir()} == {".metadata", "ckzd.json"}
    failed = run_job(TRAINER, run, 40, run / "step-20", tmp_path / "not.pt", ranks=ranks)
    assert all(failed), "it does not go on with a fresh optimizer"
    resume = ensure_restored(run / "step-20")
    assert run_job(TRAINER, run, 40, resume, tmp_path / "resumed.pt", ranks=ranks) == [0] * ranks
    expected, resumed = torch.load(tmp_path / "expected.pt"), torch.load(tmp_path / "resumed.pt")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())
