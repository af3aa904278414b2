"""What is exactly 0 stays so, in all lossy presets and all along a chain: pruned weights, masked moments, padding."""

import numpy as np
import pytest
import torch
from codec.chains import compressed_run, restored
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ckzd.checkpoint import STORED_AS
from ckzd.codec.methods.zeros import decode_zeros, encode_zeros, expected_in_weight, is_zero, masked_weight, without

masks = array_shapes(min_dims=2, max_dims=2, max_side=40)


@given(data=st.data())
def test_a_mask_comes_back_whatever_was_expected(data):
    shape = data.draw(masks)
    zeros, expected = (data.draw(arrays(np.bool_, shape)) for _ in range(2))
    assert np.array_equal(decode_zeros(encode_zeros(zeros, expected), expected), zeros)
    assert encode_zeros(zeros, zeros) == b""


def test_bits_behind_the_end_of_a_mask_are_refused():
    none = np.zeros((3, 3), np.bool_)
    longer = encode_zeros(np.eye(4, dtype=np.bool_), np.zeros((4, 4), np.bool_))
    with pytest.raises(ValueError, match="behind its end"):
        decode_zeros(longer, none)


@pytest.mark.parametrize("numbers", [np.float32([0, -0.0, 1e-40]), np.uint16([0, 0x8000, 1]), np.float16([0, -0.0, 1])])
def test_zeros_are_of_either_sign(numbers):
    assert is_zero(numbers).tolist() == [True, True, False]
    assert without(numbers, np.array([[True], [False], [True]])).tolist() == [0, numbers[1], 0]
    assert not expected_in_weight(None, (3, 1)).any()


def test_no_live_weight_of_a_masked_tensor_becomes_0():
    for dtype, live in (("float32", 2.0**-126), ("float16", 2.0**-14), ("bfloat16", 0x0080)):
        values = np.zeros((2, 2), STORED_AS[dtype])
        assert masked_weight(values, np.eye(2, dtype=np.bool_), dtype).tolist() == [[0, live], [live, 0]]


def unstructured(weight):
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5


def two_of_four(weight):
    order = torch.rand((weight.numel() // 4, 4), generator=torch.Generator().manual_seed(1)).argsort(1)
    return (order < 2).view(weight.shape)


def padding(weight):
    kept = torch.ones(weight.shape, dtype=torch.bool)
    kept[3:9] = False
    return kept


def pruned_run(run, mask_of, optimizer, dtype=torch.float32):
    """Three checkpoints of a small job whose first matrix keeps its mask, and the mask."""
    torch.manual_seed(0)
    run.mkdir()
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Tanh(), torch.nn.Linear(40, 20))
    mask, trained = mask_of(model[0].weight), optimizer(model.parameters())
    model[0].weight.data.mul_(mask)
    teacher, paths = torch.randn(24, 20), []
    for step in range(1, 31):
        rows = torch.randn(32, 24)
        trained.zero_grad()
        (model(rows) - rows @ teacher).pow(2).mean().backward()
        model[0].weight.grad.mul_(mask)
        trained.step()
        if step % 10 == 0:
            weights = {name: weight.to(dtype) for name, weight in model.state_dict().items()}
            paths.append(run / f"step_{step}.pt")
            torch.save({"model": weights, "optimizer": trained.state_dict(), "step": step}, paths[-1])
    return paths, ~mask


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-3),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 1e-2, momentum=0.9),
}


@pytest.mark.parametrize("preset", ["resume", "archive", "paper"])
@pytest.mark.parametrize("mask_of", [unstructured, two_of_four, padding])
def test_what_was_pruned_stays_pruned_all_along_a_chain(preset, mask_of, tmp_path):
    paths, zeros = pruned_run(tmp_path / "run", mask_of, OPTIMIZERS["adamw"])
    before = None
    for path, archive in zip(paths, compressed_run(paths, preset), strict=True):
        state, original = restored(archive, before), torch.load(path)
        moments = state["optimizer"]["state"][0]
        for found in (state["model"]["0.weight"], moments["exp_avg"], moments["exp_avg_sq"]):
            assert not found[zeros].any()
        assert torch.equal(state["model"]["0.weight"] == 0, original["model"]["0.weight"] == 0)
        before = archive


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_lone_momenta_and_short_dtypes_keep_their_zeros(dtype, tmp_path):
    paths, zeros = pruned_run(tmp_path / "run", unstructured, OPTIMIZERS["sgd"], dtype)
    before = None
    for archive in compressed_run(paths):
        state = restored(archive, before)
        assert not state["model"]["0.weight"][zeros].any()
        assert not state["optimizer"]["state"][0]["momentum_buffer"][zeros].any()
        before = archive


def test_a_mask_is_paid_once(tmp_path):
    """In a base, and where it changes; moments and dependents expect it."""
    paths, _ = pruned_run(tmp_path / "run", unstructured, OPTIMIZERS["adamw"])
    archives = compressed_run(paths)
    assert archives[0].encoded.parts["zeros"] > 24 * 40 / 8
    assert [archive.encoded.parts["zeros"] for archive in archives[1:]] == [0, 0]


def test_what_is_pruned_later_is_0_from_then_on(tmp_path):
    paths, _ = pruned_run(
        tmp_path / "run", lambda weight: torch.ones(weight.shape, dtype=torch.bool), OPTIMIZERS["adamw"]
    )
    last = torch.load(paths[-1])
    last["model"]["0.weight"][unstructured(last["model"]["0.weight"])] = 0
    torch.save(last, paths[-1])
    archives = compressed_run(paths)
    found = restored(archives[2], archives[1])["model"]["0.weight"]
    assert torch.equal(found == 0, last["model"]["0.weight"] == 0)


def test_without_an_exact_zero_there_is_no_mask(tmp_path):
    paths, _ = pruned_run(
        tmp_path / "run", lambda weight: torch.ones(weight.shape, dtype=torch.bool), OPTIMIZERS["adamw"]
    )
    first, second, _ = compressed_run(paths)
    assert first.index().zeros == second.index(first).zeros == {}
