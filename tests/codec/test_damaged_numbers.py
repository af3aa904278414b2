"""A checkpoint of a run that diverged costs its successor, which was rolled back, no more than a base does."""

import math
from pathlib import Path

import pytest
import torch
from codec.chains import Archive, encode, restored, same_tensor
from codec.diverged import KINDS, STEPS, diverged, saved, sound

from ckzd.codec.presets import PRESETS
from ckzd.codec.records.index import Method

ALL = {0, 1, 2, 3, 4}  # the last bias is too small to be a tensor of its own
UNAIDED = {
    "all nan": ALL,
    "half nan": ALL,
    "last layer nan": {4},
    "one infinity": {2},
    "blown up": ALL,
    "another initialization": {0, 2, 4},  # biases without a basis cost no less by themselves
}


class Rolled:
    """Archives of a checkpoint that went wrong, of the sound one before, and of the sound one that comes after."""

    def __init__(self, place: Path, kind: str, preset: str = "resume") -> None:
        first, second, self.last = (saved(sound(step), place) for step in STEPS)
        self.kind, self.preset, self.wrong = kind, preset, saved(diverged(kind), place)
        self.before = encode(second, encode(first, None, preset), preset)
        self.itself = encode(self.wrong, self.before, preset)
        self.after = encode(self.last, self.itself, preset)

    def base(self, path: Path) -> Archive:
        return encode(path, None, self.preset)


@pytest.fixture(scope="module", params=KINDS)
def rolled(request, tmp_path_factory) -> Rolled:
    return Rolled(tmp_path_factory.mktemp("run"), request.param)


def model_methods(archive: Archive, reference: Archive) -> list[Method]:
    return [method for name, method in archive.methods(reference).items() if name.startswith("model.")]


def test_what_follows_costs_no_more_than_a_base(rolled):
    assert rolled.after.nbytes < rolled.base(rolled.last).nbytes
    quality, budget = rolled.after.encoded.quality, PRESETS[rolled.preset].budget
    assert quality["weight_error"] <= budget.max_weight_error
    assert quality["worst_tensor_error"] <= budget.max_worst_tensor_error
    state = restored(rolled.after, rolled.itself)
    for name, tensor in sound(STEPS[-1])["model"].items():
        assert torch.linalg.norm(state["model"][name] - tensor) < 0.1 * torch.linalg.norm(tensor), name


def test_weights_that_a_reference_is_no_help_for_are_coded_without_it(rolled):
    """And only those: where one layer is gone the others are deltas as ever."""
    methods = model_methods(rolled.after, rolled.itself)
    alone = {number for number, method in enumerate(methods) if method is Method.WHOLE}
    assert alone == UNAIDED.get(rolled.kind, set())
    assert not {Method.EXACT, Method.DELTA} & set(methods)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_nan_all_over_costs_next_to_nothing(tmp_path, preset):
    """With a reference and without; and what follows loses nothing by it under presets that code exactly, too."""
    rolled = Rolled(tmp_path, "all nan", preset)
    assert rolled.itself.nbytes < 2000
    assert rolled.base(rolled.wrong).nbytes < 4000
    assert rolled.after.nbytes < rolled.base(rolled.last).nbytes
    for tensor in restored(rolled.itself, rolled.before)["model"].values():
        assert tensor.isnan().all()


DAMAGED_BYTES = {  # of exact streams: a few of what is NaN all over, some three an element where a part is
    "last layer nan": 600,
    "moments nan": 1000,
    "one infinity": 3 * 128 * 128,
    "half nan": 2.5 * (64 * 128 + 128 * 128 + 128 * 32),
    "one infinite square": 6.5 * 128 * 128,
}


def test_what_is_sound_beside_damaged_numbers_costs_what_a_delta_does(rolled):
    """Weights whose moments are damaged, and moments whose weights are; what was replaced is no more than a base."""
    as_ever = encode(rolled.last, rolled.before).nbytes + DAMAGED_BYTES.get(rolled.kind, 0)
    is_replaced = rolled.kind in ("blown up", "another initialization")
    assert rolled.itself.nbytes < (rolled.base(rolled.wrong).nbytes if is_replaced else as_ever)


def test_damaged_numbers_are_exact_and_stay_where_they_are(rolled):
    state, original = restored(rolled.itself, rolled.before), torch.load(rolled.wrong)
    pairs = [(state["model"][name], tensor) for name, tensor in original["model"].items()]
    for number, moments in original["optimizer"]["state"].items():
        pairs += [(state["optimizer"]["state"][number][name], moments[name]) for name in ("exp_avg", "exp_avg_sq")]
    for tensor, expected in pairs:
        assert torch.isfinite(tensor).equal(torch.isfinite(expected))
        if not torch.isfinite(expected).all():
            assert same_tensor(tensor, expected)
    quality = rolled.itself.encoded.quality
    assert all(math.isfinite(value) for value in quality.values())
    assert quality["weight_error"] <= PRESETS[rolled.preset].budget.max_weight_error


@pytest.mark.parametrize("kind", ["blown up", "another initialization"])
def test_weights_that_were_replaced_cost_no_more_than_a_base(tmp_path, kind):
    """Neither they, nor those that come back, at a coarser preset, too."""
    rolled = Rolled(tmp_path, kind, "archive")
    assert rolled.itself.nbytes < rolled.base(rolled.wrong).nbytes
    assert rolled.after.nbytes < rolled.base(rolled.last).nbytes
