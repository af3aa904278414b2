"""Directories of torch.distributed.checkpoint are one checkpoint, or are refused whole."""

import os
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from dcp_directories import Writer, state_of, trained, write_dcp
from formats.helpers import assert_lossless, rebuilt
from safetensors.torch import save_file

import ckzd
from ckzd.checkpoint import ParamGroup
from ckzd.codec.analysis import tiles
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.errors import BadCheckpoint
from ckzd.formats import completeness, is_replaced, left_alone, look_into, read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # torch's, without ranks


@pytest.fixture
def whole(tmp_path):
    """Written by torch itself."""
    path = tmp_path / "run" / "step-7"
    model, optimizer = trained()
    dcp.save({**state_of(model, optimizer), "step": 7}, checkpoint_id=path, no_dist=True)
    return path


@pytest.fixture
def sharded(tmp_path):
    """As three ranks write it."""
    return write_dcp(tmp_path / "run" / "step-8", 3, state_of(*trained()))


def test_what_torch_writes_is_one_checkpoint(whole):
    checkpoint = read_checkpoint(whole)
    assert completeness(whole) is None
    assert (checkpoint.name, checkpoint.is_directory, checkpoint.step) == ("step-7", True, 7)
    assert [layout.name for layout in checkpoint.files] == [".metadata", "__0_0.distcp"]
    shapes = {tensor.path: tensor.shape for tensor in checkpoint.tensors}
    for name, shape in (("0.weight", (64, 64)), ("0.bias", (64,)), ("2.weight", (64, 64)), ("2.bias", (64,))):
        assert shapes.pop(("model", name)) == shape
        assert shapes.pop(("optimizer", "state", name, "exp_avg")) == shape
        assert shapes.pop(("optimizer", "state", name, "exp_avg_sq")) == shape
    assert shapes == {}
    (optimizer,) = checkpoint.optimizers
    assert optimizer.path == ("optimizer",)
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    assert optimizer.groups == tuple(ParamGroup((name,), None, (0.9, 0.95), 1e-3, 1e-8, 3) for name in names)
    assert_lossless(checkpoint, whole)


def triples_of(checkpoint):
    """Paths of weights and their moments."""
    found = pair(Inputs(in_tiles(checkpoint), None)).triples
    return {tuple(checkpoint.tensors[number].path for number in (t.weight, *t.moments)) for t in found}


def triple(name, chunk=""):
    states = (("optimizer", "state", name + chunk, key) for key in ("exp_avg", "exp_avg_sq"))
    return (("model", name + chunk), *states)


def test_a_sharded_tensor_is_one_tensor_whatever_the_number_of_ranks(tmp_path, whole, sharded):
    """Vectors too, of which a rank has less than what is worth a name."""
    checkpoint = read_checkpoint(sharded)
    assert_lossless(checkpoint, sharded)
    assert triples_of(checkpoint) == {triple(f"{name}.weight") for name in (0, 2)}
    known = {tensor.path: tensor for tensor in read_checkpoint(whole).tensors}
    for ranks in (2, 3, 16):
        found = read_checkpoint(write_dcp(tmp_path / f"step-{ranks}", ranks, state_of(*trained()))).tensors
        assert {tensor.path: tensor for tensor in found} == known


