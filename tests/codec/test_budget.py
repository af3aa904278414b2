"""Whatever a checkpoint holds, its archive loses no more than the preset's budget, and says what that took."""

import dataclasses
import hashlib
from unittest import mock

import pytest
import torch
from codec.chains import compressed_run, restored, same_tensor
from hypothesis import given
from hypothesis import strategies as st
from plain_decoder import PlainArchive

import ckzd
from ckzd.codec.budget import Budget, Loss, too_much
from ckzd.codec.presets import PRESETS
from ckzd.codec.records.index import Method
from ckzd.codec.transform import quantize

WEIGHTS = 24
SHAPE = (24, 32)
UPDATE = 1e-4


def saved_run(place, change, *, weights=WEIGHTS, dtype=torch.float32):
    """Two checkpoints of a run with Adam; `change(weights, updates)` edits what is there first and what is added."""
    draw = torch.Generator().manual_seed(0)
    before = {f"w{k}": 0.01 * torch.randn(SHAPE, generator=draw) for k in range(weights)}
    updates = {name: UPDATE * torch.randn(SHAPE, generator=draw) for name in before}
    change(before, updates)
    moments = {
        k: {"step": torch.tensor(5e4), "exp_avg": 1e-5 * torch.randn(SHAPE, generator=draw),
            "exp_avg_sq": torch.full(SHAPE, 1e-8)}
        for k in range(weights)
    }  # fmt: skip
    optimizer = {"state": moments, "param_groups": [{"params": list(range(weights)), "betas": (0.9, 0.999)}]}
    paths = []
    for step, moved in ((50_000, 0), (50_100, 1)):
        first = {name: weight.to(dtype).double() for name, weight in before.items()}
        model = {name: (weight + moved * updates[name].double()).to(dtype) for name, weight in first.items()}
        torch.save({"model": model, "optimizer": optimizer, "step": step}, place / f"step_{step}.pt")
        paths.append(place / f"step_{step}.pt")
    return paths


def errors(path, state):
    """Error of every weight over its own energy. All weigh the same: their second moments do."""
    found = {}
    for name, weight in torch.load(path)["model"].items():
        lost = (state["model"][name].double() - weight.double()).pow(2).sum()
        found[name] = (lost / weight.double().pow(2).sum()).item()
    return found


def small(weights, updates):
    """One weight on a scale of its own, where the step of all others loses everything."""
    weights["w2"] *= 1e-3
    updates["w2"] *= 0.1


def adverse(weights, updates):
    small(weights, updates)
    updates["w1"][3, 5] = 0.5  # outliers, thousands of times its other updates
    updates["w1"][7, 11] = -0.3
    updates["w3"] = torch.randn(SHAPE)  # another layer altogether


@pytest.mark.parametrize("preset", ["resume", "archive"])
def test_an_adverse_checkpoint_keeps_to_the_budget_and_says_so(preset, tmp_path):
    paths = saved_run(tmp_path, adverse)
    first, second = compressed_run(paths, preset)
    quality, allowed = second.encoded.quality, PRESETS[preset].budget
    assert quality["max_weight_error"] == allowed.max_weight_error
    assert quality["max_worst_tensor_error"] == allowed.max_worst_tensor_error
    assert 0 < quality["weight_error"] <= allowed.max_weight_error
    assert 0 < quality["worst_tensor_error"] <= allowed.max_worst_tensor_error
    found = errors(paths[1], restored(second, first))
    assert max(found.values()) == pytest.approx(quality["worst_tensor_error"], rel=0.01)
    exponents = second.index(first).step_exponents
    assert quality["tightened_tensors"] == len(exponents) > 0
    assert quality["exact_tensors"] == 0


def test_an_ordinary_checkpoint_costs_no_further_bits(tmp_path):
    first, second = compressed_run(saved_run(tmp_path, lambda *_: None))
    quality = second.encoded.quality
    assert (quality["tightened_tensors"], quality["exact_tensors"]) == (0, 0)
    assert second.index(first).step_exponents == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", ["resume", "paper"])
