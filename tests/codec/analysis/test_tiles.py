"""Large tensors in tiles: files come back, moments stay with their weights, and no tile is larger than said."""

import zipfile
import zlib
from collections import defaultdict
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from codec.chains import compressed_run, encode, restored, same_tensor
from formats.helpers import assert_lossless, saved, zip_is_intact
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_decoder import PlainArchive

import ckzd
from ckzd.assembly import assembled
from ckzd.checkpoint import FileLayout, FileStat, Hole, TensorSpec, tiles_of, whole
from ckzd.codec.analysis import tiles
from ckzd.codec.analysis.contents import read_contents
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.codec.records.index import Index
from ckzd.errors import BadCheckpoint
from ckzd.formats import read_checkpoint

STAT = FileStat(0, 0, 0, 0)


@pytest.fixture(autouse=True)
def small_tiles():
    with mock.patch.object(tiles, "MAX_ELEMENTS", 1 << 13):
        yield


def model():
    """Matrices that are cut and one that is not, of one width; one that is a single row too many."""
    torch.manual_seed(3)
    return torch.nn.ModuleDict(
        {
            "embed": torch.nn.Embedding(700, 32),
            "up": torch.nn.Linear(32, 300),
            "down": torch.nn.Linear(300, 32),
            "vector": torch.nn.Linear(20_000, 1),
            "small": torch.nn.Linear(32, 32),
        }
    )


def write_run(run: Path, count: int = 3) -> list[Path]:
    """A few checkpoints of it under Adam, with a second name for a weight and large tensors of other kinds."""
    run.mkdir(parents=True, exist_ok=True)
    network, paths = model(), []
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(10 * count):
        chosen = torch.randint(700, (64,))
        found = network["down"](torch.tanh(network["up"](torch.tanh(network["small"](network["embed"](chosen))))))
        loss = (found - torch.sin(chosen[:, None] * torch.arange(32))).pow(2).mean()
        optimizer.zero_grad()
        (loss + network["vector"](found.new_ones(20_000) * loss.detach()).pow(2).sum()).backward()
        optimizer.step()
        if step % 10 == 9:
            odd = {"count": torch.arange(40_000), "double": torch.linspace(0, 1, 30_000).double()}
            state = {"model": network.state_dict(), "tied": network["embed"].weight.detach().clone(), **odd}
            paths.append(saved(run / f"step_{step + 1}.pt", state | {"optimizer": optimizer.state_dict()}))
    return paths


def test_files_are_cut_and_come_together_again(tmp_path):
    (path,) = write_run(tmp_path, 1)
    found = read_checkpoint(path)
    cut = in_tiles(found)
    assert_lossless(cut, path)
    read_contents(cut, (), lambda _: None)
    joined = [whole([cut.tensors[number] for number in numbers]) for numbers in tiles_of(cut.files, {}).values()]
    assert joined == [found.tensors[hole.tensor] for hole in found.files[0].holes]
    assert all(tensor.elements <= 1 << 13 or tensor.shape[0] <= 256 for tensor in cut.tensors)
    assert len(cut.tensors) > 2 * len(found.tensors)
    with mock.patch.object(tiles, "MAX_ELEMENTS", 1 << 20):
        assert in_tiles(found) == found


