"""Less effort: archives without bases and factors, in one chain with others, as true to the original."""

from pathlib import Path

import pytest
import torch
from operations.test_damage import rot

import ckzd
from ckzd.chains import read_manifest
from ckzd.codec.presets import PRESETS, preset_at
from ckzd.defaults import Effort
from ckzd.errors import ConfigError


@pytest.fixture
def run(tmp_path) -> list[Path]:
    """A small real run: weights in float32 and bfloat16, a vector, a lone momentum."""
    torch.manual_seed(0)
    model, other = torch.nn.Linear(64, 96), torch.nn.Linear(40, 48)
    half = torch.nn.Linear(64, 32, bias=False).bfloat16()
    adam = torch.optim.AdamW([*model.parameters(), *half.parameters()], lr=1e-3, betas=(0.5, 0.9))
    sgd = torch.optim.SGD(other.parameters(), lr=1e-2, momentum=0.9)
    inputs, targets = torch.randn(256, 64) @ torch.diag(torch.logspace(-1, 1, 64)), torch.randn(256, 96)
    paths = []
    for step in range(1, 301):
        rows = torch.randint(256, (32,))
        loss = (model(inputs[rows]) - targets[rows]).square().mean() + other(inputs[rows, :40]).square().mean()
        loss = loss + half(inputs[rows].bfloat16()).float().square().mean()
        for optimizer in (adam, sgd):
            optimizer.zero_grad()
        loss.backward()
        adam.step()
        sgd.step()
        if step % 60 == 0:
            paths.append(tmp_path / "run" / f"step_{step}.pt")
            paths[-1].parent.mkdir(exist_ok=True)
            state = {"model": model.state_dict(), "half": half.state_dict(), "other": other.state_dict()}
            torch.save({**state, "adam": adam.state_dict(), "sgd": sgd.state_dict(), "step": step}, paths[-1])
    return paths


@pytest.mark.parametrize("preset", ["resume", "archive"])
def test_efforts_take_turns_in_one_chain(run, preset, tmp_path):
    efforts = ["best", "best", "fast", "fast", "best"]
    reports = [ckzd.compress(path, preset=preset, effort=effort) for path, effort in zip(run, efforts, strict=True)]
    assert [report.effort for report in reports] == efforts
    assert [ckzd.inspect(report.archive)["effort"] for report in reports] == efforts
    manifests = [read_manifest(Path(report.archive)) for report in reports]
    assert [manifest.depth for manifest in manifests] == [0, 1, 2, 3, 4]
    assert [manifest.preset for manifest in manifests] == [preset] * 5
    budget = PRESETS[preset].budget
    for report in reports:
        assert report.weight_error <= budget.max_weight_error
        assert report.worst_tensor_error <= budget.max_worst_tensor_error
        ckzd.verify(report.archive)
    for cached in (run[0].parents[1] / ".ckzd" / "cache").iterdir():
        cached.unlink()
    for path, report in zip(run, reports, strict=True):
        restored = tmp_path / f"restored_{path.name}"
        ckzd.restore(report.archive, output=restored)
        before, after = (torch.load(each)["model"]["weight"] for each in (path, restored))
        assert (after - before).norm() <= 0.1 * before.norm()


def test_what_was_made_fast_is_made_fast_again(run):
    """Whatever is asked for: what hangs on a damaged archive needs it as it was, bit for bit."""
    archives = [Path(ckzd.compress(path, effort="fast").archive) for path in run[:3]]
    data = archives[1].read_bytes()
    rot(archives[1])
    again = ckzd.compress(run[1], effort="best")
    assert again.effort == "fast"
    assert Path(again.archive).read_bytes() == data
    ckzd.verify(archives[2])


def test_less_effort_is_a_matter_of_presets_with_bases():
    assert preset_at("lossless", Effort.FAST) is PRESETS["lossless"]
    assert preset_at("paper", Effort.FAST) is PRESETS["paper"]
    assert preset_at("resume", Effort.FAST).budget == PRESETS["resume"].budget


def test_an_unknown_effort_is_an_error(run):
    with pytest.raises(ConfigError, match="expected one of best, fast, got 'slow'"):
        ckzd.compress(run[0], effort="slow")
    assert not (run[0].parents[1] / ".ckzd").exists()
