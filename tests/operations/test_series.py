"""Several series in one directory: each is coded as if it were alone; where no name tells, what they hold does."""

import copy
from pathlib import Path

import pytest
import torch
from codec.diverged import STEPS, network, sound
from operations.test_damage import rot

import ckzd
from ckzd.chains import read_manifest
from ckzd.operations.compress import CompressReport

FIRST, SECOND, LAST = STEPS
State = dict


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


def compressed(run: Path, name: str, state: State, **options) -> CompressReport:
    run.mkdir(exist_ok=True)
    torch.save(state, run / name)
    return ckzd.compress(run / name, **options)


def other_model(step: int) -> State:
    """Half as many layers of other sizes, that move a little from step to step."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(96, 160), torch.nn.Linear(160, 8))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    for _ in range(step // 20):
        model(torch.randn(16, 96)).square().mean().backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}


def other_initialization(state: State, seed: int) -> State:
    """The same shapes and names, and nothing else in common."""
    torch.manual_seed(seed)
    return copy.deepcopy(state) | {"model": network().state_dict()}


def reference_of(report: CompressReport) -> str | None:
    """The name of the checkpoint that it is a delta against."""
    return None if report.reference is None else read_manifest(Path(report.reference)).name


def cached(report: CompressReport) -> set[str]:
    return {path.stem for path in (Path(report.archive).parents[2] / "cache").iterdir()}


def reconstructions(*reports: CompressReport) -> set[str]:
    return {read_manifest(Path(report.archive)).reconstruction for report in reports}


@pytest.mark.parametrize("stride", [1, 2])
def test_two_models_of_each_step_are_as_small_as_each_alone(run, tmp_path, stride):
    made = {"G": sound, "D": other_model}
    both = {f"{name}_{step}.pth": make(step) for step in STEPS for name, make in made.items()}
    beside = {name: compressed(run, name, state, stride=stride) for name, state in both.items()}
    alone = {name: compressed(tmp_path / name[0], name, state, stride=stride) for name, state in both.items()}
    for name, report in beside.items():
        assert reference_of(report) == reference_of(alone[name])
        assert report.archive_bytes == alone[name].archive_bytes
    newest = [beside[f"{name}_{step}.pth"] for step in STEPS[-stride:] for name in made]
    own = reconstructions(*beside.values())
    assert cached(newest[0]) & own == reconstructions(*newest)


def test_they_are_made_again_as_they_were(run):
    reports = [
        compressed(run, f"{name}_{step}.pth", make(step))
        for step in STEPS
        for name, make in (("G", sound), ("D", other_model))
    ]
    for report in reports:
        archive = Path(report.archive)
        data = archive.read_bytes()
        rot(archive)
        ckzd.compress(report.checkpoint)
        assert archive.read_bytes() == data


def test_each_model_of_one_shape_follows_itself(run):
    first = [
        compressed(run, f"{name}_{FIRST}.pt", other_initialization(sound(FIRST), n)) for n, name in enumerate("AB")
    ]
    assert [reference_of(report) for report in first] == [None, None], "two initializations have nothing in common"
    for n, name in enumerate("AB"):
        assert reference_of(compressed(run, f"{name}_{SECOND}.pt", other_initialization(sound(SECOND), n))) == (
            f"{name}_{FIRST}.pt"
        )


@pytest.mark.parametrize("names", ["fold{}_step_{}.pt", "net_{}_{}.pt"])
def test_models_that_are_told_apart_by_a_number_follow_themselves(run, names):
    for step in (FIRST, SECOND):
        for model in range(2):
            state = other_initialization(sound(step), model)
            report = compressed(run, names.format(model, step), state)
            assert reference_of(report) == (None if step == FIRST else names.format(model, FIRST))


def test_an_epoch_s_number_makes_no_young_run(tmp_path):
    """A run that calls its checkpoints by epochs, and says no step in them, is as small as one that counts updates."""
    sizes = {}
    for names in ("epoch_{}.pt", "step_{}.pt"):
        for epoch, step in enumerate((FIRST, SECOND, LAST)):
            number = epoch + 1 if "epoch" in names else step
            state = {key: value for key, value in sound(step).items() if key != "step"}
            sizes[names, step] = compressed(tmp_path / names[:4], names.format(number), state).archive_bytes
    for step in (FIRST, SECOND, LAST):
        assert sizes["epoch_{}.pt", step] == pytest.approx(sizes["step_{}.pt", step], rel=0.01)


def test_an_average_begins_at_its_model_and_then_follows_itself(run):
    compressed(run, f"model_{FIRST}.pt", sound(FIRST))
    begun = compressed(run, f"ema_{FIRST}.pt", {"model": sound(FIRST)["model"], "step": FIRST})
    assert reference_of(begun) == f"model_{FIRST}.pt"
    compressed(run, f"model_{SECOND}.pt", sound(SECOND))
    again = compressed(run, f"ema_{SECOND}.pt", {"model": sound(SECOND)["model"], "step": SECOND})
    assert reference_of(again) == f"ema_{FIRST}.pt"


def test_a_run_that_goes_on_under_other_names_goes_on(run):
    """Even with numbers that mean something else: epochs."""
    base = compressed(run, f"step_{FIRST}.pt", sound(FIRST))
    nameless = {key: value for key, value in sound(SECOND).items() if key != "step"}
    assert reference_of(compressed(run, "epoch_3.pt", nameless)) == f"step_{FIRST}.pt"
    report = compressed(run, f"ckpt_{SECOND}.pt", sound(SECOND))
    assert reference_of(report) == "epoch_3.pt"
    assert report.archive_bytes < base.archive_bytes / 2


def test_what_is_saved_under_a_second_name_too_is_a_delta_against_the_first(run):
    """torch.save writes the file's name into the file: the same tensors, other bytes."""
    for step in STEPS:
        full = compressed(run, f"step_{step}.pt", sound(step))
        last = compressed(run, "last.pt", sound(step))
        assert reference_of(last) == f"step_{step}.pt"
        assert last.archive_bytes < full.archive_bytes
        if step == SECOND:
            best = compressed(run, "best.pt", sound(step))
    assert reference_of(full) == f"step_{SECOND}.pt"
    assert reference_of(best) in {f"step_{SECOND}.pt", "last.pt"}


