"""Files of one step that are one checkpoint: as small as in one file, replaced all or none, restored together."""

import copy
import os
from pathlib import Path

import pytest
import torch
from codec.diverged import STEPS, network, sound

import ckzd
import ckzd.operations.restore as restoring
from ckzd.archive import ArchiveReader
from ckzd.chains import read_manifest
from ckzd.errors import BadCheckpoint, ConfigError, SourceChanged
from ckzd.operations.check import check
from ckzd.operations.places import Asked, places
from ckzd.operations.pointer import read_pointer
from ckzd.operations.replace import recover, replace
from ckzd.store import Store, default_store

State = dict
FIRST = STEPS[0]


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def small(seed: int = 0) -> State:
    """A model and its optimizer that take milliseconds."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.Linear(32, 16))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(3):
        model(torch.randn(8, 48)).square().mean().backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def save(run: Path, step: int, state: State, names: tuple[str, ...] = ("model", "optimizer")) -> list[Path]:
    paths = [run / f"{name}_{step}.pt" for name in names]
    for path, key in zip(paths, ("model", "optimizer", "more"), strict=False):
        torch.save(state[key], path)
        os.utime(path, ns=(10**18, 10**18 + step))
    return paths


def names_in(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()}


def same(one: State, other: State) -> bool:
    """Names and shapes, and numbers as near as `resume` promises for weights."""
    return one.keys() == other.keys() and all(
        (one[name] - other[name]).norm() <= 0.1 * one[name].norm() for name in one if one[name].dtype.is_floating_point
    )


def average_of(state: State) -> State:
    other = copy.deepcopy(state["model"])
    return {name: 0.999 * tensor for name, tensor in other.items()}


@pytest.mark.parametrize("with_average", [False, True])
def test_they_are_as_small_as_in_one_file(run, tmp_path, with_average):
    one = tmp_path / "one"
    one.mkdir()
    for step in STEPS:
        state = sound(step)
        parts = {"model": state["model"], "optimizer": state["optimizer"]}
        parts |= {"more": average_of(state)} if with_average else {}
        paths = save(run, step, parts, ("model", "optimizer", "model_ema")[: len(parts)])
        torch.save(parts, one / f"step_{step}.pt")
        apart, together = ckzd.compress(paths[0]), ckzd.compress(one / f"step_{step}.pt")
        assert set(apart.members) == set(map(str, paths))
        assert apart.archive_bytes <= 1.05 * together.archive_bytes + 400, "names and times of a file take some"
        assert (apart.reference is None) == (step == STEPS[0])
        known = ckzd.compress(paths[1])
        assert (known.already, known.archive) == (True, apart.archive)


def test_files_that_were_coded_apart_go_on_together(run):
    """What comes later may come too late once: its weights still follow from what is there."""
    torch.save(sound(FIRST)["model"], run / f"model_{FIRST}.pt")
    alone = ckzd.compress(run / f"model_{FIRST}.pt")
    later = save(run, STEPS[1], sound(STEPS[1]))
    report = ckzd.compress(later[1])
    assert (len(report.members), report.reference) == (2, alone.archive)


def test_a_late_file_makes_them_one_checkpoint(run):
    state = small()
    model, optimizer = run / "model_5.pt", run / "optimizer_5.pt"
    torch.save(state["model"], model)
    alone = ckzd.compress(model)
    torch.save(state["optimizer"], optimizer)
    report = ckzd.compress(optimizer)
    assert set(report.members) == {str(model), str(optimizer)}
    assert ckzd.compress(model).archive == report.archive != alone.archive


def test_they_are_replaced_at_once_and_each_comes_back_by_its_path(run, tmp_path):
    state = small()
    paths = save(run, 5, state)
    report = ckzd.compress(paths[1], replace=True)
    assert report.replaced
    assert names_in(run) == {f"{path.name}.ckz" for path in paths}
    assert {read_pointer(run / f"{path.name}.ckz").member for path in paths} == {path.name for path in paths}
    for path, key in zip(paths, ("model", "optimizer"), strict=True):
        found = ckzd.restore(path, output=tmp_path / path.name)
        assert (found.files, found.restored_bytes) == (1, (tmp_path / path.name).stat().st_size)
        loaded = torch.load(tmp_path / path.name)
        assert same(state["model"], loaded) if key == "model" else loaded["param_groups"] == state[key]["param_groups"]
        assert (tmp_path / path.name).stat().st_mtime_ns == 10**18 + 5
    assert names_in(run) == {f"{path.name}.ckz" for path in paths}


@pytest.mark.parametrize("asked", [0, 1])
def test_in_its_place_a_file_comes_back_with_the_others(run, asked):
    paths = save(run, 5, small())
    ckzd.compress(paths[0], replace=True)
    report = ckzd.restore(paths[asked])
    assert (report.files, names_in(run)) == (2, {path.name for path in paths})
    known = ckzd.compress(paths[0], replace=True)
    assert known.already, "what was restored is known"
    assert names_in(run) == {f"{path.name}.ckz" for path in paths}


@pytest.mark.parametrize("asked", [0, 1])
def test_ensure_restored_brings_all_that_is_needed(run, asked):
    paths = save(run, 5, small())
    ckzd.compress(paths[0], replace=True)
    assert ckzd.ensure_restored(paths[asked]) == paths[asked]
    assert names_in(run) == {path.name for path in paths}
    ckzd.compress(paths[0], replace=True)
    ckzd.restore(paths[asked], output=run.parent / "x")
    (run.parent / "x").rename(paths[asked])  # somebody put one back by hand, or a restore was killed
    ckzd.ensure_restored(paths[asked])
    assert {path.name for path in paths} <= names_in(run)


def test_a_restore_that_is_killed_between_two_files_is_finished_by_the_next(run, monkeypatch):
    paths = save(run, 5, small())
    ckzd.compress(paths[0], replace=True)
    put, publish = [], restoring._publish_file

    def dying(staged: Path, target: Path) -> None:
        if put:
            raise KeyboardInterrupt
        publish(staged, target)
        put.append(target)

    with monkeypatch.context() as patched:
        patched.setattr(restoring, "_publish_file", dying)
        with pytest.raises(KeyboardInterrupt):
            ckzd.restore(paths[0])
    assert put == [paths[1]], "the optimizer is there before its model"
    assert names_in(run) == {paths[1].name, *(f"{path.name}.ckz" for path in paths)}
    ckzd.ensure_restored(paths[1])
    assert names_in(run) == {path.name for path in paths}


def test_a_replacement_takes_up_where_one_file_was_put_back(run):
    paths = save(run, 5, small())
    ckzd.compress(paths[0], replace=True)
    ckzd.restore(paths[1])
    store = Store.open(default_store(run))
    archive = Path(ckzd.compress(paths[1]).archive)
    paths[0].rename(run.parent / "away")  # training deletes one
    assert replace(paths[1], archive, store) > 0
    assert names_in(run) == {"optimizer_5.pt.ckz"}
    assert recover(store) == []


@pytest.mark.parametrize("changed", [0, 1])
def test_none_is_replaced_where_one_has_changed(run, changed):
    paths = save(run, 5, small())
    archive, store = Path(ckzd.compress(paths[0]).archive), Store.open(default_store(run))
    data = paths[changed].read_bytes()
    paths[changed].write_bytes(data[:-1] + b"x")
    with pytest.raises(SourceChanged):
        replace(paths[0], archive, store)
    assert names_in(run) == {path.name for path in paths}
    assert not any(store.trash.iterdir())


def test_none_is_replaced_where_one_may_not_be(run):
    paths = save(run, 5, small())
    os.link(paths[1], run.parent / "another name")
    with pytest.raises(BadCheckpoint, match="hard links"):
        ckzd.compress(paths[0], replace=True)
    assert names_in(run) == {path.name for path in paths}


def test_an_archive_of_several_files_restores_to_a_directory(run, tmp_path):
    paths = save(run, 5, small())
    report = ckzd.compress(paths[0])
    with pytest.raises(ConfigError, match="-o"):
        ckzd.restore(report.archive)
    ckzd.restore(report.archive, output=tmp_path / "both")
    assert names_in(tmp_path / "both") == {path.name for path in paths}
    assert same(torch.load(paths[0]), torch.load(tmp_path / "both" / paths[0].name))
    manifest = read_manifest(Path(report.archive))
    assert (manifest.kind, manifest.name) == ("files", paths[0].name)
    assert ckzd.inspect(report.archive)["ratio"] == pytest.approx(report.ratio)
    assert ckzd.verify(report.archive).ok


def test_a_command_is_asked_about_the_model_beside_the_others(run):
    paths = save(run, 5, small())
    look = 'test "$(ls "$(dirname "$1")" | wc -l)" = 2 &&'
    look += ' test "$1 $(basename "$CKZD_ORIGINAL")" = "$CKZD_RESTORED model_5.pt"'
    report = ckzd.compress(paths[1], accept_command=["sh", "-c", look, "look"])
    assert report.accepted


def test_two_models_of_one_step_are_two_checkpoints(run):
    for number, name in enumerate("GD"):
        save(run, 5, small(number), (f"net{name}", f"opt{name}"))
    reports = [ckzd.compress(run / f"opt{name}_5.pt", replace=True) for name in "GD"]
    assert [len(report.members) for report in reports] == [2, 2]
    assert len({report.archive for report in reports}) == 2
    assert len(names_in(run)) == 4


def test_weights_restored_alone_are_the_models(run, tmp_path):
    paths = save(run, 5, small())
    ckzd.compress(paths[0], replace=True)
    ckzd.restore(paths[1], output=tmp_path / "w.safetensors", weights_only=True)
    assert (tmp_path / "w.safetensors").stat().st_size < 16_000


def test_a_directory_of_a_step_is_one_checkpoint(tmp_path):
    assert network() is not None
    sizes = []
    for step in STEPS[:2]:
        state = sound(step)
        folder, one = tmp_path / "run" / f"step_{step}", tmp_path / "one"
        folder.mkdir(parents=True)
        one.mkdir(exist_ok=True)
        torch.save(state["model"], folder / "net.pt")
        torch.save(state["optimizer"], folder / "optim.pt")
        (folder / "args.json").write_text("{}")
        torch.save({"model": state["model"], "optimizer": state["optimizer"]}, one / f"step_{step}.pt")
        report = ckzd.compress(folder, replace=True)
        sizes.append((report.archive_bytes, ckzd.compress(one / f"step_{step}.pt").archive_bytes))
        assert report.replaced
        assert names_in(folder) == {"args.json", "ckzd.json"}
    assert report.reference is not None
    for apart, together in sizes:
        assert apart <= 1.05 * together + 400
    ckzd.ensure_restored(folder)
    assert same(sound(STEPS[1])["model"], torch.load(folder / "net.pt"))
    assert names_in(folder) == {"args.json", "net.pt", "optim.pt"}


def test_a_damaged_archive_heals_from_all_of_its_files(run):
    archive = Path(ckzd.compress(save(run, FIRST, small())[0], preset="lossless").archive)
    whole = archive.read_bytes()
    with ArchiveReader(archive) as reader:
        at = reader._members[reader.entries()[0]].data_offset + 1
    archive.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert [outcome.outcome for outcome in check(places([Asked(run)]))] == ["healed"]
    assert archive.read_bytes() == whole
