"""FSDP and DeepSpeed under Trainer and Accelerate, directories in a checkpoint's: all of it comes back as one."""

import shutil
from pathlib import Path

import pytest
from frameworks.jobs import are_equal, job, need, run_job, train_until_replaced

from ckzd import ensure_restored

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

need("transformers", "accelerate", "deepspeed", "peft")
TRAINER = Path(__file__).parent / "nested_trainer.py"
KINDS = {  # ranks, what checkpoints are called, in which directories their tensors lie
    "trainer": (1, "checkpoint-{}", ["global_step{}"]),
    "accelerate": (1, "checkpoint_{}", ["pytorch_model"]),
    "fsdp": (2, "checkpoint_{}", ["optimizer_0", "pytorch_model_fsdp_0"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path, kind):
    ranks, name, folders = KINDS[kind]
    run, copy = tmp_path / "own" / "run", tmp_path / "copy" / "run"
    expected, resumed = tmp_path / "expected.pt", tmp_path / "resumed.pt"
    with job(TRAINER, kind, tmp_path / "twin", 40, "", expected, ranks=ranks) as twin:
        replaced = [name.format(step) for step in (10, 20)]
        train_until_replaced(TRAINER, kind, run=run, replaced=replaced, ranks=ranks)
        assert twin.wait() == [0] * ranks
    path = run / name.format(20)
    inside = [path / folder.format(20) for folder in folders]
    assert not [file for folder in inside for file in folder.iterdir() if file.name != ".metadata"]
    shutil.copytree(run, copy)
    resume = ensure_restored(path)
    with job(TRAINER, kind, copy, 40, copy / path.name, tmp_path / "not.pt", ranks=ranks) as unrestored:
        assert run_job(TRAINER, kind, run, 40, resume, resumed, ranks=ranks) == [0] * ranks
        assert all(unrestored.wait()), "it fails loudly, and never with a fresh optimizer"
    assert are_equal(expected, resumed)
