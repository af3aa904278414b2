"""The synthetic checkpoints: of the size that was asked for, and two of one run."""

import math

import pytest
import torch
from memory import BYTES_A_PARAMETER, make_checkpoint, transformer_shapes, weight


@pytest.mark.parametrize("size", [2e8, 2e9, 2e10])
def test_shapes_have_about_the_size_that_was_asked_for(size):
    shapes = transformer_shapes(size / BYTES_A_PARAMETER)
    assert sum(map(math.prod, shapes.values())) * BYTES_A_PARAMETER == pytest.approx(size, rel=0.05)


def test_a_checkpoint_holds_what_adam_keeps_and_leaves_nothing_else(tmp_path):
    shapes = {"a.weight": (6, 4), "a.bias": (6,)}
    make_checkpoint(tmp_path / "one.pt", shapes, updates=1)
    assert [path.name for path in tmp_path.iterdir()] == ["one.pt"]
    state = torch.load(tmp_path / "one.pt", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in state["model"].items()} == shapes
    assert all((each["exp_avg_sq"] > 0).all() for each in state["optimizer"]["state"].values())
    torch.optim.AdamW([torch.zeros(shape) for shape in shapes.values()]).load_state_dict(state["optimizer"])


def test_an_update_moves_weights_by_about_what_training_does():
    update = weight((64, 32), 0, updates=1) - weight((64, 32), 0, updates=0)
    assert 1e-3 < update.std() < 1e-2
