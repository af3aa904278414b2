"""How often an optimizer moved its weights: as it says itself, whatever a name counts."""

import pytest
import torch
from dcp_directories import state_of, trained, write_dcp
from formats.helpers import saved

from ckzd.formats import read_checkpoint


def adam(updates: int, **options: object) -> torch.optim.Optimizer:
    weights = [torch.nn.Parameter(torch.ones(16, 16)) for _ in range(3)]
    optimizer = torch.optim.AdamW(weights, 1e-3, **options)
    for update in range(updates):
        for weight in weights[: 3 if update else 2]:  # the last one joins late
            weight.grad = torch.ones(16, 16)
        optimizer.step()
    return optimizer


def updates(path) -> list[int | None]:
    return [group.updates for optimizer in read_checkpoint(path).optimizers for group in optimizer.groups]


@pytest.mark.parametrize("new_format", [True, False])
def test_it_is_what_its_states_say_most(tmp_path, new_format):
    state = {"optimizer": adam(7).state_dict()}
    path = saved(tmp_path / "epoch_3.pt", state, _use_new_zipfile_serialization=new_format)
    assert updates(path) == [7]
    assert read_checkpoint(path).step == 3, "what orders it in its run is another number"


@pytest.mark.parametrize(
    ("counter", "found"),
    [
        (12, 12), (torch.tensor(12), 12), (torch.tensor(12.0, dtype=torch.float64), 12), (torch.tensor([12.0]), 12),
        (torch.tensor(1.5), None), (torch.tensor(float("nan")), None), (torch.tensor(-1.0), None), ("12", None),
        (torch.tensor([1.0, 2.0]), None), (torch.tensor(True), None), (None, None),
    ],
)  # fmt: skip
def test_counts_of_other_kinds(tmp_path, counter, found):
    state = adam(2).state_dict()
    for one in state["state"].values():
        one["step"] = counter
    assert updates(saved(tmp_path / "x.pt", state)) == [found]


def test_a_group_may_count(tmp_path):
    state = adam(2).state_dict()
    for one in state["state"].values():
        del one["step"]
    state["param_groups"][0]["step"] = 9
    assert updates(saved(tmp_path / "x.pt", state)) == [9]


def test_in_a_directory_of_torch_distributed_too(tmp_path):
    assert set(updates(write_dcp(tmp_path / "epoch_1", 1, state_of(*trained(steps=4))))) == {4}


@pytest.mark.parametrize(
    ("name", "found"),
    [("step_3.pt", 3), ("epoch_3.pt", None), ("epoch=1-step=30.pt", 30), ("ckpt_3.pt", 3), ("best.pt", None)],
)
def test_a_name_counts_updates_unless_it_counts_epochs(tmp_path, name, found):
    assert read_checkpoint(saved(tmp_path / name, {"w": torch.ones(16, 16)})).updates == found
    assert read_checkpoint(saved(tmp_path / name, {"w": torch.ones(16, 16), "step": 8})).updates == 8
