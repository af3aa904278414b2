"""Lightning's ModelCheckpoint: replaced beside the job, which dies, restored, and resumed unmodified."""

import shutil
from pathlib import Path

import pytest
from frameworks.jobs import are_equal, are_replaced, daemon, job, need, run_job, train_until_replaced, wait_until

from ckzd import ensure_restored
from ckzd.operations.pointer import pointer_for

pytestmark = pytest.mark.slow

need("lightning")
TRAINER = Path(__file__).parent / "lightning_trainer.py"
FIRST, BEST, NEWEST = (f"epoch=0-step={step}.ckpt" for step in (10, 20, 30))


@pytest.mark.parametrize("last", ["copy", "link"])
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path, last):
    run, copy = tmp_path / "own" / "run", tmp_path / "copy" / "run"
    expected, resumed, from_last = (tmp_path / f"{name}.pt" for name in ("expected", "resumed", "last"))
    with job(TRAINER, last, tmp_path / "twin", 40, "", expected) as twin:
        train_until_replaced(TRAINER, last, run=run, replaced=[FIRST])
        assert twin.wait() == [0]
    names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert names == {f"{FIRST}.ckz", BEST, NEWEST, "last.ckpt"}, "the best and the last one stay as they are"
    assert (run / "last.ckpt").is_symlink() == (last == "link")
    shutil.copytree(run, copy, symlinks=True)
    resume = ensure_restored(run / FIRST)
    with job(TRAINER, last, copy, 40, "last", from_last) as other:
        assert run_job(TRAINER, last, run, 40, resume, resumed) == [0]
        assert other.wait() == [0]
    assert are_equal(expected, resumed)
    assert are_equal(expected, from_last)


def test_the_pointer_of_what_falls_behind_goes(tmp_path):
    """`save_top_k` deletes files, and misses those that are replaced; `best_k_models` says which."""
    run, hold = tmp_path / "own" / "run", tmp_path / "own" / "hold_35"
    hold.parent.mkdir()
    hold.touch()
    with daemon(run), job(TRAINER, "link", run, 50, "", "") as running:
        wait_until(lambda: are_replaced(run / FIRST), running)
        hold.unlink()
        wait_until(lambda: not pointer_for(run / FIRST).exists(), running)
        assert {"epoch=0-step=40.ckpt", "last.ckpt"} <= {path.name for path in run.iterdir()}
