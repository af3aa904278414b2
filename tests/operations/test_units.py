"""What is replaced on request: checkpoints that are known whole, and only where it gains something."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckzd
from ckzd.errors import BadCheckpoint


def files_below(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def save(path: Path, tensor: torch.Tensor | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.zeros(64, 64) if tensor is None else tensor}, path)
    return path


@pytest.mark.parametrize(
    ("names", "asked", "said"),
    [
        (["step_1/net.pt", "step_1/more/optim.pt"], "step_1", "checkpoints of several files"),
        (["step_1/net.pt", "step_1/optim.pt"], "step_1/net.pt", "a part of .*step_1"),
        (["iter_0000001/mp_rank_00/a.pt", "iter_0000001/mp_rank_00/b.pt"], "iter_0000001/mp_rank_00", "Megatron"),
        (["tag/mp_rank_00_model_states.pt", "tag/x.pt"], "tag/x.pt", "DeepSpeed"),
        (["run/m_step1_rank0.pt", "run/m_step1_rank1.pt"], "run/m_step1_rank1.pt", "sharded"),
        (["run/m_step1_rank0.pt", "run/m_step1_rank1.pt"], "run", "left alone whole"),
        (["run/model.pt", "run/optimizer.pt"], "run", "left alone whole"),
        (["checkpoint-5/optimizer.pt", "checkpoint-5/trainer_state.json"], "checkpoint-5/optimizer.pt", "Hugging Face"),
    ],
)
def test_a_part_of_what_is_left_alone_is_not_replaced(tmp_path, names, asked, said):
    for name in names:
        save(tmp_path / name)
    with pytest.raises(BadCheckpoint, match=said):
        ckzd.compress(tmp_path / asked, preset="lossless", replace=True)
    assert files_below(tmp_path) == set(names)


def test_a_file_of_several_of_one_step_may_be_archived_and_replaced(tmp_path):
    for name in ("G_1.pt", "D_1.pt"):
        save(tmp_path / "run" / name)
    assert ckzd.compress(tmp_path / "run" / "G_1.pt", preset="lossless", replace=True).replaced


@pytest.mark.parametrize("kind", ["noise", "no tensors"])
def test_what_gains_too_little_is_kept(tmp_path, kind):
    path = tmp_path / "run" / "embeddings.safetensors"
    path.parent.mkdir()
    if kind == "noise":
        save_file({"weight": torch.randint(-(2**62), 2**62, (5000,))}, path)
    else:
        path = save(path.with_name("nothing.pt"))
        torch.save({"epoch": 3}, path)
    report = ckzd.compress(path, replace=True)
    assert (report.replaced, path.exists()) == (False, True)
    assert "too little is gained" in report.kept


def test_what_has_no_moments_is_said_to_be_kept_exact(tmp_path):
    alone = ckzd.compress(save(tmp_path / "alone" / "step_1.pt", torch.arange(4096.0).reshape(64, 64) % 7))
    assert alone.kept_exact
    assert ckzd.inspect(alone.archive)["kept_exact"] == "no weights are known in it: kept exact"
    assert not ckzd.compress(save(tmp_path / "exact" / "step_1.pt"), preset="lossless").kept_exact


def test_the_library_takes_texts_and_paths(tmp_path):
    path = save(tmp_path / "run" / "step_1.pt")
    report = ckzd.compress(str(path), store=str(tmp_path / "store"), preset="lossless")
    for spelled in (report.archive, Path(report.archive)):
        assert ckzd.inspect(spelled)["name"] == "step_1.pt"
        assert ckzd.verify(spelled).ok
        other = tmp_path / f"{type(spelled).__name__}.pt"
        ckzd.restore(spelled, output=type(spelled)(other))
        assert other.read_bytes() == path.read_bytes()
