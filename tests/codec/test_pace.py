"""A restored second moment leaves the optimizer as it was: its sum, and how long updates are; exact if need be."""

import math

import numpy as np
import pytest
import torch
from codec.chains import compressed_run, restored

from ckzd.codec.budget import Budget, Pace
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.records.index import Method

SHAPE = (32, 24)


def saved_run(run, second, *, dtype=torch.float32, eps=1e-8, steps=(50_000, 50_100)):
    """Two checkpoints, late ones if nobody says when, of a matrix with these second moments."""
    run.mkdir()
    draw = torch.Generator().manual_seed(0)
    weight, update = (scale * torch.randn(SHAPE, generator=draw) for scale in (0.1, 1e-3))
    first = second.double().sqrt() * torch.randn(SHAPE, generator=draw).double()
    moments = {"step": torch.tensor(float(steps[0])), "exp_avg": first.to(dtype), "exp_avg_sq": second.to(dtype)}
    group = {"params": [0], "betas": (0.9, 0.999), "eps": eps}
    paths = []
    for step in steps:
        paths.append(run / f"step_{step}.pt")
        model = {"w": (weight + (step > steps[0]) * update).to(dtype)}
        torch.save(
            {"model": model, "optimizer": {"state": {0: moments}, "param_groups": [group]}, "step": step}, paths[-1]
        )
    return paths


def of_rank_one():
    return torch.outer(torch.logspace(-9, -6, SHAPE[0]), torch.logspace(-0.5, 0.5, SHAPE[1]))


def uneven():
    return 1e-8 * torch.exp(3 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("preset", ["resume", "archive", "paper"])
@pytest.mark.parametrize(
    ("second", "dtype", "eps"),
    [
        (of_rank_one(), torch.float32, 1e-8),
        (of_rank_one(), torch.bfloat16, 1e-8),
        (uneven(), torch.float32, 1e-8),
        (uneven() * 1e-30, torch.float32, 1e-30),  # about float32's smallest normal number
        (10 * uneven(), torch.float16, 1e-4),  # subnormal in float16, most of it 0
        (30 * of_rank_one(), torch.float16, 1e-4),
    ],
    ids=["rank 1", "rank 1 in bfloat16", "uneven", "tiny", "uneven in float16", "rank 1 in float16"],
)
def test_sums_and_lengths_stay_within_the_budget(preset, second, dtype, eps, tmp_path):
    paths, before = saved_run(tmp_path / "run", second, dtype=dtype, eps=eps), None
    for path, archive in zip(paths, compressed_run(paths, preset), strict=True):
        original, found = (state["optimizer"]["state"][0] for state in (torch.load(path), restored(archive, before)))
        v, w = (state["exp_avg_sq"].double() for state in (original, found))
        assert 0.5 <= (w.sum() / v.sum()).item() <= 2
        root, again = v.sqrt() + eps, w.sqrt() + eps
        used = (v > 0) | (w > 0)
        first = original["exp_avg"].double()
        assert 0.8 <= (root / again)[used].median().item() <= 1.25
        assert 0.8 <= ((first / again)[used].norm() / (first / root)[used].norm()).item() <= 1.25
        quality = archive.encoded.quality
        assert quality["second_moment_ratio"] <= quality["max_second_moment_ratio"] == 2
        assert quality["update_length_ratio"] <= quality["max_update_length_ratio"] == 1.25
        before = archive


@pytest.mark.parametrize("preset", ["resume", "archive"])
@pytest.mark.parametrize("scale", [1e-3, 1e-1, 1e1])
def test_a_young_optimizer_s_first_steps_are_as_long_as_they_were(preset, scale, tmp_path):
    """In float16 most second moments are 0: just those elements move, whose first moments are not."""
    paths = saved_run(tmp_path / "run", scale * uneven(), dtype=torch.float16, eps=1e-4, steps=(40, 80))
    before = None
    for path, archive in zip(paths, compressed_run(paths, preset), strict=True):
        lengths = []
        for state in (torch.load(path), restored(archive, before)):
            moments = state["optimizer"]["state"][0]
            second = moments["exp_avg_sq"].double() / (1 - 0.999 ** state["step"])
            lengths.append((moments["exp_avg"].double() / (second.sqrt() + 1e-4)).norm().item())
        assert 0.8 <= lengths[1] / lengths[0] <= 1.25
        before = archive


def test_what_is_of_rank_one_costs_nothing_and_what_is_not_a_little(tmp_path):
    methods = {}
    for name, second in (("flat", of_rank_one()), ("uneven", uneven())):
        first = compressed_run(saved_run(tmp_path / name, second))[0]
        methods[name] = first.methods()["optimizer.state.0.exp_avg_sq"]
        assert first.encoded.quality["exact_second_moments"] == 0
        assert first.encoded.parts.get("second_moment", 0) < 0.2 * 4 * math.prod(SHAPE)
    assert methods == {"flat": Method.FILL, "uneven": Method.SCALED}


def pace_of(moments, restored, eps=1e-30):
    return Pace.of(moments, restored, elementwise.updates(moments, eps), eps=eps)


def test_a_pace_is_what_it_says():
    moments = Moments(np.ones((1, 4)), np.array([[4.0, 4, 4, 0]]))
    pace = pace_of(moments, np.array([[1.0, 1, 16, 0]]))
    assert (pace.total, pace.median) == (1.5, 2.0)
    assert pace.norm == pytest.approx(math.sqrt((1 + 1 + 1 / 16) / (3 / 4)))
    assert pace.worst == (1.5, 2.0)
    assert not Budget(1, 1).keeps_pace(pace)
    assert Budget(1, 1).keeps_pace(Pace.unchanged())
    assert not Budget(1, 1).keeps_pace(pace_of(Moments(np.ones((1, 2)), np.zeros((1, 2))), np.ones((1, 2))))
