"""Directories in a checkpoint's directory, each of whoever wrote it: all of it is one checkpoint."""

import json
import os
import shutil
import time

import pytest
import torch
from dcp_directories import state_of, trained, write_dcp
from formats.helpers import assert_lossless, saved
from formats.test_deepspeed import write as write_deepspeed
from making import tree_of
from safetensors.torch import save_file

import ckzd
from ckzd import durable
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.errors import BadCheckpoint, CkzdError
from ckzd.formats import completeness, is_replaced, left_alone, look_into, read_checkpoint
from ckzd.formats.listing import Listing
from ckzd.operations.replace import empty_trash
from ckzd.store import Store, default_store


def write_fsdp(path, step, state_file="trainer_state.json"):
    """As Trainer (or Accelerate, with `random_states_0.pkl`) saves under FSDP: two directories of DCP in one."""
    path.mkdir(parents=True)
    model, optimizer = trained(step)
    state = state_of(model, optimizer)
    of_model = {name: value for name, value in state.items() if name.startswith("model.")}
    write_dcp(path / "pytorch_model_fsdp_0", 2, of_model)
    write_dcp(path / "optimizer_0", 2, {name: state[name] for name in state.keys() - of_model.keys()})
    saved(path / "scheduler.pt", {"last_epoch": step})
    if state_file.endswith(".json"):
        (path / state_file).write_text(json.dumps({"global_step": step}))
    else:
        saved(path / state_file, {"step": 0})
    return path


