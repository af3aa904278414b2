"""A model's average has the model's shapes: states go with what their optimizer moves, wherever the average stands."""

import copy

import pytest
import torch
from codec.chains import encode
from torch import nn

from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.formats import read_checkpoint


def network():
    return nn.Sequential(nn.Linear(40, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 40))


class Run:
    """Networks that learn teachers of their own, each with an optimizer and an average."""

    def __init__(self, place, count=1):
        torch.manual_seed(5)
        self.place, self.done = place, 0
        self.models = [network() for _ in range(count)]
        self.averages = [copy.deepcopy(model) for model in self.models]
        self.teachers = [torch.randn(40, 40) for _ in self.models]
        self.optimizers = [torch.optim.AdamW(model.named_parameters(), lr=1e-3) for model in self.models]

    def train(self, steps):
        for _ in range(steps):
            torch.manual_seed(self.done)
            inputs = torch.randn(16, 40)
            for number, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
                optimizer.zero_grad()
                (model(inputs) - torch.tanh(inputs @ self.teachers[number] / 5)).pow(2).mean().backward()
                optimizer.step()
                with torch.no_grad():
                    for mean, own in zip(self.averages[number].parameters(), model.parameters(), strict=True):
                        mean.lerp_(own, 0.05)
            self.done += 1

    def state_of(self, number=0, *, names=False):
        """Of an optimizer, with names or, as most are, without."""
        state = self.optimizers[number].state_dict()
        for group in state["param_groups"]:
            if not names:
                del group["param_names"]
        return state

    def save(self, content):
        path = self.place / f"step_{self.done}.pt"
        torch.save({**content, "step": self.done}, path)
        return path


def below(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def weight_of_states(path, reference):
    """Path of each state's weight, by the state's: matrices of one shape as well as vectors."""
    inputs = Inputs(in_tiles(read_checkpoint(path)), None if reference is None else reference.reconstruction)
    found = {}
    for triple in pair(inputs).triples:
        optimizer, _, number, _ = inputs.tensor(triple.first).path
        found[optimizer, int(number)] = ".".join(inputs.tensor(triple.weight).path)
    return found


MATRICES = {0: "0.weight", 2: "2.weight", 4: "4.weight"}  # vectors are too small to be paired

ONE = {
    "before it": lambda model, mean: {"ema": mean, "model": model},
    "under a name that says nothing": lambda model, mean: {"model": model, "other": mean},
    "behind it": lambda model, mean: {"model": model, "state_dict_ema": mean},
    "in its state dict": lambda model, mean: {"state_dict": below("ema_model.", mean) | below("model.", model)},
    "in its state dict, behind": lambda model, mean: {"state_dict": below("model.", model) | below("ema.", mean)},
    "in its state dict, which has no prefix": lambda model, mean: {"state_dict": below("ema.", mean) | model},
}


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("place", ONE)
def test_states_are_of_the_weights_and_not_of_their_average(tmp_path, place, names):
    run, reference = Run(tmp_path), None
    for _ in range(3):
        run.train(60)
        model, mean = run.models[0].state_dict(), run.averages[0].state_dict()
        path = run.save({**ONE[place](model, mean), "optimizer": run.state_of(names=names)})
        found = weight_of_states(path, reference)
        prefix = "state_dict.model." if "state dict" in place else "model."
        prefix = "state_dict." if "no prefix" in place else prefix
        assert found == {("optimizer", number): prefix + name for number, name in MATRICES.items()}
        reference = encode(path, reference)


def test_an_average_whose_name_says_nothing_is_told_by_what_moved(tmp_path):
    run, reference = Run(tmp_path), None
    for _ in range(2):
        run.train(60)
        states = {"a": run.averages[0].state_dict(), "b": run.models[0].state_dict()}
        path = run.save({**states, "optimizer": run.state_of()})
        found = weight_of_states(path, reference)
        reference = encode(path, reference)
    assert found == {("optimizer", number): f"b.{name}" for number, name in MATRICES.items()}


@pytest.mark.parametrize("swapped", [False, True])
def test_two_models_with_an_average_of_one(tmp_path, swapped):
    """As of a generator and its critic; optimizers may stand in another order than models."""
    run, reference = Run(tmp_path, 2), None
    for _ in range(2):
        run.train(60)
        models = dict(zip("GD", (model.state_dict() for model in run.models), strict=True))
        optimizers = {"optG": run.state_of(0), "optD": run.state_of(1)}
        if swapped:
            optimizers = dict(reversed(optimizers.items()))
        path = run.save({"G_ema": run.averages[0].state_dict(), **models, **optimizers})
        found = weight_of_states(path, reference)
        reference = encode(path, reference)
    assert found == {(f"opt{of}", number): f"{of}.{name}" for of in "GD" for number, name in MATRICES.items()}