@pytest.mark.parametrize("limit", [1e-2, 1e-9, 1e-14, 0.0])
def test_any_budget_can_be_met(preset, limit, dtype, tmp_path):
    """By finer steps, and where these do not reach by exact tensors: down to nothing lost at all."""
    paths = saved_run(tmp_path, adverse, weights=6, dtype=dtype)
    tight = dataclasses.replace(PRESETS[preset], budget=Budget(limit, 1.0 if limit else 0.0))
    with mock.patch.dict(PRESETS, {preset: tight}):
        first, second = compressed_run(paths, preset)
    quality, state = second.encoded.quality, restored(second, first)
    assert quality["weight_error"] <= limit
    assert quality["tightened_tensors"] + quality["exact_tensors"] > 0 or limit > 1e-6
    if not limit:
        for name, weight in torch.load(paths[1])["model"].items():
            assert same_tensor(state["model"][name], weight)


@pytest.mark.parametrize("limit", [0.1, 1e-6, 0.0])
def test_a_budget_for_each_weight_is_met_by_each_weight(limit, tmp_path):
    paths = saved_run(tmp_path, adverse)
    tight = dataclasses.replace(PRESETS["resume"], budget=Budget(1.0, limit))
    with mock.patch.dict(PRESETS, {"resume": tight}):
        first, second = compressed_run(paths)
    assert max(errors(paths[1], restored(second, first)).values()) <= 1.01 * limit
    if not limit:
        assert {second.methods(first)[f"model.w{k}"] for k in range(WEIGHTS)} <= {Method.DELTA, Method.EXACT}
        assert second.encoded.quality["exact_tensors"] >= WEIGHTS - 1  # one moves further than levels reach


def test_finer_steps_cost_the_weights_that_have_them_and_no_others(tmp_path):
    paths = saved_run(tmp_path, small)
    with mock.patch.dict(PRESETS, {"resume": dataclasses.replace(PRESETS["resume"], budget=Budget(0.001, 0.1))}):
        first, second = compressed_run(paths)
    assert list(second.index(first).step_exponents) == [2]
    index = second.index(first)
    nbytes = [code.stream[2] for code in index.codes[:WEIGHTS]]
    others = sorted(nbytes[:2] + nbytes[3:])
    assert nbytes[2] < 1.5 * others[len(others) // 2]


def test_a_plain_decoder_reads_finer_steps(tmp_path):
    """What the archive means is what FORMAT.md says."""
    before = None
    for path in saved_run(tmp_path, small, weights=4):
        archive = PlainArchive(ckzd.compress(path, store=tmp_path / "store").archive, before)
        before = archive.own
        (data,) = archive.files().values()
        assert hashlib.sha256(data).hexdigest() == archive.manifest["files"][0]["sha256"]
    assert [number for number, _ in archive.index["halvings"]] == [2]


losses = st.builds(Loss, st.floats(0, 1e30), st.floats(1e-30, 1e30), st.integers(1, 10**9))


@given(st.dictionaries(st.integers(0, 50), losses), st.floats(0, 1e30))
def test_without_the_weights_that_are_too_much_the_rest_fits(found, allowed):
    over = too_much(found, allowed, exactly=True)
    assert sum(loss.error for number, loss in found.items() if number not in over) <= allowed
    if sum(loss.error for loss in found.values()) <= allowed:
        assert over == []
    worst = [found[number].error / found[number].elements for number in over]
    rest = [loss.error / loss.elements for number, loss in found.items() if number not in over]
    assert not worst or not rest or min(worst) >= max(rest)


def test_a_step_far_too_coarse_is_found_in_a_few_tries(tmp_path):
    """Each try quantizes a whole tensor: a thousand times too coarse must not take ten."""
    paths = saved_run(tmp_path, small)
    with mock.patch.object(quantize, "quantize_scalar", wraps=quantize.quantize_scalar) as tried:
        compressed_run(paths)
    assert tried.call_count <= WEIGHTS + 3