def written(path, ranks, cuts, shape=(6, 48, 32)):
    """One tensor in chunks along so many of its dimensions."""
    value = torch.arange(prod(shape)).float().reshape(shape)
    writer = Writer(path, ranks)
    chunks = [((0,) * len(shape), value)]
    for axis in cuts:
        half = -(-shape[axis] // 2)
        chunks = [((*at[:axis], at[axis] + number * half, *at[axis + 1 :]), piece) for at, chunk in chunks
                  for number, piece in enumerate(torch.chunk(chunk, 2, axis))]  # fmt: skip
    for number, (at, chunk) in enumerate(chunks):
        writer.put_chunk("w", number % ranks, at, chunk, shape)
    return writer.finish(), value


@pytest.mark.parametrize("cuts", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_chunks_of_any_form(tmp_path, cuts):
    """Cut by experts, by rows, by columns, and by several of these."""
    path, value = written(tmp_path / "step-1", 3, cuts)
    checkpoint = read_checkpoint(path)
    assert [(tensor.path, tensor.shape) for tensor in checkpoint.tensors] == [(("w",), (6, 48, 32))]
    assert bytes(checkpoint.payload(0)) == value.numpy().tobytes()
    tiled = in_tiles(checkpoint)
    assert b"".join(map(tiled.payload, range(len(tiled.tensors)))) == value.numpy().tobytes()
    for each in (checkpoint, tiled):
        assert_lossless(each, path)


def test_chunks_that_are_not_all_of_a_tensor_are_tensors_of_their_own(tmp_path):
    """One is missing, or another one is in its place, or they are of several dtypes."""
    rows = torch.randn(3, 64, 16)
    for name, second in (("missing", None), ("double", (32, rows[1])), ("other", (64, rows[1].half()))):
        writer = Writer(tmp_path / f"step-{name}", 2)
        writer.put_chunk("w", 0, (0, 0), rows[0], (192, 16))
        if second is not None:
            writer.put_chunk("w", 1, (second[0], 0), second[1], (192, 16))
        writer.put_chunk("w", 1, (128, 0), rows[2], (192, 16))
        checkpoint = read_checkpoint(writer.finish())
        assert {tensor.path[0][:2] for tensor in checkpoint.tensors} == {"w["}, name
        assert_lossless(checkpoint, writer.path)


def test_ranks_without_a_share_of_a_tensor(tmp_path):
    writer = Writer(tmp_path / "step-1", 3)
    rows = torch.randn(2, 40, 16)
    writer.put_chunk("w", 0, (0, 0), rows[0], (80, 16))
    writer.put_chunk("w", 1, (40, 0), rows[1], (80, 16))
    writer.put_chunk("w", 2, (80, 0), torch.zeros(0, 16), (80, 16))
    checkpoint = read_checkpoint(writer.finish())
    assert [(tensor.path, tensor.shape) for tensor in checkpoint.tensors] == [(("w",), (80, 16))]
    assert_lossless(checkpoint, writer.path)


def test_another_number_of_ranks_goes_on_with_the_chain(tmp_path):
    """A job that was started again on more machines, or on one."""
    run, reports = tmp_path / "run", []
    for steps, ranks in ((3, 4), (4, 3), (5, 1)):
        path = write_dcp(run / f"step-{steps}", ranks, state_of(*trained(steps)))
        reports.append(ckzd.compress(path, preset="resume"))
    assert [report.reference is not None for report in reports] == [False, True, True]
    for report in reports:
        assert ckzd.verify(report.archive).ok


def test_a_sharded_tensor_is_found_in_a_base_model(tmp_path):
    draw = torch.Generator().manual_seed(0)
    model = {f"layers.{n}.weight": torch.randn(128, 96, generator=draw) for n in range(4)}
    save_file(model, tmp_path / "base.safetensors")
    writer = Writer(tmp_path / "run" / "step-1", 3)
    for name, value in model.items():
        writer.put(f"model.{name}", value + 1e-3 * torch.randn(value.shape, generator=draw))
    report = ckzd.compress(writer.finish(), base_model=tmp_path / "base.safetensors")
    assert report.reference == str(tmp_path / "base.safetensors")
    assert report.ratio > 10


def test_tiles_that_ranks_have_in_other_orders(tmp_path, monkeypatch):
    """Replaced and restored bit for bit."""
    monkeypatch.setattr(tiles, "MAX_ELEMENTS", 1 << 13)
    draw = torch.Generator().manual_seed(0)
    weights = {f"w{n}": torch.randn(700, 32 + 16 * n, generator=draw) for n in range(3)}
    writer = Writer(tmp_path / "run" / "step-1", 3)
    for rank, order in enumerate((("w0", "w1", "w2"), ("w2", "w0", "w1"), ("w1", "w2", "w0"))):
        for name in order:
            piece = torch.chunk(weights[name], 3)[rank]
            writer.put_chunk(name, rank, (234 * rank, 0), piece, tuple(weights[name].shape))
    path = writer.finish()
    before = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    assert ckzd.compress(path, preset="lossless", replace=True).replaced
    ckzd.ensure_restored(path)
    assert {entry.name: entry.read_bytes() for entry in path.iterdir()} == before


def test_groups_that_list_their_parameters(tmp_path):
    model, optimizer = trained()
    flat = state_of(model, optimizer)
    state = {name: value for name, value in flat.items() if "param_groups" not in name}
    state |= {"optimizer.param_groups.0.params": ["2.weight"], "optimizer.param_groups.0.lr": 0.5}
    state |= {"optimizer.param_groups.1.params": ["0.weight", "0.bias", "2.bias", "gone"]}
    (found,) = read_checkpoint(write_dcp(tmp_path / "step-1", 1, state)).optimizers
    assert found.groups == (
        ParamGroup(("2.weight",), learning_rate=0.5, updates=3),
        ParamGroup(("0.weight", "0.bias", "2.bias"), updates=3),
    )


def test_names_as_megatron_flattens_them(tmp_path):
    state = {"decoder.0.weight": torch.randn(32, 32), "optimizer.state.exp_avg.decoder.0.weight": torch.randn(32, 32)}
    state |= {"optimizer.state.exp_avg_sq.decoder.0.weight": torch.rand(32, 32)}
    checkpoint = read_checkpoint(write_dcp(tmp_path / "step-1", 1, state))
    assert [tensor.path for tensor in checkpoint.tensors] == [
        ("decoder.0.weight",),
        ("optimizer", "state", "decoder.0.weight", "exp_avg"),
        ("optimizer", "state", "decoder.0.weight", "exp_avg_sq"),
    ]
    assert len(pair(Inputs(in_tiles(checkpoint), None)).triples) == 1


def test_moments_belong_to_the_weight_that_the_optimizer_keeps(tmp_path):
    weight = torch.randn(32, 32)
    state = {"decoder.0.weight": weight.bfloat16(), "optimizer.state.fp32_param.decoder.0.weight": weight}
    state |= {f"optimizer.state.{key}.decoder.0.weight": torch.rand(32, 32) for key in ("exp_avg", "exp_avg_sq")}
    checkpoint = read_checkpoint(write_dcp(tmp_path / "step-1", 1, state))
    inputs = Inputs(in_tiles(checkpoint), None)
    (triple,) = pair(inputs).triples
    assert checkpoint.tensors[triple.weight].path == ("fp32_param", "decoder.0.weight")
    assert len(inputs.reference_tensors) == 2


def test_a_model_whose_names_look_like_an_optimizers_is_a_model(tmp_path):
    state = {"model.state.proj.weight": torch.randn(32, 32), "state.mixer.weight": torch.randn(32, 32)}
    checkpoint = read_checkpoint(write_dcp(tmp_path / "step-1", 1, state))
    assert (checkpoint.optimizers, len(Inputs(checkpoint, None).reference_tensors)) == ((), 2)


def test_objects_with_tensors_and_files_beside(tmp_path):
    state = {"rng": {"cpu": torch.get_rng_state()}, "w": torch.randn(64), "note": {"epoch": 3}}
    path = write_dcp(tmp_path / "step-1", 1, state)
    torch.save({"args": {"lr": 0.1}, "extra": torch.randn(64)}, path / "common.pt")
    (path / "metadata.json").write_text("{}")
    checkpoint = read_checkpoint(path)
    assert [tensor.path for tensor in checkpoint.tensors] == [("rng", "cpu"), ("w",), ("common.pt", "extra")]
    assert_lossless(checkpoint, path)


def test_it_is_complete_when_its_metadata_is_there_and_the_youngest(sharded):
    metadata = sharded / ".metadata"
    os.utime(sharded / "__1_0.distcp", (2e9, 2e9))
    os.utime(metadata, (2e9 - 60, 2e9 - 60))
    assert "__1_0.distcp is younger" in completeness(sharded), "it is being saved over"
    os.utime(metadata, (2e9, 2e9))
    assert completeness(sharded) is None
    metadata.rename(sharded / ".metadata.tmp")
    assert "still being written" in completeness(sharded)
    (sharded / ".metadata.tmp").unlink()
    assert completeness(sharded) == "step-8: .metadata missing"
    with pytest.raises(BadCheckpoint, match=r"\.metadata missing"):
        read_checkpoint(sharded)


def test_lightning_writes_its_own_file_behind(tmp_path):
    path = write_dcp(tmp_path / "epoch=1-step=8.ckpt", 2, state_of(*trained()))
    assert completeness(path) == "epoch=1-step=8.ckpt: meta.pt missing"
    torch.save({"global_step": 8}, path / "meta.pt")
    assert completeness(path) is None
    assert_lossless(read_checkpoint(path), path)


def test_one_saved_over_its_pointer_is_a_checkpoint_again(sharded):
    (sharded / "ckzd.json").write_text("{}")
    for entry in sharded.iterdir():
        os.utime(entry, (1000, 1000))
    os.utime(sharded / "__0_0.distcp", (2000, 2000))
    assert is_replaced(sharded), "half-written: .metadata comes last"
    os.utime(sharded / ".metadata", (2000, 2000))
    assert not is_replaced(sharded)


def test_what_is_a_checkpoint_and_what_is_left_alone(whole, sharded):
    run = whole.parent
    assert look_into(run).checkpoints == (whole, sharded)
    assert left_alone(whole) is None
    assert left_alone(sharded / "__1_0.distcp").path == sharded
    (whole / "folder").mkdir()
    assert look_into(run).checkpoints == (whole, sharded), "as Megatron's, with its tokenizer's files in one"
    (whole / "folder").rename(whole / "step-5")
    (sharded / ".metadata").rename(sharded / "__0.metadata")
    assert look_into(run).checkpoints == ()
    for path in (whole, sharded):
        assert [(found.path, found.kind) for found in look_into(path).left_alone] == [(path, "dcp")]
        assert left_alone(path).kind == "dcp"


def told(name, **changes):
    """Change what `.metadata` says of an item's first chunk."""

    def change(writer):
        index = next(index for index in writer.metadata.storage_data if index.fqn == name)
        writer.metadata.storage_data[index] = replace(writer.metadata.storage_data[index], **changes)

    return change


def unnamed(writer):
    del writer.metadata.state_dict_metadata["b"]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/ran",)


def hostile(writer):
    writer.metadata.planner_data = Hostile()


DAMAGED = {
    "outside": (told("a", offset=5000), "expected .* bytes at 5000"),
    "negative": (told("a", offset=-1), "no number"),
    "on another": (told("a", offset=100), "shares bytes"),
    "elsewhere": (told("a", relative_path="../x.distcp"), "names '../x.distcp', which is not there"),
    "in .metadata": (told("a", relative_path=".metadata"), "which is not there"),
    "no name": (told("a", relative_path=b"x"), "no name"),
    "compressed": (told("a", transform_descriptors=["zstd"]), "transformed"),
    "no item": (unnamed, "no item of the state"),
    "cut": (told("a", length=100), "cut off"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_cannot_be_is_refused(tmp_path, kind):
    change, words = DAMAGED[kind]
    writer = Writer(tmp_path / "step-1", 1)
    for name in ("a", "b"):
        writer.put(name, torch.randn(64))
    change(writer)
    with pytest.raises(BadCheckpoint, match=words):
        read_checkpoint(writer.finish())


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"\x80\x04}.", b"garbage"])
def test_metadata_that_is_none_is_refused(sharded, data):
    (sharded / ".metadata").write_bytes(data)
    with pytest.raises(BadCheckpoint):
        read_checkpoint(sharded)


def test_nothing_in_it_is_run(tmp_path):
    writer = Writer(tmp_path / "step-1", 1)
    writer.put("w", torch.randn(64))
    hostile(writer)
    Path("/tmp/ran").unlink(missing_ok=True)
    assert_lossless(read_checkpoint(writer.finish()), tmp_path / "step-1")
    assert not Path("/tmp/ran").exists()


def test_it_is_replaced_whole_and_comes_back_bit_for_bit(whole, sharded):
    model, optimizer = trained(5)
    later = write_dcp(whole.parent / "step-9", 3, state_of(model, optimizer))
    run, before = whole.parent, {}
    for path in (sharded, later):
        before[path] = {entry.name: (entry.read_bytes(), entry.stat().st_mtime_ns) for entry in path.iterdir()}
        assert ckzd.compress(path, preset="lossless", replace=True).replaced
        assert {entry.name for entry in path.iterdir()} == {".metadata", "ckzd.json"}
        assert is_replaced(path)
    assert look_into(run).checkpoints == (whole,)
    for path in (later, sharded):
        assert ckzd.ensure_restored(path) == path
        assert {e.name: (e.read_bytes(), e.stat().st_mtime_ns) for e in path.iterdir()} == before[path]


def test_a_sharded_delta_restores_to_what_torch_loads(sharded):
    ckzd.compress(sharded, preset="resume", replace=True)
    model, optimizer = trained(5)
    later = write_dcp(sharded.parent / "step-9", 3, state_of(model, optimizer))
    assert ckzd.compress(later, preset="resume", replace=True).reference is not None
    ckzd.restore(later)
    state = {"model.0.weight": torch.zeros(64, 64)}
    dcp.load(state, checkpoint_id=later, no_dist=True)
    expected = model.state_dict()["0.weight"]
    assert 0 < (state["model.0.weight"] - expected).norm() < 0.1 * expected.norm()
    assert all(len(data) == layout.size for data, layout in zip(
        rebuilt(read_checkpoint(later)), read_checkpoint(later).files, strict=True
    ))  # fmt: skip
