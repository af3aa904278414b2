"""Tensors that are views into one storage are coded as if each had its own, and files come back whole."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from codec.chains import compressed_run, restored, same_tensor
from formats.helpers import saved, zip_is_intact
from plain_decoder import PlainArchive

import ckzd
from ckzd.codec.analysis import tiles
from ckzd.errors import BadCheckpoint


def laid_out(tensors):
    """Copies of them in one storage, by name."""
    flat, at = torch.cat([tensor.flatten() for tensor in tensors.values()]), 0
    views = {}
    for name, tensor in tensors.items():
        views[name] = flat[at : at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()
    return views


def write_run(run: Path, *, shared: bool, count: int = 3) -> list[Path]:
    """A network under AdamW; weights, first and second moments lie in a storage each, or every tensor in its own."""
    run.mkdir(parents=True)
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(48, 300), torch.nn.Tanh(), torch.nn.Linear(300, 64))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    target, paths = torch.randn(48, 64), []
    for step in range(1, 30 * count + 1):
        inputs = torch.randn(64, 48)
        optimizer.zero_grad()
        (network(inputs) - torch.sin(inputs @ target)).pow(2).mean().backward()
        optimizer.step()
        if step % 30 == 0:
            model, state = dict(network.state_dict()), optimizer.state_dict()
            if shared:
                model = laid_out(model)
                for moment in ("exp_avg", "exp_avg_sq"):
                    views = laid_out({number: each[moment] for number, each in state["state"].items()})
                    for number, view in views.items():
                        state["state"][number] = {**state["state"][number], moment: view}
            paths.append(saved(run / f"step_{step}.pt", {"model": model, "optimizer": state, "step": step}))
    return paths


def test_views_cost_what_tensors_cost(tmp_path):
    apart = compressed_run(write_run(tmp_path / "apart", shared=False))
    together = compressed_run(write_run(tmp_path / "together", shared=True))
    for alone, shared in zip(apart, together, strict=True):
        assert shared.nbytes < 1.02 * alone.nbytes
    assert together[2].methods(together[1]) == apart[2].methods(apart[1])


def flattened(run: Path, *, names: bool, count: int = 3) -> list[Path]:
    """The same network as views of one parameter, which alone the optimizer knows, with moments as flat."""
    run.mkdir(parents=True)
    torch.manual_seed(1)
    shapes = {"0.weight": (300, 48), "0.bias": (300,), "2.weight": (64, 300), "2.bias": (64,)}
    parameter = torch.nn.Parameter(torch.randn(sum(torch.Size(shape).numel() for shape in shapes.values())) / 10)
    optimizer = torch.optim.AdamW([("flat", parameter)] if names else [parameter], lr=1e-3)
    target, paths = torch.randn(48, 64), []
    for step in range(1, 30 * count + 1):
        at, views = 0, {}
        for name, shape in shapes.items():
            views[name] = parameter[at : at + torch.Size(shape).numel()].view(shape)
            at += views[name].numel()
        inputs = torch.randn(64, 48)
        found = torch.tanh(inputs @ views["0.weight"].T + views["0.bias"]) @ views["2.weight"].T + views["2.bias"]
        optimizer.zero_grad()
        (found - torch.sin(inputs @ target)).pow(2).mean().backward()
        optimizer.step()
        if step % 30 == 0:
            model = {name: view.detach() for name, view in views.items()} | {"flat": parameter.detach()}
            paths.append(saved(run / f"step_{step}.pt", {"model": model, "optimizer": optimizer.state_dict()}))
    return paths


@pytest.mark.parametrize("names", [False, True])
def test_moments_of_a_flat_parameter_are_those_of_its_views(tmp_path, names):
    """With the parameter's own name in the optimizer, too, which says nothing of the views."""
    archives = compressed_run(flattened(tmp_path / "run", names=names))
    methods = {name: method.value for name, method in archives[2].methods(archives[1]).items()}
    assert "model.flat" not in methods
    assert {methods["model.0.weight"], methods["model.2.weight"]} <= {"framed", "factored"}
    assert {methods["optimizer.state.0[0].exp_avg_sq"], methods["optimizer.state.0[2].exp_avg_sq"]} == {"fill"}
    assert same_layout(restored(archives[2], archives[1]))


def same_layout(state):
    """Whether all weights still lie in one storage."""
    return len({tensor.untyped_storage().data_ptr() for tensor in state["model"].values()}) == 1


@pytest.mark.parametrize("preset", ["resume", "lossless"])
def test_a_chain_of_views_restores(tmp_path, preset):
    """By ckzd and by a decoder that was written from the format's page; some of the views are cut into tiles."""
    reference = None
    with mock.patch.object(tiles, "MAX_ELEMENTS", 1 << 12):
        reports = [ckzd.compress(path, preset=preset) for path in write_run(tmp_path / "run", shared=True)]
    for report in reports:
        archive = PlainArchive(Path(report.archive), reference)
        reference = archive.own
        target = tmp_path / Path(report.checkpoint).name
        ckzd.restore(Path(report.archive), output=target)
        assert archive.files() == {target.name: target.read_bytes()}
        assert zip_is_intact(target.read_bytes())
    assert all(archive.layout["files"][0][3:])
    state, original = torch.load(target), torch.load(report.checkpoint)
    assert same_layout(state)
    for name, tensor in state["model"].items():
        is_lossy = preset != "lossless" and tensor.numel() > 64
        assert same_tensor(tensor, original["model"][name]) != is_lossy


def test_a_damaged_view_is_found(tmp_path):
    """The file gives one CRC-32 for all of them."""
    (path,) = write_run(tmp_path / "run", shared=True, count=1)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadCheckpoint, match="CRC-32"):
        ckzd.compress(path)
