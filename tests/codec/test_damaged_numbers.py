"""A checkpoint of a run that diverged costs its successor, which was rolled back, no more than a base does."""

from pathlib import Path

import pytest
import torch
from codec.chains import Archive, encode, restored
from codec.diverged import KINDS, STEPS, diverged, saved, sound

from ckzd.codec.presets import PRESETS
from ckzd.codec.records.index import Method

ALL = {0, 1, 2, 3, 4}  # the last bias is too small to be a tensor of its own
UNAIDED = {"all nan": ALL, "half nan": ALL, "last layer nan": {4}, "one infinity": {2}, "blown up": ALL}


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
