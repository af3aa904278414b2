"""DeepSpeed without ZeRO, and without an optimizer: finished, replaced, refused while it is, restored, saved over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from frameworks.jobs import need

pytestmark = pytest.mark.slow

need("deepspeed")
ENGINE = """
import os, sys
os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "1", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0",
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[3], "MAX_JOBS": "1"}
from pathlib import Path
import deepspeed, torch
import ckzd
from ckzd.formats import completeness, is_replaced
run, has_optimizer = Path(sys.argv[1]), sys.argv[2] == "optimizer"
path = run / "global_step1"
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64))
optimizer = torch.optim.AdamW(model.parameters()) if has_optimizer else None
settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 0}}
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=True)

def step():
    if has_optimizer:
        engine.backward(engine(torch.ones(1, 64)).pow(2).mean())
        engine.step()

step()
engine.save_checkpoint(run, tag="global_step1")
assert completeness(path) is None, completeness(path)
assert ckzd.compress(path, preset="lossless", replace=True).replaced
try:
    loaded = engine.load_checkpoint(run, tag="global_step1")
except AssertionError:
    loaded = None
assert loaded is None, "it went on from nothing"
ckzd.ensure_restored(path)
assert engine.load_checkpoint(run, tag="global_step1")[0] is not None
ckzd.compress(path, preset="lossless", replace=True)
assert is_replaced(path)
step()
engine.save_checkpoint(run, tag="global_step1")
assert not is_replaced(path)
assert completeness(path) is None
assert ckzd.ensure_restored(path) == path
assert engine.load_checkpoint(run, tag="global_step1")[0] is not None
"""


@pytest.mark.parametrize("kind", ["optimizer", "none"])
def test_model_states_alone_are_a_checkpoint(tmp_path: Path, kind):
    port = "29517" if kind == "none" else "29518"
    command = [sys.executable, "-c", ENGINE, str(tmp_path / "run"), kind, port]
    finished = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=200, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
