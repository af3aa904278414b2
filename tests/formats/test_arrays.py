"""NumPy arrays in a pickle are part of it: kept as they are, whatever stands beside them, and taken for no tensor."""

import io

import numpy as np
import pytest
import torch
from codec.chains import decode, encode

from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.formats import read_checkpoint

WIDTH = 64


def arrays(step):
    """As they stand in checkpoints: random states, replay statistics, weights of a model that is no torch module's."""
    draw = np.random.default_rng(step)
    matrix = draw.normal(size=(WIDTH, WIDTH)).astype(np.float32)
    return {
        "random": np.random.RandomState(step).get_state(),
        "replay": {"rewards": draw.normal(size=5000), "done": draw.random(5000) < 0.1, "mean": np.float32(step)},
        "weights": {
            "w": matrix,
            "transposed": matrix.T,
            "slice": matrix[::2, 1::3],
            "big-endian": matrix.astype(">f4"),
        },
        "others": [np.array(["a", "bc"]), np.array([{1}, None], object), np.zeros((0, 3)), np.array(3.5), np.arange(9)],
        "records": np.zeros(4, [("x", "f4"), ("y", "i8")]),
        "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
    }


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(WIDTH, WIDTH)
    optimizer = torch.optim.AdamW(model.parameters())
    paths = []
    for step in (20, 40):
        for _ in range(20):
            model(torch.randn(8, WIDTH)).pow(2).mean().backward()
            optimizer.step()
        path = tmp_path / f"step_{step}.pt"
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, **arrays(step)}
        torch.save(state, path)
        paths.append(path)
    return paths


def test_arrays_beside_tensors_come_back_as_they_were(run):
    base = encode(run[0])
    (data,) = decode(encode(run[1], base), base)
    found, expected = (torch.load(each, weights_only=False) for each in (io.BytesIO(data), run[1]))
    for kind in arrays(40):
        assert repr(found[kind]) == repr(expected[kind])
    for name in expected["weights"]:
        assert found["weights"][name].tobytes() == expected["weights"][name].tobytes()
        assert found["weights"][name].strides == expected["weights"][name].strides
    lossless = encode(run[0], preset="lossless")
    assert decode(encode(run[1], lossless, "lossless"), lossless) == [run[1].read_bytes()]


@pytest.mark.parametrize("kind", ["an optimizer's", "lists", "trees"])
def test_moments_that_are_arrays_belong_to_no_weight(tmp_path, kind):
    """Their weights are tensors, or arrays too: neither is coded with the other's scales."""
    draw = np.random.default_rng(1)
    first, second = (draw.random((2, WIDTH, WIDTH)).astype(np.float32) for _ in range(2))
    states = {number: {"exp_avg": first[number], "exp_avg_sq": second[number]} for number in range(2)}
    document = {
        "an optimizer's": {"state": states, "param_groups": [{"params": [0, 1], "betas": (0.9, 0.999)}]},
        "lists": {"exp_avg": [*first], "exp_avg_sq": [*second]},
        "trees": {"mu": {"a": first[0], "b": first[1]}, "nu": {"a": second[0], "b": second[1]}},
    }[kind]
    model = {name: torch.from_numpy(draw.normal(size=(WIDTH, WIDTH))).float() for name in "ab"}
    path = tmp_path / "step_3.pt"
    torch.save({"model": model, "optimizer": document, "arrays": {"a": first[0]}}, path)
    checkpoint = in_tiles(read_checkpoint(path))
    assert [tensor.path for tensor in checkpoint.tensors] == [("model", "a"), ("model", "b")]
    assert pair(Inputs(checkpoint, None)).triples == ()
    found = torch.load(io.BytesIO(decode(encode(checkpoint))[0]), weights_only=False)
    assert repr(found["optimizer"]) == repr(document)
    assert np.array_equal(found["arrays"]["a"], first[0])
