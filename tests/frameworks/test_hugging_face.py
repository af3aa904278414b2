"""Hugging Face's Trainer: replaced beside the job, which dies, restored, and resumed unmodified."""

import shutil
from pathlib import Path

import pytest
from frameworks.jobs import (
    are_equal,
    are_replaced,
    daemon,
    job,
    need,
    run_job,
    train_until_replaced,
    wait_until,
)

from ckzd import ensure_restored
from ckzd.formats import list_checkpoints

pytestmark = pytest.mark.slow

need("transformers", "accelerate", "peft")
TRAINER = Path(__file__).parent / "hf_trainer.py"


@pytest.mark.parametrize("kind", ["sharded", "adapters"])
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path, kind):
    """Tied weights in several safetensors files; adapters of a frozen model."""
    run, copy = tmp_path / "own" / "run", tmp_path / "copy" / "run"
    expected, resumed = tmp_path / "expected.pt", tmp_path / "resumed.pt"
    with job(TRAINER, kind, tmp_path / "twin", 40, "", expected) as twin:
        train_until_replaced(TRAINER, kind, run=run, replaced=["checkpoint-10", "checkpoint-20"])
        assert twin.wait() == [0]
    left = {path.name for path in (run / "checkpoint-20").iterdir()}
    assert not [name for name in left if name.endswith((".safetensors", ".pth")) or name == "optimizer.pt"]
    assert ("model.safetensors.index.json" in left) == (kind == "sharded")
    shutil.copytree(run, copy)
    resume = ensure_restored(run / "checkpoint-20")
    with job(TRAINER, kind, copy, 40, copy / "checkpoint-20", tmp_path / "not.pt") as unrestored:
        assert run_job(TRAINER, kind, run, 40, resume, resumed) == [0]
        assert all(unrestored.wait()), "it fails loudly, and never with a fresh optimizer"
    assert are_equal(expected, resumed)


def test_what_is_rotated_is_the_oldest_and_never_the_best(tmp_path):
    """`save_total_limit` goes by the times of directories, `load_best_model_at_end` by what trainer_state.json says."""
    run, hold = tmp_path / "own" / "run", tmp_path / "own" / "hold_35"
    hold.parent.mkdir()
    hold.touch()
    with daemon(run), job(TRAINER, "best", run, 60, "", tmp_path / "best.pt") as running:
        wait_until((run / "checkpoint-30").exists, running)
        assert [path.name for path in list_checkpoints(run)] == ["checkpoint-20", "checkpoint-30"]
        hold.unlink()
        assert running.wait() == [0]
    assert {path.name for path in run.iterdir()} == {"checkpoint-20", "checkpoint-60"}
    assert not (run / "checkpoint-20" / "ckzd.json").exists(), "the best one was loaded at the end"
    best = run_job(TRAINER, "best", tmp_path / "twin", 60, "", tmp_path / "expected.pt")
    assert best == [0]
    assert are_equal(tmp_path / "expected.pt", tmp_path / "best.pt")


def test_replaced_checkpoints_are_rotated_with_the_others(tmp_path):
    run, hold = tmp_path / "own" / "run", tmp_path / "own" / "hold_35"
    hold.parent.mkdir()
    hold.touch()
    with daemon(run), job(TRAINER, "sharded", run, 50, "", "") as running:
        wait_until(lambda: are_replaced(run / "checkpoint-10", run / "checkpoint-20"), running)
        hold.unlink()
        wait_until(lambda: (run / "checkpoint-40").exists() and not (run / "checkpoint-10").exists(), running)
        names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
        assert names == {"checkpoint-20", "checkpoint-30", "checkpoint-40"}
