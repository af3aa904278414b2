"""Megatron-Core's dist_checkpointing on two ranks: replaced, restored, loaded unmodified."""

from pathlib import Path

import pytest
from frameworks.jobs import need, run_job, serve

from ckzd import ensure_restored
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.formats import list_checkpoints, read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

need("megatron.core")
TRAINER = Path(__file__).parent / "megatron_trainer.py"


def test_what_was_saved_is_loaded_after_it_was_replaced(tmp_path):
    run = tmp_path / "own" / "run"
    paths = [run / f"iter_{iteration:07d}" for iteration in (10, 20, 30)]
    for path in paths:
        assert run_job(TRAINER, "save", path, ranks=2) == [0, 0]
    (run / "latest_checkpointed_iteration.txt").write_text("20")
    assert list_checkpoints(run) == paths
    checkpoint = read_checkpoint(paths[0])
    triples = pair(Inputs(in_tiles(checkpoint), None)).triples
    assert [checkpoint.tensors[triple.weight].path for triple in triples] == [("fp32_param", "model.w")]
    serve(run)
    assert [(path / "ckzd.json").exists() for path in paths] == [True, False, False], "the tracker names the second"
    assert all(run_job(TRAINER, "load", paths[0], ranks=2))
    ensure_restored(paths[0])
    assert run_job(TRAINER, "load", paths[0], ranks=2) == [0, 0]
