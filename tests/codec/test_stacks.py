"""Matrices that are fused into one tensor are coded as if each had its own."""

from pathlib import Path

import torch
from codec.chains import compressed_run, same_tensor
from formats.helpers import saved
from plain_decoder import PlainArchive
from safetensors.torch import load_file

import ckzd

EXPERTS, ROWS, COLUMNS = 6, 96, 192


def write_run(run: Path, *, fused: bool, count: int = 3) -> list[Path]:
    """Experts in turns, each learning a map of its own, in one tensor or in a tensor each, beside a convolution."""
    run.mkdir(parents=True)
    torch.manual_seed(2)
    start, convolution = torch.randn(EXPERTS, ROWS, COLUMNS) / 10, torch.nn.Conv2d(16, 24, 3)
    experts = [torch.nn.Parameter(start)] if fused else [torch.nn.Parameter(each.clone()) for each in start]
    optimizer = torch.optim.AdamW([*experts, *convolution.parameters()], lr=1e-3)
    targets, spread = torch.randn(EXPERTS, 8, COLUMNS), torch.randn(EXPERTS, ROWS, 8)
    paths = []
    for step in range(1, 30 * count + 1):
        inputs, images = torch.randn(EXPERTS, 32, ROWS), torch.randn(4, 16, 8, 8)
        stacked = experts[0] if fused else torch.stack(experts)
        loss = (inputs @ stacked - torch.sin(inputs @ spread @ targets / 20)).pow(2).sum() / 1000
        optimizer.zero_grad()
        (loss + (convolution(images) - images.mean()).pow(2).mean()).backward()
        optimizer.step()
        if step % 30 == 0:
            names = ["experts"] if fused else [f"experts.{number}" for number in range(EXPERTS)]
            model = {**dict(zip(names, experts, strict=True)), **convolution.state_dict()}
            state = {"model": model, "optimizer": optimizer.state_dict(), "step": step}
            paths.append(saved(run / f"step_{step}.pt", state))
    return paths


def test_a_stack_costs_what_its_matrices_cost(tmp_path):
    apart = compressed_run(write_run(tmp_path / "apart", fused=False))
    together = compressed_run(write_run(tmp_path / "together", fused=True))
    for alone, fused in zip(apart, together, strict=True):
        assert fused.nbytes < 1.03 * alone.nbytes
    methods = {name: method.value for name, method in together[2].methods(together[1]).items()}
    assert {methods["model.experts"], methods["model.experts.[5]"]} <= {"framed", "factored"}
    assert "model.weight.[1]" not in methods


def test_a_chain_of_stacks_restores(tmp_path):
    """By ckzd and by a decoder that was written from the format's page; weights alone have the tensor's own shape."""
    reference = None
    for path in write_run(tmp_path / "run", fused=True):
        report = ckzd.compress(path)
        archive = PlainArchive(Path(report.archive), reference)
        reference = archive.own
        target = tmp_path / path.name
        ckzd.restore(Path(report.archive), output=target)
        assert archive.files() == {path.name: target.read_bytes()}
    ckzd.restore(Path(report.archive), output=tmp_path / "w.safetensors", weights_only=True)
    weights, restored = load_file(tmp_path / "w.safetensors"), torch.load(target)["model"]
    assert same_tensor(weights["model.experts"], restored["experts"].detach())
    assert weights["model.experts"].shape == (EXPERTS, ROWS, COLUMNS)
