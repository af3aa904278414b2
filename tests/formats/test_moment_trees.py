"""Moments that are kept as trees or lists of all weights are those of an optimizer."""

import time

import pytest
import torch
from codec.chains import decode, encode

from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.formats import read_checkpoint

NAMES = ("a.weight", "a.bias", "b.weight", "b.bias")


def trained(steps=40, width=48):
    """Weights and Adam's states by name, after so many steps."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(width, width) for name in "ab"})
    optimizer = torch.optim.Adam([weight for name in "ab" for weight in model[name].parameters()], 1e-3)
    for _ in range(steps):
        seen = torch.randn(32, width)
        (model["b"](model["a"](seen).tanh()) - seen.sin()).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    states = optimizer.state_dict()["state"]
    return model.state_dict(), {name: states[number] for number, name in enumerate(NAMES)}


def nested(by_name):
    """As flax has its parameters."""
    found = {}
    for name, value in by_name.items():
        module, kind = name.split(".")
        found.setdefault(module, {})[kind] = value
    return found


def saved(path, kind):
    weights, states = trained()
    first, second = ({name: states[name][key] for name in NAMES} for key in ("exp_avg", "exp_avg_sq"))
    lists = {"exp_avg": [*first.values()], "exp_avg_sq": [*second.values()]}
    document = {
        "an optimizer": {"model": weights, "optimizer": {"state": states, "param_groups": [{"params": [*NAMES]}]}},
        "lists": {"model": weights, "optimizer": {"step": 40, **lists}},
        "lists beside weights": {"model": weights, "step": 40, **lists},
        "trees": {"model": weights, "optimizer": {"count": 40, "mu": first, "nu": second}},
        "trees of trees": {
            "params": nested(weights),
            "opt_state": {"count": 40, "mu": nested(first), "nu": nested(second)},
        },
        "tuples in a list": {"model": weights, "opt": [{"m": (*first.values(),), "v": (*second.values(),), "t": 40}]},
        "by number": {
            "model": weights,
            "opt": {"exp_avg": dict(enumerate(first.values())), "exp_avg_sq": dict(enumerate(second.values()))},
        },
    }[kind]
    torch.save(document, path)
    return in_tiles(read_checkpoint(path))


def pairs(checkpoint):
    """Last part of a weight's name -> the moments that it has."""
    inputs = Inputs(checkpoint, None)
    names = {n: ".".join(inputs.tensor(n).path) for n in range(len(checkpoint.tensors))}
    return {names[triple.weight]: [names[number] for number in triple.moments] for triple in pair(inputs).triples}


KINDS = ("lists", "lists beside weights", "trees", "trees of trees", "tuples in a list", "by number")


@pytest.mark.parametrize("kind", KINDS)
def test_all_moments_are_found(tmp_path, kind):
    """They took ten times the bytes of the same state as an optimizer's: nothing was taken for moments."""
    expected = encode(saved(tmp_path / "other.pt", "an optimizer"))
    checkpoint = saved(tmp_path / "step_40.pt", kind)
    found = pairs(checkpoint)
    assert len(found) == 2  # matrices: vectors of 48 are not coded with a loss
    assert all(names[0].endswith("exp_avg") and names[1].endswith("exp_avg_sq") for names in found.values())
    archive = encode(checkpoint)
    assert archive.nbytes < 1.05 * expected.nbytes + 200
    assert len(decode(archive)[0]) == (tmp_path / "step_40.pt").stat().st_size


@pytest.mark.parametrize("kind", KINDS)
def test_their_bytes_come_back(tmp_path, kind):
    archive = encode(saved(tmp_path / "step_40.pt", kind), preset="lossless")
    assert decode(archive) == [(tmp_path / "step_40.pt").read_bytes()]


def test_how_often_they_were_moved_is_said_beside_them(tmp_path):
    for kind, updates in (("lists", 40), ("trees", 40), ("tuples in a list", 40), ("trees of trees", 40)):
        (optimizer,) = saved(tmp_path / "step.pt", kind).optimizers
        assert optimizer.groups[0].updates == updates


def test_short_names_alone_are_no_moments(tmp_path):
    """Of a model's own modules, of shapes that no weight has, of others beside them, of two that differ."""
    matrix = {"weight": torch.rand(32, 32)}
    documents = [
        {"model": {"mu": matrix, "nu": {"weight": torch.rand(32, 32)}}},
        {"model": {"mu": matrix, "nu": {"weight": torch.rand(32, 32)}, "head": matrix}, "ema": matrix},
        {"model": matrix, "others": {"mu": matrix, "nu": {"bias": torch.rand(32, 32)}}},
        {"model": matrix, "others": {"mu": matrix, "nu": {"weight": torch.rand(64, 32)}}},
        {"params": {"trunk": matrix, "gauss": {"m": matrix, "v": matrix}}, "ema": matrix},
        {"posterior": {"m": matrix, "v": matrix}, "prior": {"m": matrix, "v": matrix}},
        {"nets": {"m": matrix, "v": matrix, "t": {"weight": torch.rand(32, 32)}}, "ema": matrix},
        {"model": matrix, "others": {"exp_avg": matrix, "exp_avg_sq": 3}},
        {
            "others": {
                "exp_avg": {"a.b": torch.rand(9), "a": {"b": torch.rand(9)}},
                "exp_avg_sq": {"a.b": torch.rand(9)},
            }
        },
        {"model": matrix, "others": {"exp_avg": [matrix, {1, 2}], "exp_avg_sq": [matrix, {1, 2}]}},
    ]
    for number, document in enumerate(documents):
        path = tmp_path / f"{number}.pt"
        torch.save(document, path)
        assert read_checkpoint(path).optimizers == (), number


def test_many_small_pairs_take_linear_time(tmp_path):
    matrix = torch.rand(16, 16)
    path = tmp_path / "a.pt"
    torch.save([{"m": [matrix], "v": [matrix], "t": 5} for _ in range(3000)], path)
    started = time.process_time()
    read_checkpoint(path)
    assert time.process_time() - started < 10  # it was four minutes


def test_work_is_bounded(tmp_path):
    """Each mapping has all that is below it as its moments: 400 deep, of 4,000 lists."""
    inner = [[] for _ in range(4000)]
    for _ in range(100):
        inner = {"mu": inner, "nu": inner}
    path = tmp_path / "a.pt"
    torch.save({"deep": inner, "w": torch.rand(64, 64)}, path)
    assert read_checkpoint(path).optimizers == ()
