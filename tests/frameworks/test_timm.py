"""timm's CheckpointSaver: replaced beside the job, which dies, restored, and resumed unmodified."""

from pathlib import Path

import pytest
from frameworks.jobs import are_equal, are_replaced, daemon, job, need, run_job, train_until_replaced, wait_until

from ckzd import ensure_restored
from ckzd.operations.pointer import pointer_for

pytestmark = pytest.mark.slow

need("timm")
TRAINER = Path(__file__).parent / "timm_trainer.py"


def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path):
    """The newest checkpoint and the best one have other names, hard links: they stay."""
    run = tmp_path / "own" / "run"
    expected, resumed = tmp_path / "expected.pt", tmp_path / "resumed.pt"
    with job(TRAINER, tmp_path / "twin", 40, "", expected) as twin:
        train_until_replaced(TRAINER, run=run, replaced=["checkpoint-0.pth.tar"])
        assert twin.wait() == [0]
    raw = {path.name for path in run.glob("*.pth.tar")}
    assert raw == {"checkpoint-1.pth.tar", "checkpoint-2.pth.tar", "last.pth.tar", "model_best.pth.tar"}
    assert (run / "last.pth.tar").samefile(run / "checkpoint-2.pth.tar")
    assert (run / "model_best.pth.tar").samefile(run / "checkpoint-1.pth.tar")
    resume = ensure_restored(run / "checkpoint-0.pth.tar")
    assert run_job(TRAINER, run, 40, resume, resumed) == [0]
    assert are_equal(expected, resumed)


def test_the_pointer_of_what_falls_behind_goes(tmp_path):
    """`max_history` deletes files, and misses those that are replaced; the next checkpoint says which are kept."""
    run, hold = tmp_path / "own" / "run", tmp_path / "own" / "hold_35"
    hold.parent.mkdir()
    hold.touch()
    with daemon(run), job(TRAINER, run, 60, "", "") as running:
        wait_until(lambda: are_replaced(run / "checkpoint-0.pth.tar"), running)
        hold.unlink()
        wait_until(lambda: not pointer_for(run / "checkpoint-0.pth.tar").exists(), running)
        assert (run / "checkpoint-4.pth.tar").exists()