@settings(max_examples=100)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=3), st.sampled_from([1, 4]))
def test_every_row_is_in_one_tile(shape, itemsize):
    nbytes = itemsize * int(np.prod(shape))
    tensor = TensorSpec(("a", "b"), "float32" if itemsize == 4 else "int8", tuple(shape), nbytes)
    parts = list(tiles._tiles(tensor))
    assert whole(parts) == tensor
    assert [part.path for part in parts] == [("a", "b"), *[("a", "b", f"[{n}]") for n in range(1, len(parts))]]
    assert all(part.nbytes == itemsize * part.elements > 0 for part in parts)
    rows = [part.shape[0] for part in parts]
    matrices = shape[0] if parts[0].stack and shape[1] * shape[2] >= 1 << 14 else 1
    rows_of_one = rows[: len(rows) // matrices]
    assert rows == rows_of_one * matrices
    assert len(rows_of_one) == 1 or all(count >= 256 for count in rows_of_one[:-1])
    assert max(rows) <= 256 or all(part.elements <= 1 << 13 for part in parts)
    assert max(rows) - min(rows) <= 512


STACKS = {
    "experts": ((8, 128, 256), [(128, 256)] * 8),
    "more experts than columns": ((64, 256, 64), [(256, 64)] * 64),
    "layers of heads": ((4, 6, 64, 512), [(64, 512)] * 24),
    "layers of matrices with heads": ((12, 256, 8, 64), [(256, 8, 64)] * 12),
    "positions": ((1, 197, 192), [(197, 192)]),
    "small experts": ((32, 64, 32), [(2048, 32)]),
    "large experts": ((2, 1024, 256), [(512, 256)] * 4),
}
NO_STACKS = {
    "a convolution": (64, 48, 3, 3),
    "one of few outputs": (16, 3, 7, 7),
    "one whose channels come last": (64, 3, 3, 64),
    "patches": (192, 3, 16, 16),
    "a long kernel": (768, 48, 128),
    "a first layer of sound": (128, 1, 80),
    "heads behind": (512, 8, 64),
    "narrow matrices": (8, 512, 8),
    "nothing": (0, 64, 64),
    "a matrix": (300, 200),
    "a vector": (5000,),
}


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_is_cut_into_its_matrices(name):
    """Those that are too small for names of their own are the rows of one."""
    shape, tiled = STACKS[name]
    tensor = TensorSpec(("w",), "float32", shape, 4 * int(np.prod(shape)))
    with mock.patch.object(tiles, "MAX_ELEMENTS", 1 << 17):
        parts = list(tiles._tiles(tensor))
    assert [part.shape for part in parts] == tiled
    assert whole(parts) == tensor


@pytest.mark.parametrize("name", NO_STACKS)
def test_first_dimension_by_all_others_where_that_is_the_better_matrix(name):
    shape = NO_STACKS[name]
    tensor = TensorSpec(("w",), "float32", shape, 4 * int(np.prod(shape)))
    with mock.patch.object(tiles, "MAX_ELEMENTS", 1 << 30):
        assert list(tiles._tiles(tensor)) == [tensor]


def test_a_damaged_tile_is_found(tmp_path):
    (path,) = write_run(tmp_path, 1)
    cut = in_tiles(read_checkpoint(path))
    inside = next(hole for hole in cut.files[0].holes if hole.continues)
    data = bytearray(path.read_bytes())
    data[inside.offset + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadCheckpoint, match="CRC-32"):
        read_contents(in_tiles(read_checkpoint(path)), (), lambda _: None)


def test_a_crc_before_its_bytes_leaves_all_whole(tmp_path):
    """What a restore writes first would have to know what comes last."""
    (path,) = write_run(tmp_path / "one", 1)
    again = tmp_path / "again.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(again, "w") as target:
        for name in source.namelist():
            target.writestr(zipfile.ZipInfo(name), source.read(name))
    found = read_checkpoint(again)
    assert in_tiles(found) == found


def test_a_tile_never_takes_the_path_of_another_tensor(tmp_path):
    labels = {1: torch.arange(32_000).float().reshape(1000, 32), "1": {"[1]": torch.ones(700, 32)}}
    found = read_checkpoint(saved(tmp_path / "a.pt", {"state": labels}))
    assert {tensor.path for tensor in found.tensors} == {("state", "1"), ("state", "1", "[1]")}
    assert in_tiles(found) == found


@pytest.mark.parametrize("preset", ["resume", "archive", "paper", "lossless"])
def test_a_chain_of_tiles_restores(tmp_path, preset):
    """By ckzd, with the cache and without, and by a decoder that was written from the format's page."""
    reference = None
    for path in write_run(tmp_path / "run"):
        report = ckzd.compress(path, preset=preset)
        archive = PlainArchive(Path(report.archive), reference)
        reference = archive.own
        target = tmp_path / "restored.pt"
        target.unlink(missing_ok=True)
        ckzd.restore(Path(report.archive), output=target)
        assert archive.files() == {path.name: target.read_bytes()}
        assert zip_is_intact(target.read_bytes())
    state, original = torch.load(target), torch.load(path)
    assert same_tensor(state["count"], original["count"])
    assert same_tensor(state["tied"], state["model"]["embed.weight"])
    change = max((state["model"][name] - tensor).abs().max() for name, tensor in original["model"].items())
    assert change == 0 if preset == "lossless" else 0 < change < 0.5
    for cached in (tmp_path / ".ckzd" / "cache").iterdir():
        cached.unlink()
    again = tmp_path / "again.pt"
    ckzd.restore(Path(report.archive), output=again)
    assert again.read_bytes() == target.read_bytes()


def test_weights_alone_are_whole(tmp_path):
    from safetensors.torch import load_file

    (path,) = write_run(tmp_path / "run", 1)
    report = ckzd.compress(path)
    ckzd.restore(Path(report.archive), output=tmp_path / "w.safetensors", weights_only=True)
    ckzd.restore(Path(report.archive), output=tmp_path / "all.pt")
    weights, state = load_file(tmp_path / "w.safetensors"), torch.load(tmp_path / "all.pt")
    assert {name: weights[f"model.{name}"].shape for name in state["model"] if state["model"][name].numel() >= 64} == {
        name: tensor.shape for name, tensor in state["model"].items() if tensor.numel() >= 64
    }
    assert same_tensor(weights["model.embed.weight"], state["model"]["embed.weight"])


def test_tiles_have_frames_and_none_is_coded_exactly(tmp_path):
    archives = compressed_run(write_run(tmp_path / "run"))
    methods = {name: method.value for name, method in archives[2].methods(archives[1]).items()}
    assert {methods["model.embed.weight"], methods["model.embed.weight.[1]"]} <= {"framed", "factored"}
    assert methods["model.vector.weight"] == "scalar"  # one row
    assert methods["tied.[1]"] == "copy"
    assert methods["optimizer.state.0.exp_avg_sq.[1]"] in {"fill", "scaled"}
    assert not any(
        method == "exact" for name, method in methods.items() if name.startswith("model") and "bias" not in name
    )
    assert archives[2].encoded.parts["state"] < archives[2].nbytes
    restored(archives[2], archives[1])


def decayed(run: Path, beta: float, tokens: int = 1024) -> list[Path]:
    """An embedding whose last tokens never occur: their moments are 0, and weight decay moves them all the same."""
    torch.manual_seed(0)
    project, embed = torch.nn.Linear(32, 40), torch.nn.Embedding(tokens, 32)
    groups = [{"params": [*embed.parameters()], "betas": (beta, 0.99)}, {"params": [*project.parameters()]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    run.mkdir()
    paths, draw = [], torch.Generator().manual_seed(0)
    for step in range(1, 31):
        chosen = torch.randint(256, 512, (64,), generator=draw)
        optimizer.zero_grad()
        (project(embed(chosen)) - torch.sin(chosen[:, None] * torch.arange(40))).pow(2).mean().backward()
        optimizer.step()
        if step % 10 == 0:
            model = {"embed": embed.weight.detach(), "project": project.weight.detach()}
            state = {"model": model, "optimizer": optimizer.state_dict(), "step": 100_000 + step}
            paths.append(saved(run / f"step_{step}.pt", state))
    return paths


def test_tiles_without_moments_are_coded_like_their_tensor(tmp_path):
    """As rows of one piece they would be; exactly they would cost many times as much as all others."""
    paths = decayed(tmp_path / "run", 0.9)
    archives = compressed_run(paths)
    with mock.patch.object(tiles, "MAX_ELEMENTS", 1 << 20):
        whole_run = compressed_run(paths)
    methods = archives[2].methods(archives[1])
    assert {methods[f"model.embed{name}"].value for name in ("", ".[1]", ".[2]", ".[3]")} <= {"framed", "factored"}
    assert archives[2].nbytes < 1.3 * whole_run[2].nbytes
    state = restored(archives[2], archives[1])["optimizer"]["state"][0]
    assert not state["exp_avg_sq"][512:].any()
    assert not state["exp_avg"][:256].any()
    assert state["exp_avg_sq"][256:512].all()


def test_tokens_that_never_occur_do_not_make_the_step_finer(tmp_path):
    """They had a part in the typical weight, a mean over tiles: archives of Pythia's shape were twice as large."""
    found = []
    for tokens in (1024, 30_000):
        archives = compressed_run(decayed(tmp_path / str(tokens), 0.9, tokens)[:2])
        for archive, layout in zip(archives, (b"", archives[0].reconstruction.blob("layout")), strict=True):
            found.append(Index.from_bytes(archive.entries["index"], layout).steps)
    few, many = found[:2], found[2:]
    assert 0.8 < many[0].whole_step / few[0].whole_step < 1.25
    assert 0.8 < many[1].step / few[1].step < 1.25


def test_betas_count_wherever_the_living_tile_is(tmp_path):
    """Its first 256 tokens never occur; a memory as long as 20 steps is never dropped."""
    paths = decayed(tmp_path / "run", 0.95)
    archive = compressed_run(paths)[2]
    index = Index.from_bytes(archive.entries["index"], compressed_run(paths[:2])[1].reconstruction.blob("layout"))
    assert index.steps.framed_moment_step > 0


def test_a_reference_from_before_tiles_costs_bytes_only(tmp_path):
    """Its tensors are of other shapes: what was cut starts anew, as after a change of shape, and then goes on."""
    paths = write_run(tmp_path / "run")
    with mock.patch.object(tiles, "MAX_ELEMENTS", 1 << 20):
        first = encode(paths[0])
    second = encode(paths[1], first)
    third = encode(paths[2], second)
    assert second.methods(first)["model.embed.weight"].value == "whole"
    assert third.methods(second)["model.embed.weight"].value == "framed"
    restored(second, first)
    restored(third, second)


def test_moments_of_one_first_tile_are_told_apart_by_what_is_behind(tmp_path):
    """300 and 400 rows of 32 start with the same 256."""
    draw = torch.Generator().manual_seed(0)
    rows = {"a": 300, "b": 400, "c": 300}
    weights = {name: torch.randn(count, 32, generator=draw) for name, count in rows.items()}
    state = {i: {"step": torch.tensor(1.0), "exp_avg": torch.randn(rows[n], 32), "exp_avg_sq": torch.rand(rows[n], 32)}
             for i, n in enumerate("bac")}  # fmt: skip
    groups = [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1, 2]}]
    path = saved(tmp_path / "a.pt", {"model": weights, "optimizer": {"state": state, "param_groups": groups}})
    inputs = Inputs(in_tiles(read_checkpoint(path)), None)
    found = {inputs.tensor(t.weight).path[1:]: inputs.tensor(t.first).path[2:] for t in pair(inputs).triples}
    assert found[("b",)] == ("0", "exp_avg")
    assert found[("b", "[1]")] == ("0", "exp_avg", "[1]")
    assert found[("a", "[1]")][0] in "12"


def test_crcs_are_of_whole_storages():
    holes = (Hole(0, 0, 8), Hole(1, 8, 16, (40,), continues=True))
    data = bytes(range(24))
    file, payloads = FileLayout("a.pt", 100, STAT, holes), [data[:8], data[8:]]
    pieces = assembled([file], [[b"", b"", bytes(76)]], partial(map, payloads.__getitem__))
    expected = data + bytes(16) + zlib.crc32(data).to_bytes(4, "little") + bytes(56)
    assert b"".join(piece for _, piece in pieces) == expected


def test_a_moments_tiles_find_the_group_of_their_parameter(tmp_path):
    """Groups and optimizers with learning rates of their own; a weight has none."""
    weights = [torch.nn.Parameter(torch.randn(700, 32)) for _ in range(3)]
    groups = [{"params": [weights[0]], "lr": 1e-3}, {"params": [weights[1]], "lr": 2e-3}]
    optimizers = [torch.optim.AdamW(groups), torch.optim.Adam([weights[2]], lr=3e-3)]
    for weight in weights:
        weight.grad = torch.randn(700, 32)
    for optimizer in optimizers:
        optimizer.step()
    path, states = tmp_path / "step_1.pt", [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": dict(zip("abc", weights, strict=True)), "optimizers": states, "step": 1}, path)
    inputs = Inputs(in_tiles(read_checkpoint(path)), None)
    found = defaultdict(set)
    for number, tensor in enumerate(inputs.checkpoint.tensors):
        group = inputs.group_of(number)
        found["/".join(tensor.path[:4])].add(group.learning_rate if group is not None else None)
    assert {place: rates for place, rates in found.items() if "state" in place} == {
        "optimizers/0/state/0": {1e-3},
        "optimizers/0/state/1": {2e-3},
        "optimizers/1/state/0": {3e-3},
    }
    assert {rate for place, rates in found.items() if "model" in place for rate in rates} == {None}