def test_a_name_without_a_number_goes_on_from_its_own_last_one_where_that_is_nearest(run):
    for step in STEPS:
        reports = [
            compressed(run, f"{name}.pt", state) for name, state in (("G", sound(step)), ("D", other_model(step)))
        ]
    assert [reference_of(report) for report in reports] == ["G.pt", "D.pt"]


def test_each_of_several_that_are_saved_over_themselves_follows_itself(run):
    for step in STEPS[:2]:
        for agent in (0, 1):
            report = compressed(run, f"agent_{agent}.pt", other_initialization(sound(step), agent))
            assert reference_of(report) == (None if step == FIRST else f"agent_{agent}.pt")


def test_what_has_no_weights_follows_its_own_name_alone(run):
    """Beside a model that is not its own."""
    compressed(run, f"model_{FIRST}.pt", {"model": other_model(FIRST)["model"]})
    assert reference_of(compressed(run, f"optim_{FIRST}.pt", sound(FIRST)["optimizer"])) is None
    compressed(run, f"model_{SECOND}.pt", {"model": other_model(SECOND)["model"]})
    assert reference_of(compressed(run, f"optim_{SECOND}.pt", sound(SECOND)["optimizer"])) == f"optim_{FIRST}.pt"


def test_without_a_cache_names_alone_tell(run):
    base = compressed(run, f"step_{FIRST}.pt", sound(FIRST))
    for reconstruction in (Path(base.archive).parents[2] / "cache").iterdir():
        reconstruction.unlink()
    assert reference_of(compressed(run, "last.pt", sound(FIRST))) is None
    assert reference_of(compressed(run, f"step_{SECOND}.pt", sound(SECOND))) == f"step_{FIRST}.pt"


def test_a_cache_that_is_damaged_misleads_nobody(run):
    base = compressed(run, f"step_{FIRST}.pt", sound(FIRST))
    (path,) = [Path(base.archive).parents[2] / "cache" / f"{name}.rec" for name in reconstructions(base)]
    for data in (b"", b"short", bytes(1000), path.read_bytes()[:-1]):
        path.write_bytes(data)
        assert ckzd.verify(compressed(run, f"other_{len(data)}.pt", sound(FIRST)).archive).ok
        assert ckzd.verify(compressed(run, f"step_{FIRST + 1 + len(data)}.pt", sound(SECOND)).archive).ok
