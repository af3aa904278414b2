"""Which state belongs to which weight: every way in which frameworks order their parameters."""

import io

import numpy as np
import pytest
import torch
from codec.chains import encode

from ckzd.codec.analysis import tiles
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import MIN_ELEMENTS, pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.formats import read_checkpoint

SHAPES = {
    "embed.weight": (40, 16),
    "layers.0.attn.weight": (16, 16),
    "layers.0.attn.bias": (160,),
    "layers.0.norm.weight": (144,),
    "layers.1.attn.weight": (16, 16),
    "layers.1.attn.bias": (160,),
    "layers.1.norm.weight": (144,),
    "layers.10.attn.weight": (16, 16),
    "head.weight": (40, 16),
    "scalars": (4,),
}


class Run:
    """A model whose weights move by what their states say, in any order of states."""

    def __init__(self, path, shapes=SHAPES, *, seed=0, dtype=torch.float32):
        self.path, self.draw = path, torch.Generator().manual_seed(seed)
        self.weights = {n: torch.randn(s, generator=self.draw).to(dtype) for n, s in shapes.items()}

    def step(self, frozen=()):
        self.moments = {}
        for name, weight in self.weights.items():
            first = torch.randn(weight.shape, generator=self.draw) * 1e-3
            second = first**2 + 1e-6 * torch.rand(weight.shape, generator=self.draw)
            self.moments[name] = first, second
            if name not in frozen:
                self.weights[name] = weight - (1e-2 * first / second.sqrt()).to(weight.dtype)

    def save(self, step, order, *, ids=None, groups=None, names=False, extra=()):
        """`order`: names in the order of the optimizer's ids; `groups`: how many of them in each group."""
        ids = list(range(len(order))) if ids is None else ids
        state = {
            i: dict(zip(("exp_avg", "exp_avg_sq"), self.moments[n], strict=True))
            for i, n in zip(ids, order, strict=True)
        }
        counts, param_groups, start = groups or [len(order)], [], 0
        for count in counts:
            group = {"params": ids[start : start + count], "betas": (0.9, 0.999)}
            param_groups.append(group | ({"param_names": order[start : start + count]} if names else {}))
            start += count
        document = {"model": self.weights, "optimizer": {"state": state, "param_groups": param_groups}, "step": step}
        path = self.path / f"step_{step}.pt"
        torch.save({**dict(extra), **document}, path)
        return path


def found(path, reference=None):
    """Name of a weight -> position of its state; what is not paired is left out."""
    inputs = Inputs(in_tiles(read_checkpoint(path)), reference.reconstruction if reference is not None else None)
    pairs = {}
    for triple in pair(inputs).triples:
        if triple.weight not in inputs.tiles:
            continue
        weight, first, second = (inputs.tensor(n).path for n in (triple.weight, triple.first, triple.second))
        assert first[:-1] == second[:-1]
        assert (first[-1], second[-1]) == ("exp_avg", "exp_avg_sq")
        pairs[".".join(weight)] = first[-2]
    return pairs


def expected(order, ids=None):
    """What all weights that are large enough should be paired with."""
    ids = range(len(order)) if ids is None else ids
    large = [(f"model.{n}", str(i)) for i, n in zip(ids, order, strict=True) if np.prod(SHAPES[n]) >= MIN_ELEMENTS]
    return dict(large)


def decays(name):
    return "bias" not in name and "norm" not in name


NAMES = list(SHAPES)
ORDERS = {
    "module": NAMES,
    "hugging face, decay first": [*filter(decays, NAMES), *[n for n in NAMES if not decays(n)]],
    "matrices first": sorted(NAMES, key=lambda name: len(SHAPES[name]) < 2),
    "no decay first": sorted(NAMES, key=lambda name: len(SHAPES[name]) >= 2),
}


@pytest.mark.parametrize("name", ORDERS)
def test_orders_of_frameworks_are_told_without_a_reference(tmp_path, name):
    run, order = Run(tmp_path), ORDERS[name]
    run.step()
    groups = [sum(map(decays, NAMES)), len(NAMES) - sum(map(decays, NAMES))] if "decay first" in name else None
    assert found(run.save(1, order, groups=groups)) == expected(order)


def test_names_win_over_any_order(tmp_path):
    run, order = Run(tmp_path), NAMES[::-1]
    run.step()
    assert found(run.save(1, order, names=True)) == expected(order)
    assert found(run.save(2, order, ids=order)) == expected(order, order)  # optimizers whose keys are names