def write_with_deepspeed(path, step):
    """As Trainer saves under DeepSpeed."""
    write_deepspeed(path / f"global_step{step}", 1, step)
    save_file({"a.weight": torch.ones(48, 32, dtype=torch.bfloat16)}, path / "model.safetensors")
    (path / "latest").write_text(f"global_step{step}")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def write_megatron(path, step):
    """As Megatron's older format, two pipeline stages."""
    for rank in range(2):
        model, optimizer = trained(step + rank)
        (path / f"mp_rank_00_{rank:03d}").mkdir(parents=True)
        states = {"iteration": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        saved(path / f"mp_rank_00_{rank:03d}" / "model_optim_rng.pt", states)
    (path.parent / "latest_checkpointed_iteration.txt").write_text(str(step))
    return path


def write_parts(path, step):
    """A step's directory with one of DCP for the model and one for the optimizer."""
    state = state_of(*trained(step))
    of_model = {name: value for name, value in state.items() if name.startswith("model.")}
    write_dcp(path / "model", 2, of_model)
    write_dcp(path / "optimizer", 2, {name: state[name] for name in state.keys() - of_model.keys()} | {"step": step})
    return path


def write_weights(path, step):
    """As HuggingFaceStorageWriter: what each rank has, and all of it together."""
    weights = trained(step)[0].state_dict()
    (path / "sharded").mkdir(parents=True)
    for rank in range(2):
        rows = {name: value.chunk(2)[rank].clone() for name, value in weights.items()}
        save_file(rows, path / "sharded" / f"shard-0000{rank + 1}-model-00001-of-00001.safetensors")
    save_file(weights, path / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


WRITERS = {
    "fsdp": (write_fsdp, "checkpoint-{}"),
    "accelerate": (lambda path, step: write_fsdp(path, step, "random_states_0.pkl"), "checkpoint_{}"),
    "deepspeed": (write_with_deepspeed, "checkpoint-{}"),
    "megatron": (write_megatron, "iter_{:07d}"),
    "parts": (write_parts, "step-{}"),
    "weights": (write_weights, "step-{}"),
}


@pytest.fixture(params=WRITERS)
def kind(request):
    return request.param


def write(run, kind, step):
    writer, name = WRITERS[kind]
    return writer(run / name.format(step), step)


def test_it_is_one_checkpoint_and_rebuilt_exactly(tmp_path, kind):
    path = write(tmp_path / "run", kind, 5)
    assert look_into(path.parent).checkpoints == (path,)
    assert look_into(path.parent).folders == ()
    assert completeness(path) is None
    checkpoint = read_checkpoint(path)
    assert checkpoint.step == 5
    assert_lossless(checkpoint, path)
    assert [name for name, _ in checkpoint.folders] == sorted(p.name for p in path.iterdir() if p.is_dir())
    inside = next(p for p in path.rglob("*") if p.is_file() and p.parent != path)
    assert left_alone(path) is None
    assert left_alone(inside).path == left_alone(inside.parent).path == path


def test_weights_have_the_moments_that_lie_in_other_directories(tmp_path, kind):
    checkpoint = read_checkpoint(write(tmp_path / "run", kind, 5))
    pairs = [
        (checkpoint.tensors[t.weight].path, checkpoint.tensors[t.first].path)
        for t in pair(Inputs(in_tiles(checkpoint), None)).triples
    ]
    if kind == "weights":
        assert pairs == []
    elif kind == "megatron":
        names = {"0.weight", "2.weight"}
        assert {weight[-1] for weight, _ in pairs} == names
        assert {weight[0] for weight, _ in pairs} == {"mp_rank_00_000", "mp_rank_00_001"}
        assert all(weight[:2] == first[:2] for weight, first in pairs)
    elif kind == "deepspeed":
        assert {weight[-1] for weight, _ in pairs} == {"a.weight", "b.weight"}
        assert all(weight[0] == first[0] == "global_step#" for weight, first in pairs)
    else:
        assert {weight[-1] for weight, _ in pairs} == {"0.weight", "2.weight"}
        assert all(weight[-1] == first[-2] for weight, first in pairs)


def test_it_is_complete_when_each_directory_is(tmp_path):
    path = write_fsdp(tmp_path / "checkpoint-5", 5)
    metadata = (path / "optimizer_0" / ".metadata").read_bytes()
    (path / "optimizer_0" / ".metadata").unlink()
    assert completeness(path) == "optimizer_0: .metadata missing"
    (path / "optimizer_0" / ".metadata").write_bytes(metadata)
    (path / "trainer_state.json").unlink()
    assert completeness(path) == "checkpoint-5: trainer_state.json missing"
    (path / "trainer_state.json").write_text('{"global_step": 5}')
    assert completeness(path) is None
    (path / "optimizer_0" / ".metadata.tmp").touch()
    assert "'optimizer_0/.metadata.tmp' is still being written" in completeness(path)
    (path / "optimizer_0" / ".metadata.tmp").unlink()


def test_megatron_s_is_complete_when_the_tracker_says_so_and_every_rank_is_there(tmp_path):
    path = write_megatron(tmp_path / "iter_0000020", 20)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    assert completeness(path) is None
    tracker.write_text("10")
    assert "does not say that it is finished: '10'" in completeness(path)
    tracker.unlink()
    assert "does not say that it is finished" in completeness(path)
    tracker.write_text("30")
    shutil.copytree(path / "mp_rank_00_001", path / "mp_rank_01_001")
    assert completeness(path) == "iter_0000020: expected directories of 4 model ranks, got 3"


def test_names_of_tensors_are_alike_from_step_to_step(tmp_path, kind):
    one, other = (read_checkpoint(write(tmp_path / "run", kind, step)) for step in (3, 40))
    assert [tensor.path for tensor in one.tensors] == [tensor.path for tensor in other.tensors]


@pytest.mark.parametrize("exchange", [True, False])
def test_it_is_replaced_and_restored_as_one(tmp_path, kind, exchange, monkeypatch):
    if not exchange:
        monkeypatch.setattr(durable, "exchange", no_exchange)
    run = tmp_path / "run"
    first, path = (write(run, kind, step) for step in (3, 4))
    private = next(p for p in path.iterdir() if p.is_dir())
    private.chmod(0o700)
    for place in (path, *(p for p in path.rglob("*") if p.is_dir())):
        os.utime(place, ns=(10**18, 10**18 + 7))
    before = tree_of(path)
    ckzd.compress(first, preset="lossless")
    report = ckzd.compress(path, preset="lossless", replace=True)
    assert report.reference is not None
    assert is_replaced(path)
    assert look_into(run).checkpoints == (first,)
    left = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    tensors = {file["name"] for file in ckzd.inspect(path)["files"] if file["tensors"]}
    assert left == {"ckzd.json"} | {n for n in before if (path / n).is_file()} - tensors
    with pytest.raises((BadCheckpoint, CkzdError)):
        read_checkpoint(path)
    empty_trash(Store.open(default_store(run)), 0.0, 4e9)
    ckzd.restore(path, output=tmp_path / "elsewhere")
    ckzd.ensure_restored(path)
    assert tree_of(tmp_path / "elsewhere") == tree_of(path) == before
    assert completeness(path) is None


def no_exchange(*_):
    raise OSError(22, "Invalid argument")


def test_small_files_in_it_may_be_edited_meanwhile(tmp_path):
    path = write_with_deepspeed(tmp_path / "run" / "checkpoint-4", 4)
    (path / "global_step4" / "notes.txt").write_text("of the run")
    ckzd.compress(path, preset="lossless", replace=True)
    (path / "global_step4" / "notes.txt").write_text("edited")
    (path / "global_step4" / "more" / "deeper").mkdir(parents=True)
    (path / "global_step4" / "more" / "of_it.txt").write_text("new")
    ckzd.restore(path)
    assert (path / "global_step4" / "notes.txt").read_text() == "edited"
    assert (path / "global_step4" / "more" / "of_it.txt").read_text() == "new"
    assert (path / "global_step4" / "mp_rank_00_model_states.pt").exists()
    assert not (path / "ckzd.json").exists()


def test_what_is_saved_over_its_pointer_is_a_checkpoint_again(tmp_path):
    path = write_parts(tmp_path / "run" / "step-4", 4)
    ckzd.compress(path, preset="lossless", replace=True)
    assert is_replaced(path)
    write_parts(tmp_path / "step-4", 4)
    for file in (tmp_path / "step-4").rglob("*"):
        if file.is_file():
            shutil.copyfile(file, path / file.relative_to(tmp_path / "step-4"))
    assert not is_replaced(path)
    assert look_into(path.parent).checkpoints == (path,)


def test_a_directory_that_comes_or_goes_while_it_is_read_is_seen(tmp_path, monkeypatch):
    from ckzd.errors import SourceChanged
    from ckzd.formats import directory

    path = write_fsdp(tmp_path / "checkpoint-5", 5)
    read = directory.whole.read

    def reads(listing, views):
        (path / "optimizer_0" / "more").mkdir()
        return read(listing, views)

    monkeypatch.setattr(directory.whole, "read", reads)
    with pytest.raises(SourceChanged, match="came or went"):
        read_checkpoint(path)


def test_the_directories_of_a_large_listing_are_told_apart_in_one_go(tmp_path):
    """As many as may be there; each time all of them were looked through for each."""
    status = tmp_path.stat()
    folders = {"": status} | {name: status for n in range(3300) for name in (f"a{n}", f"a{n}/b", f"a{n}/b/c")}
    names = tuple(sorted(f"{folder}/x".removeprefix("/") for folder in folders))
    began = time.process_time()
    parts = Listing(tmp_path, names, folders).parts()
    assert time.process_time() - began < 1
    assert parts.keys() == folders.keys()
    assert (parts["a7"].path, parts["a7"].names, list(parts["a7"].folders)) == (
        tmp_path / "a7",
        ("x",),
        ["", "b", "b/c"],
    )
    assert (parts[""].names, parts[""].folders) == (("x",), folders)
