"""DeepSpeed's ZeRO on two ranks: replaced beside the job, which dies, restored, and resumed unmodified."""

import shutil
from pathlib import Path

import pytest
import torch
from frameworks.jobs import job, need, run_job, train_until_replaced

from ckzd import ensure_restored
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.formats import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

need("deepspeed")
TRAINER = Path(__file__).parent / "deepspeed_trainer.py"
RANKS = 2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path, stage):
    run, copy = tmp_path / "own" / "run", tmp_path / "copy" / "run"
    with job(TRAINER, stage, tmp_path / "twin", 40, "", tmp_path / "expected", ranks=RANKS) as twin:
        replaced = ["global_step10", "global_step20"]
        train_until_replaced(TRAINER, stage, run=run, replaced=replaced, ranks=RANKS)
        assert twin.wait() == [0] * RANKS
    assert {parameter for parameter, _ in matrices(run / "global_step30")} == {"0.weight", "2.weight"}
    for name in ("global_step10", "global_step20"):
        assert not list((run / name).glob("*optim_states.pt"))
    shutil.copytree(run, copy)
    ensure_restored(run / "global_step20")
    with job(TRAINER, stage, copy, 40, "global_step20", tmp_path / "not", ranks=RANKS) as unrestored:
        assert run_job(TRAINER, stage, run, 40, "global_step20", tmp_path / "resumed", ranks=RANKS) == [0] * RANKS
        assert all(unrestored.wait()), "it does not go on with a fresh optimizer"
    for rank in range(RANKS):
        expected, resumed = (torch.load(tmp_path / f"{name}.{rank}") for name in ("expected", "resumed"))
        assert all(torch.equal(*pair) for pair in zip(expected, resumed, strict=True))


def matrices(path: Path) -> set[tuple[str, tuple[int, ...]]]:
    """Names of the weights that have rows and columns and moments that are theirs, without what part of them it is."""
    checkpoint = read_checkpoint(path)
    weights = [checkpoint.tensors[triple.weight] for triple in pair(Inputs(in_tiles(checkpoint), None)).triples]
    return {(tensor.path[-1].partition("[")[0], tensor.shape[1:]) for tensor in weights if len(tensor.shape) > 1}