@pytest.mark.parametrize("tile", [tiles.MAX_ELEMENTS, 384])
def test_shuffled_matrices_are_matched_by_the_evidence(tmp_path, monkeypatch, tile):
    """Same shapes in an order that no rule knows: weights moved against their own momentum and no other's."""
    monkeypatch.setattr(tiles, "MAX_ELEMENTS", tile)
    run = Run(tmp_path)
    run.step()
    first = encode(run.save(1, NAMES))
    run.step()
    order = list(NAMES)
    square = [n for n in NAMES if SHAPES[n] == (16, 16)]
    wide = [n for n in NAMES if SHAPES[n] == (40, 16)]
    for names in (square, wide):
        for name, other in zip(names, names[1:] + names[:1], strict=True):
            order[NAMES.index(name)] = other
    path = run.save(2, order)
    assert found(path) == expected(NAMES)  # the order alone is fooled
    assert found(path, first) == expected(order)


def test_no_evidence_leaves_the_order(tmp_path):
    """Weights that moved by something else than their states: noise must not shuffle what fits."""
    run = Run(tmp_path)
    run.step()
    first = encode(run.save(1, NAMES))
    run.step()
    for name, weight in run.weights.items():
        run.weights[name] = weight + 1e-3 * torch.randn(weight.shape, generator=run.draw)
    noise = Run(tmp_path, seed=9)
    noise.step()
    run.moments = noise.moments
    assert found(run.save(2, NAMES), first) == expected(NAMES)


def test_frozen_weights_have_no_state(tmp_path):
    """The optimizer holds the trained ones only: told by what moved since the reference."""
    run, frozen = Run(tmp_path), ("embed.weight", "layers.0.attn.weight", "layers.0.attn.bias")
    trained = [name for name in NAMES if name not in frozen]
    run.step(frozen)
    first = encode(run.save(1, trained))
    run.step(frozen)
    assert found(run.save(2, trained), first) == expected(trained)


def test_frozen_weights_with_states_in_an_unknown_order(tmp_path):
    run, frozen = Run(tmp_path), ("layers.0.attn.weight",)
    trained = [name for name in NAMES if name not in frozen][::-1]
    run.step(frozen)
    first = encode(run.save(1, trained))
    run.step(frozen)
    got = found(run.save(2, trained), first)
    matrices = {n: i for n, i in expected(trained).items() if len(SHAPES[n.removeprefix("model.")]) == 2}
    assert {name: number for name, number in got.items() if name in matrices} == matrices


@pytest.mark.parametrize("key", ["ema", "a_copy"])
def test_a_second_copy_of_the_model_has_no_state(tmp_path, key):
    run = Run(tmp_path)
    run.step()
    average = {name: weight * 0.5 for name, weight in run.weights.items()}
    got = found(run.save(1, NAMES, extra={key: average}))
    assert set(got.values()) == set(expected(NAMES).values())
    assert len(got) == len(expected(NAMES))


def test_tied_copies_in_storages_of_their_own(tmp_path):
    """The optimizer holds one; the copy comes later in the state dict."""
    run = Run(tmp_path)
    run.step()
    first = encode(run.save(1, NAMES))
    run.step()
    names = [n for n in NAMES if n != "head.weight"]
    run.weights["head.weight"] = run.weights["embed.weight"].clone()
    got = found(run.save(2, names), first)
    assert got["model.embed.weight"] == "0"
    assert "model.head.weight" not in got or got["model.head.weight"] != "0"


def test_what_does_not_fit_is_left_alone(tmp_path):
    run = Run(tmp_path)
    run.step()
    shape = run.moments["embed.weight"]
    run.moments["embed.weight"] = (shape[0], shape[1][:20])  # moments of two shapes
    run.moments["head.weight"] = tuple(m.int() for m in run.moments["head.weight"])  # not a dtype that loses
    run.moments["layers.0.attn.weight"] = tuple(torch.randn(8, 32) for _ in range(2))  # of no weight
    got = found(run.save(1, NAMES))
    assert not {"model.embed.weight", "model.head.weight", "model.scalars"} & got.keys()
    assert sorted(got) == sorted(set(got))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_broken_states_make_no_noise(tmp_path, value):
    run = Run(tmp_path)
    run.step()
    first = encode(run.save(1, NAMES))
    run.step()
    for name in NAMES:
        run.moments[name][0][..., 0] = value
        run.moments[name][1][..., 1] = value
        run.weights[name][..., 2] = value
    found(run.save(2, NAMES), first)


def test_reading_a_checkpoint_twice_pairs_alike(tmp_path):
    run = Run(tmp_path)
    run.step()
    path = run.save(1, NAMES)
    assert found(path) == found(path)
    assert isinstance(path.read_bytes(), bytes)
    assert torch.load(io.BytesIO(path.read_bytes()))["step"] == 1
