"""DeepSpeed's ZeRO on two ranks: replaced beside the job, which dies, restored, and resumed unmodified."""

from pathlib import Path

import pytest
import torch
from frameworks.jobs import run_job, serve

from ckzd import ensure_restored
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.formats import list_checkpoints, read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

pytest.importorskip("deepspeed")
TRAINER = Path(__file__).parent / "deepspeed_trainer.py"
RANKS = 2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path, stage):
    twin, run = tmp_path / "twin", tmp_path / "own" / "run"
    assert run_job(TRAINER, stage, twin, 40, "", tmp_path / "expected", ranks=RANKS) == [0] * RANKS
    assert all(run_job(TRAINER, stage, run, 35, "", "", ranks=RANKS)), "killed after step 30"
    found = list_checkpoints(run)
    assert [path.name for path in found] == ["global_step10", "global_step20", "global_step30"]
    assert {parameter for parameter, _ in matrices(found[0])} == {"0.weight", "2.weight"}
    serve(run)
    for name in ("global_step10", "global_step20"):
        assert (run / name / "ckzd.json").exists()
        assert not list((run / name).glob("*optim_states.pt"))
    failed = run_job(TRAINER, stage, run, 40, "global_step20", tmp_path / "not", ranks=RANKS)
    assert all(failed), "it does not go on with a fresh optimizer"
    ensure_restored(run / "global_step20")
    assert run_job(TRAINER, stage, run, 40, "global_step20", tmp_path / "resumed", ranks=RANKS) == [0] * RANKS
    for rank in range(RANKS):
        expected, resumed = (torch.load(tmp_path / f"{name}.{rank}") for name in ("expected", "resumed"))
        assert all(torch.equal(*pair) for pair in zip(expected, resumed, strict=True))


def matrices(path: Path) -> set[tuple[str, tuple[int, ...]]]:
    """Names of the weights that have rows and columns and moments that are theirs, without what part of them it is."""
    checkpoint = read_checkpoint(path)
    weights = [checkpoint.tensors[triple.weight] for triple in pair(Inputs(in_tiles(checkpoint), None)).triples]
    return {(tensor.path[-1].partition("[")[0], tensor.shape[1:]) for tensor in weights if len(tensor.shape) > 1}
