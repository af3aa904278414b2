"""Directories of Accelerate's save_state are one checkpoint each."""

import os

import pytest
import torch
from dcp_directories import trained
from formats.helpers import assert_lossless, saved
from safetensors.torch import save_file

import ckzd
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.formats import completeness, is_replaced, look_into, read_checkpoint


def write(path, steps=3, ranks=1):
    """As save_state does, in its order."""
    path.mkdir(parents=True)
    model, optimizer = trained(steps)
    save_file(model.state_dict(), path / "model.safetensors")
    saved(path / "optimizer.bin", optimizer.state_dict())
    saved(path / "scheduler.bin", {"last_epoch": steps})
    for rank in range(ranks):
        saved(path / f"random_states_{rank}.pkl", {"step": 0, "torch_manual_seed": torch.get_rng_state()})
    return path


@pytest.fixture
def checkpoint_3(tmp_path):
    return write(tmp_path / "checkpoints" / "checkpoint_3", ranks=2)


def test_all_files_are_one_checkpoint(checkpoint_3):
    assert look_into(checkpoint_3.parent).checkpoints == (checkpoint_3,)
    assert completeness(checkpoint_3) is None
    checkpoint = read_checkpoint(checkpoint_3)
    assert_lossless(checkpoint, checkpoint_3)
    paths = {tensor.path for tensor in checkpoint.tensors}
    assert ("random_states_1.pkl", "torch_manual_seed") in paths
    pairs = {checkpoint.tensors[t.weight].path: checkpoint.tensors[t.first].path for t in pair(
        Inputs(in_tiles(checkpoint), None)
    ).triples}  # fmt: skip
    assert pairs == {
        ("model.safetensors", "0.weight"): ("optimizer.bin", "state", "0", "exp_avg"),
        ("model.safetensors", "2.weight"): ("optimizer.bin", "state", "2", "exp_avg"),
    }


def test_it_is_complete_when_every_rank_has_written(checkpoint_3):
    (checkpoint_3 / "random_states_0.pkl").unlink()
    assert completeness(checkpoint_3) == "checkpoint_3: random_states_0.pkl missing"
    saved(checkpoint_3 / "random_states_0.pkl", {"step": 0})
    saved(checkpoint_3 / "custom_checkpoint_1.pkl", {"seen": 5})
    assert completeness(checkpoint_3) == "checkpoint_3: custom_checkpoint_0.pkl missing"
    saved(checkpoint_3 / "custom_checkpoint_0.pkl", {"seen": 4})
    assert completeness(checkpoint_3) is None
    whole = (checkpoint_3 / "optimizer.bin").read_bytes()
    (checkpoint_3 / "optimizer.bin").write_bytes(whole[:-100])
    assert "cut off" in completeness(checkpoint_3)


def test_it_is_replaced_whole_and_comes_back_bit_for_bit(checkpoint_3, tmp_path):
    later = write(checkpoint_3.parent / "checkpoint_4", 5, 2)
    before = {}
    for path in (checkpoint_3, later):
        before[path] = {entry.name: (entry.read_bytes(), entry.stat().st_mtime_ns) for entry in path.iterdir()}
        assert ckzd.compress(path, preset="lossless", store=tmp_path / "store", replace=True).replaced
        assert {entry.name for entry in path.iterdir()} == {"scheduler.bin", "ckzd.json"}
    assert {entry.name for entry in checkpoint_3.parent.iterdir()} == {"checkpoint_3", "checkpoint_4"}
    for path in (checkpoint_3, later):
        assert ckzd.ensure_restored(path) == path
        assert {e.name: (e.read_bytes(), e.stat().st_mtime_ns) for e in path.iterdir()} == before[path]


def test_one_saved_over_its_pointer_is_a_checkpoint_again(checkpoint_3):
    (checkpoint_3 / "ckzd.json").write_text("{}")
    for entry in checkpoint_3.iterdir():
        os.utime(entry, (1000, 1000))
    os.utime(checkpoint_3 / "model.safetensors", (2000, 2000))
    assert is_replaced(checkpoint_3), "half-written: random states come last"
    os.utime(checkpoint_3 / "random_states_1.pkl", (2000, 2000))
    assert not is_replaced(checkpoint_3)
