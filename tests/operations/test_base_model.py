"""A model that was trained elsewhere as first reference: the first archive is a delta, and lives and dies with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace as replaced
from pathlib import Path

import pytest
import torch
from making import sha256, tree_of
from safetensors.torch import save_file

import ckzd.base_models
from ckzd import compress, inspect, restore, verify
from ckzd.archive import Manifest
from ckzd.base_models import notes_in
from ckzd.chains import ArchiveRecord, chain, is_intact, is_sound, is_whole
from ckzd.daemon.jobs import Compress
from ckzd.daemon.perform import perform
from ckzd.errors import BadCheckpoint, ConfigError, CorruptArchive, MissingBaseModel, SourceChanged
from ckzd.operations.base_model import Placed
from ckzd.operations.check import Options, check
from ckzd.operations.places import Asked, places
from ckzd.operations.replace import empty_trash, recover, replace, require_replaceable, rescue
from ckzd.operations.trained_from import locate
from ckzd.operations.verify import verify_each
from ckzd.state_dir import state_dirs
from ckzd.store import Store, default_store

SHAPES = {"wte.weight": (200, 64), "h.0.weight": (64, 128), "h.0.bias": (128,), "norm.weight": (64,)}

State = dict[str, torch.Tensor]


def tuned(state: State, steps: int) -> State:
    torch.manual_seed(steps)
    return {name: value + steps * 1e-3 * value.std() * torch.randn(value.shape) for name, value in state.items()}


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


@pytest.fixture
def model(tmp_path, state) -> Path:
    """Of Hugging Face's cache: two shards, all links into blobs that have no suffix; an index beside."""
    place, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    place.mkdir(parents=True)
    blobs.mkdir()
    names = list(state)
    for number, some in enumerate((names[:2], names[2:]), 1):
        save_file({name: state[name] for name in some}, blobs / str(number))
        (place / f"model-0000{number}-of-00002.safetensors").symlink_to(Path("../../blobs", str(number)))
    (blobs / "config").write_text("{}")
    (place / "config.json").symlink_to(Path("../../blobs/config"))
    return place


@pytest.fixture
def run(tmp_path, state) -> Path:
    """Three checkpoints, under names with a prefix."""
    run = tmp_path / "runs" / "tuned"
    run.mkdir(parents=True)
    for step in (1, 2, 3):
        named = {f"module.{name}": value for name, value in tuned(state, step).items()}
        torch.save({"model": named, "step": step}, run / f"step_{step}.pt")
    return run


def compressed(run: Path, step: int, model: Path | None, **options):
    return compress(run / f"step_{step}.pt", base_model=model, **{"preset": "lossless"} | options)


def archived(run: Path, step: int, model: Path | None, **options) -> Path:
    return Path(compressed(run, step, model, **options).archive)


def manifest_of(archive: Path) -> Manifest:
    return ArchiveRecord.read(archive).manifest


def flip(place: Path, byte: int) -> None:
    data = bytearray(place.read_bytes())
    data[byte] ^= 1
    place.write_bytes(data)


def without_cache(run: Path) -> None:
    store = Store.open(default_store(run))
    shutil.rmtree(store.cache)
    store.cache.mkdir()


# It is a delta, and comes back


@pytest.mark.parametrize("preset", ["lossless", "resume"])
def test_the_first_archive_is_a_delta_against_it(run, model, preset, tmp_path):
    first, second = (archived(run, step, model, preset=preset) for step in (1, 2))
    alone = compress(run / "step_1.pt", store=tmp_path / "other", preset=preset)
    assert first.stat().st_size < 0.9 * Path(alone.archive).stat().st_size
    manifest = manifest_of(first)
    assert (manifest.depth, manifest_of(second).depth) == (1, 2)
    assert manifest_of(second).base_model is None
    assert (manifest.base_model.path, manifest.base_model.kind) == (str(model), "directory")
    assert [file.name for file in manifest.base_model.files] == sorted(p.name for p in model.glob("*.safetensors"))
    assert inspect(first)["base_model"]["files"][0]["sha256"] == manifest.base_model.files[0].sha256
    assert [link.path for link in chain(ArchiveRecord.read(second))] == [first, second]
    assert [report.ok for report in verify_each([first, second])] == [True, True]


def test_it_comes_back_without_the_cache(run, model, tmp_path):
    first, second = archived(run, 1, model), archived(run, 2, model)
    shutil.rmtree(default_store(run) / "cache")
    for step, archive in ((1, first), (2, second)):
        restore(archive, output=tmp_path / f"{step}.pt")
        assert (tmp_path / f"{step}.pt").read_bytes() == (run / f"step_{step}.pt").read_bytes()


def test_a_folder_of_archives_with_its_files_is_enough(run, model, tmp_path):
    first, second = archived(run, 1, model), archived(run, 2, model)
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (first, second, *model.glob("*.safetensors")):
        shutil.copy(path, folder)
    shutil.rmtree(tmp_path / "hub")
    assert verify(folder / second.name).ok


def test_links_in_its_path_are_resolved(run, model, tmp_path):
    (tmp_path / "current").symlink_to(model)
    first = archived(run, 1, tmp_path / "current")
    assert manifest_of(first).base_model.path == str(model)
    (tmp_path / "current").unlink()
    without_cache(run)
    assert verify(first).ok


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_one_file_is_a_model_too(run, state, tmp_path, suffix):
    path = tmp_path / f"pretrained{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    first = archived(run, 1, path)
    assert [file.name for file in manifest_of(first).base_model.files] == [path.name]
    assert verify(first).ok


def test_what_lies_beside_its_files_is_nothing_to_it(run, state, tmp_path):
    place = tmp_path / "model"
    place.mkdir()
    torch.save(state, place / "aaa.pt")
    (place / "notes.pt").write_text("no model")
    torch.save({"lr": 1e-3}, place / "training_args.pt")
    first = archived(run, 1, place)
    assert [file.name for file in manifest_of(first).base_model.files] == ["aaa.pt"]
    torch.save(tuned(state, 9), place / "mine.pth")
    save_file(tuned(state, 9), place / "mine.safetensors")
    without_cache(run)
    assert verify(first).ok
    assert is_sound(first)
    flip(first, 100)
    whole = sha256((run / "step_1.pt").read_bytes())
    again = archived(run, 1, place)  # what is damaged is made anew against what it was made against
    assert [file.name for file in manifest_of(again).base_model.files] == ["aaa.pt"]
    assert manifest_of(again).files[0].sha256 == whole


@pytest.mark.parametrize("ours", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("theirs", [torch.float32, torch.bfloat16])
def test_weights_in_another_dtype_are_converted(run, state, tmp_path, ours, theirs):
    named = {name: value.to(ours) for name, value in tuned(state, 1).items()}
    save_file({name: value.to(theirs) for name, value in state.items()}, tmp_path / "x.safetensors")
    (run / "half").mkdir()
    torch.save(named, run / "half" / "step_1.pt")
    report = compress(run / "half" / "step_1.pt", base_model=tmp_path / "x.safetensors", preset="lossless")
    assert report.reference == str(tmp_path / "x.safetensors")
    restore(report.archive, output=tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (run / "half" / "step_1.pt").read_bytes()


def test_an_optimizers_masters_are_what_its_weights_are(run, state, tmp_path):
    save_file({name: value.bfloat16() for name, value in state.items()}, tmp_path / "x.safetensors")
    masters = {name: value.bfloat16().float() + 1e-4 for name, value in tuned(state, 1).items()}
    weights = {name: value.bfloat16() for name, value in masters.items()}
    states = {number: {"master_param": value} for number, value in enumerate(masters.values())}
    optimizer = {"state": states, "param_groups": [{"params": list(states)}]}
    torch.save({"model": weights, "optimizer": optimizer}, run / "step_9.pt")
    report = compress(run / "step_9.pt", base_model=tmp_path / "x.safetensors")
    alone = compress(run / "step_9.pt", store=tmp_path / "other")
    assert report.archive_bytes < 0.5 * alone.archive_bytes


def test_tensors_that_are_cut_are_found_whole(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ckzd.codec.analysis.tiles.MAX_ELEMENTS", 1 << 16)
    torch.manual_seed(0)
    state = {"wte.weight": torch.randn(1024, 256)}
    save_file({name: value.bfloat16() for name, value in state.items()}, tmp_path / "x.safetensors")
    torch.save(tuned(state, 1), run / "step_9.pt")
    report = compress(run / "step_9.pt", base_model=tmp_path / "x.safetensors", preset="lossless")
    assert report.without_base_model is None
    restore(report.archive, output=tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (run / "step_9.pt").read_bytes()


# Without it


def test_without_it_what_is_missing_is_said_and_nothing_is_replaced(run, model, tmp_path):
    first, second = archived(run, 1, model), archived(run, 2, model)
    store = Store.open(default_store(run))
    without_cache(run)
    wanted = manifest_of(first).base_model.files[0]
    before, models = tree_of(run), tree_of(tmp_path / "hub")
    (tmp_path / "hub").rename(tmp_path / "away")
    for attempt in (
        lambda: verify(second),
        lambda: restore(second, output=tmp_path / "out"),
        lambda: require_replaceable(run / "step_1.pt", first, store),
        lambda: replace(run / "step_1.pt", first, store),
        lambda: compressed(run, 1, model, replace=True),
    ):
        with pytest.raises(
            MissingBaseModel, match=f"{model}.*{wanted.name}: expected .* sha256 {wanted.sha256}"
        ) as caught:
            attempt()
        assert caught.value.exit_code == 5
        assert "put it, or a link" in caught.value.hint
    assert not is_sound(first)
    assert is_whole(first)
    assert is_intact(second)
    assert tree_of(run) == before
    (tmp_path / "away").rename(tmp_path / "hub")
    assert is_sound(second)
    assert verify(second).ok
    assert tree_of(tmp_path / "hub") == models


def test_what_waits_for_it_is_neither_damaged_nor_archived_again(run, model, tmp_path):
    first, second = archived(run, 1, model), archived(run, 2, model)
    store = Store.open(default_store(run))
    (tmp_path / "hub").rename(tmp_path / "away")
    report = compressed(run, 2, model)
    assert (report.already, report.damaged) == (True, ())
    assert report.waiting == tuple(sorted(map(str, (first, second))))
    assert store.damaged(run) == []
    third = compressed(run, 3, model)
    assert manifest_of(Path(third.archive)).depth == 0
    assert "not there" in third.without_base_model
    assert len(store.archives(run)) == 3
    (tmp_path / "away").rename(tmp_path / "hub")
    assert store.waiting(run) == []


def test_what_was_replaced_stays_in_the_trash_while_it_is_away(run, model, tmp_path):
    first = archived(run, 1, model)
    store = Store.open(default_store(run))
    replace(run / "step_1.pt", first, store)
    (tmp_path / "hub").rename(tmp_path / "away")
    assert rescue(store) == []
    assert empty_trash(store, 0.0, 1e12) == 0
    assert len(list(store.trash.iterdir())) == 1
    (tmp_path / "away").rename(tmp_path / "hub")
    assert empty_trash(store, 0.0, 1e12) > 0


def test_another_model_in_its_place_is_never_taken_for_it(run, model, tmp_path):
    first = archived(run, 1, model)
    without_cache(run)
    (changed,) = model.glob("*2-of*")
    before = sha256(changed.read_bytes())
    flip(changed.resolve(), -1)
    after = sha256(changed.read_bytes())
    for attempt in (lambda: verify(first), lambda: restore(first, output=tmp_path / "out")):
        with pytest.raises(MissingBaseModel, match=f"expected .* sha256 {before}.*has sha256 {after}"):
            attempt()
    assert not is_sound(first)
    assert not (tmp_path / "out").exists()


def test_a_deep_check_tells_it_as_verify_does(run, model, tmp_path):
    archives = [archived(run, 1, model), archived(run, 2, model)]
    (tmp_path / "hub").rename(tmp_path / "away")
    outcomes = list(check(places([Asked(run)]), Options(deep=True)))
    assert [(outcome.archive, outcome.outcome) for outcome in outcomes] == [(str(a), "unreadable") for a in archives]
    for outcome in outcomes:
        with pytest.raises(MissingBaseModel) as told:
            verify(Path(outcome.archive))
        assert (type(outcome.error), outcome.error.exit_code) == (MissingBaseModel, 5)
        assert (outcome.error.problem, outcome.error.hint) == (told.value.problem, told.value.hint)
        assert outcome.error.hint
        assert "cause" not in outcome.to_dict()
    assert {outcome.outcome for outcome in check(places([Asked(run)]))} == {"whole"}


def test_a_change_that_no_mark_shows_is_found_where_it_is_decoded(run, model, tmp_path):
    first = archived(run, 1, model)
    without_cache(run)
    blob = next(model.glob("*1-of*")).resolve()
    status = blob.stat()
    with blob.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\1" * 8)
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(MissingBaseModel, match="has sha256"):
        verify(first)


def test_a_damaged_archive_waits_for_it_too(run, model, tmp_path):
    first = archived(run, 1, model)
    whole = first.read_bytes()
    flip(first, 100)
    (tmp_path / "hub").rename(tmp_path / "away")
    with pytest.raises(MissingBaseModel):
        archived(run, 1, None)
    (tmp_path / "away").rename(tmp_path / "hub")
    assert archived(run, 1, None) == first
    assert first.read_bytes() == whole


def test_a_damaged_list_of_its_tensors_is_refused(run, model):
    first = archived(run, 1, model)
    data = first.read_bytes()
    first.write_bytes(data.replace(b'{"tensors":[[["model","module.', b'{"tensors":[[["model","nodule.', 1))
    with pytest.raises(CorruptArchive):
        verify(first)


@pytest.mark.parametrize(
    "row",
    [
        3,
        [],
        [["w"], "float32", [1], 0, 0],
        ["w", "float32", [1], 0, 0, "float32"],
        [["w"], ["float32"], [1], 0, 0, "float32"],
        [["w"], "int8", [1], 0, 0, "float32"],
        [["w"], "float32", 1, 0, 0, "float32"],
        [["w"], "float32", [1.0], 0, 0, "float32"],
        [["w"], "float32", [-1], 0, 0, "float32"],
        [["w"], "float32", [1 << 60, 1 << 60], 0, 0, "float32"],
        [["w"], "float32", [1], 1, 0, "float32"],
        [["w"], "float32", [1], True, 0, "float32"],
        [["w"], "float32", [26], 0, 0, "float32"],
        [["w"], "float32", [1], 0, 97, "float32"],
    ],
    ids=str,
)
def test_values_from_archives_are_checked(row):
    with pytest.raises(ValueError, match="base model"):
        Placed.checked(row, [100])


# While a run begins


def unrelated(place: Path) -> Path:
    torch.manual_seed(99)
    save_file({name: torch.randn(shape) for name, shape in SHAPES.items()}, place)
    return place


def pipe(place: Path) -> Path:
    os.mkfifo(place)
    return place


def of_pipes(place: Path) -> Path:
    place.mkdir()
    os.mkfifo(place / "model.safetensors")
    (place / "model.bin").symlink_to("/dev/zero")
    return place


def empty(place: Path) -> Path:
    place.mkdir()
    return place


def garbage(place: Path) -> Path:
    place.write_bytes(b"no model")
    return place


def of_odd_names(place: Path) -> Path:
    place.mkdir()
    unrelated(place / "x.safetensors").rename(place / "x\n.safetensors")
    return place


def of_undecodable_names(place: Path) -> Path:
    place.mkdir()
    unrelated(place / "x.safetensors").rename(os.fsdecode(os.fsencode(place) + b"/\xff.safetensors"))
    return place


def sharing_nothing(place: Path) -> Path:
    save_file({"other": torch.ones(300)}, place)
    return place


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda place: place, "is not there"),
        (empty, "got none"),
        (unrelated, "another model"),
        (sharing_nothing, "shares no tensor"),
        (pipe, "which is neither"),
        (lambda _: Path("/dev/zero"), "which is neither"),
        (of_pipes, "got none"),
        (garbage, "header of"),
        (of_odd_names, "expected a path of plain text"),
        (of_undecodable_names, "expected a path of plain text"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_run_goes_on_without_it_and_says_why(run, tmp_path, make, why):
    place = make(tmp_path / "model.safetensors")
    report = compressed(run, 1, place)
    assert why in report.without_base_model
    assert manifest_of(Path(report.archive)).depth == 0
    assert notes_in(default_store(run)) == []
    later = compressed(run, 2, place)
    assert later.without_base_model is None
    assert manifest_of(Path(later.archive)).depth == 1


@pytest.mark.parametrize("name", ["a\nb", "a\x9bb", "x" * 256, "a\udcffb", "/".join(["x" * 200] * 25)])
def test_a_path_that_no_archive_can_name_is_refused(run, tmp_path, name):
    before = tree_of(tmp_path)
    with pytest.raises(ConfigError, match="base_model: expected"):
        compressed(run, 1, tmp_path / name)
    assert tree_of(tmp_path) == before


def test_no_checkpoint_is_a_delta_against_itself(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    for model in (run / "step_1.pt", run, tmp_path / "link"):
        report = compress(run / "step_1.pt", base_model=model, preset="lossless", store=tmp_path / f"of-{model.name}")
        assert "is part" in report.without_base_model


def test_nor_one_of_several_files_against_another_of_them(tmp_path, state):
    run = tmp_path / "runs" / "apart"
    run.mkdir(parents=True)
    moments = {
        n: {key: torch.rand_like(value) for key in ("exp_avg", "exp_avg_sq")} for n, value in enumerate(state.values())
    }
    torch.save(state, run / "model_1.pt")
    torch.save({"state": moments, "param_groups": [{"params": list(moments)}]}, run / "optimizer_1.pt")
    report = compress(run / "optimizer_1.pt", base_model=run / "model_1.pt")
    assert len(report.members) == 2
    assert "is part" in report.without_base_model


def test_where_nothing_can_be_noted_nothing_needs_it(run, model, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(ckzd.base_models, "state_dirs", lambda: (tmp_path / "file",))
    report = compressed(run, 1, model)
    assert manifest_of(Path(report.archive)).depth == 0
    assert report.without_base_model
    assert notes_in(default_store(run)) == []


def test_it_is_read_once_and_not_once_a_process(run, model, monkeypatch):
    archived(run, 1, model)
    ckzd.base_models._sha256.cache_clear()

    def fail(*_: object) -> str:
        raise AssertionError("read again")

    monkeypatch.setattr(ckzd.base_models, "_sha256", fail)
    assert is_sound(archived(run, 2, model))
    (run.parent / "other").mkdir()
    shutil.copy(run / "step_1.pt", run.parent / "other" / "step_1.pt")
    assert compress(run.parent / "other" / "step_1.pt", base_model=model, preset="lossless").reference == str(model)


def test_a_store_from_elsewhere_is_noted_here(run, pretrained):
    first = archived(run, 1, pretrained / "step_100.pt")
    store = default_store(run)
    (said,) = notes_in(store)
    for path, _ in [said, *(found for place in state_dirs() for found in notes_in(place))]:
        path.unlink()
    assert is_sound(first)
    assert [note for _, note in notes_in(store)] == [
        replaced(said[1], read_at=note.read_at) for _, note in notes_in(store)
    ]
    assert "base model" in compress(pretrained / "step_100.pt", replace=True).kept


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"model": 3, "marks": 4}', '{"model": {}, "marks": [[1]], "store": 1}']
)
def test_a_damaged_note_stops_nothing(run, model, text, caplog):
    first = archived(run, 1, model)
    ((path, _),) = notes_in(default_store(run))
    path.write_text(text)
    assert notes_in(default_store(run)) == []
    assert "cannot be read" in caplog.text
    assert is_sound(first)
    assert len(notes_in(default_store(run))) == 1


def test_it_is_read_again_after_a_day(run, model, monkeypatch):
    first = archived(run, 1, model)
    ((note, _),) = notes_in(default_store(run))
    said = json.loads(note.read_text())
    note.write_text(json.dumps(said | {"read_at": said["read_at"] - 2 * 24 * 3600}))
    ckzd.base_models._sha256.cache_clear()
    read = []
    hashed = ckzd.base_models._sha256
    monkeypatch.setattr(ckzd.base_models, "_sha256", lambda *of: read.append(of) or hashed(*of))
    assert is_sound(first)
    assert len(read) == 2
    assert is_sound(first)
    assert len(read) == 2


# Nothing that archives need is replaced


def test_checkpoints_are_replaced_over_it(run, model):
    original = (run / "step_1.pt").read_bytes()
    report = compressed(run, 1, model, replace=True)
    assert (report.reference, report.replaced) == (str(model), True)
    restore(run / "step_1.pt")
    assert (run / "step_1.pt").read_bytes() == original


@pytest.fixture
def pretrained(tmp_path, state) -> Path:
    """Of another run, with an optimizer and a store of its own."""
    place = tmp_path / "elsewhere" / "pretraining"
    place.mkdir(parents=True)
    torch.save({"model": state, "extra": torch.zeros(1 << 18)}, place / "step_100.pt")
    torch.save({"model": tuned(state, 5), "extra": torch.zeros(1 << 18)}, place / "step_200.pt")
    return place


def hard_link(place: Path) -> Path:
    """Of one file system the very same file, under another name; it is replaced where the first one is gone."""
    os.link(place / "step_100.pt", place / "step_101.pt")
    (place / "step_100.pt").unlink()
    return place / "step_101.pt"


def copied(place: Path) -> Path:
    return Path(shutil.copy(place / "step_100.pt", place / "step_102.pt"))


@pytest.mark.parametrize("named", [lambda p: p / "step_100.pt", lambda p: p], ids=["file", "directory"])
@pytest.mark.parametrize("other", [lambda p: p / "step_100.pt", hard_link, copied], ids=["itself", "link", "copy"])
def test_what_archives_need_is_not_replaced(run, pretrained, tmp_path, named, other):
    (tmp_path / "link").symlink_to(pretrained)
    first = compressed(run, 1, named(tmp_path / "link"))
    assert first.without_base_model is None
    checkpoint = other(pretrained)
    before = tree_of(pretrained)
    report = compress(checkpoint, replace=True)
    assert not report.replaced
    assert "base model" in report.kept
    assert tree_of(pretrained) == before
    store = Store.open(default_store(pretrained))
    for attempt in (replace, require_replaceable):
        with pytest.raises(BadCheckpoint, match="the base model of archives"):
            attempt(checkpoint, Path(report.archive), store)
    assert tree_of(pretrained) == before


def test_nor_is_what_lies_in_a_directory_that_is_named(run, pretrained):
    compressed(run, 1, pretrained)
    report = compress(pretrained / "step_200.pt", replace=True)
    assert "base model" in report.kept
    assert (pretrained / "step_200.pt").exists()


def test_of_a_file_that_is_named_the_others_beside_it_are_replaced(run, pretrained):
    compressed(run, 1, pretrained / "step_100.pt")
    assert compress(pretrained / "step_200.pt", replace=True).replaced


def test_nor_a_directory_that_holds_it(run, state, tmp_path):
    place = tmp_path / "hf" / "checkpoint-100"
    place.mkdir(parents=True)
    save_file(state, place / "model.safetensors")
    torch.save({"x": torch.zeros(1 << 18)}, place / "optimizer.pt")
    (place / "trainer_state.json").write_text('{"global_step": 100}')
    compressed(run, 1, place / "model.safetensors")
    before = tree_of(place)
    assert "base model" in compress(place, replace=True).kept
    assert tree_of(place) == before


def test_nor_what_a_restore_gave_back_with_a_loss(run, pretrained):
    lossy = compress(pretrained / "step_100.pt", replace=True, preset="resume")
    restore(pretrained / "step_100.pt")
    compressed(run, 1, pretrained / "step_100.pt")
    assert "base model" in compress(pretrained / "step_100.pt", replace=True, preset="resume").kept
    with pytest.raises(BadCheckpoint, match="the base model of archives"):
        replace(pretrained / "step_100.pt", Path(lossy.archive), Store.open(default_store(pretrained)))


def test_nor_a_checkpoint_of_the_same_run(run, tmp_path):
    first = compressed(run, 2, run / "step_1.pt")
    assert first.reference == str(run / "step_1.pt")
    assert first.without_base_model is None
    assert "base model" in compressed(run, 1, run / "step_1.pt", replace=True).kept
    assert compressed(run, 2, run / "step_1.pt", replace=True).replaced


def test_what_becomes_needed_while_it_is_replaced_is_put_back(run, pretrained):
    own = archived(pretrained, 100, None)
    store = Store.open(default_store(pretrained))
    before = (pretrained / "step_100.pt").read_bytes()

    def meanwhile(step: str) -> None:
        if step == "intent":
            compressed(run, 1, pretrained / "step_100.pt")

    with pytest.raises(BadCheckpoint, match="the base model of archives"):
        replace(pretrained / "step_100.pt", own, store, on_step=meanwhile)
    assert (pretrained / "step_100.pt").read_bytes() == before
    assert list(store.trash.iterdir()) == []


def test_what_is_replaced_while_an_archive_is_made_of_it_is_no_base_model(run, pretrained):
    own = archived(pretrained, 100, None)
    store = Store.open(default_store(pretrained))
    moved = []

    def meanwhile(stage: str, _fraction: float) -> None:
        if stage == "encode" and not moved:
            moved.append((pretrained / "step_100.pt").rename(pretrained / "other"))

    with pytest.raises((SourceChanged, CorruptArchive, MissingBaseModel)):
        compressed(run, 1, pretrained / "step_100.pt", on_stage=meanwhile)
    assert Store.open(default_store(run)).archives(run) == []
    assert own.exists()
    assert store.archives(pretrained)


def killed(code: str) -> None:
    """Run a program that kills itself."""
    finished = subprocess.run([sys.executable, "-c", f"import os, signal\n{code}"], capture_output=True, check=False)
    assert finished.returncode == -signal.SIGKILL, finished.stderr.decode()


DIE = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.leaves_temporaries
@pytest.mark.parametrize("step", ["pointer", "moved"])
def test_a_replacement_that_was_killed_is_undone_if_it_became_needed_meanwhile(run, pretrained, step):
    own = archived(pretrained, 100, None)
    checkpoint, store = pretrained / "step_100.pt", Store.open(default_store(pretrained))
    elsewhere = Path(shutil.copy(checkpoint, pretrained.parent / "model.pt"))
    before = checkpoint.read_bytes()
    killed(f"""
from pathlib import Path
from ckzd.operations.replace import replace
from ckzd.store import Store
def step(name):
    if name == {step!r}: {DIE}
replace(Path({str(checkpoint)!r}), Path({str(own)!r}), Store.open(Path({str(store.root)!r})), on_step=step)
""")
    compressed(run, 1, elsewhere)
    recover(store)
    assert checkpoint.read_bytes() == before
    assert not checkpoint.with_name("step_100.pt.ckz").exists()


@pytest.mark.leaves_temporaries
@pytest.mark.parametrize("stage", ["encode", "written", "verified"])
def test_an_archive_that_was_killed_while_it_was_made_of_it_is_made_again(run, pretrained, stage):
    killed(f"""
from pathlib import Path
from ckzd import compress
def tell(stage, _):
    if stage == {stage!r}: {DIE}
compress({str(run / "step_1.pt")!r}, base_model={str(pretrained / "step_100.pt")!r}, on_stage=tell, preset="lossless")
""")
    assert Store.open(default_store(run)).archives(run) == []
    first = archived(run, 1, pretrained / "step_100.pt")
    assert manifest_of(first).depth == 1
    assert verify(first).ok
    assert (pretrained / "step_100.pt").exists()


def test_what_is_in_the_trash_stays_where_it_is_the_last_of_a_base_model(run, pretrained, tmp_path):
    original = pretrained / "step_100.pt"
    elsewhere = Path(shutil.copy(original, tmp_path / "model.pt"))
    own = archived(pretrained, 100, None)
    store = Store.open(default_store(pretrained))
    replace(original, own, store)
    compressed(run, 1, elsewhere)
    elsewhere.rename(tmp_path / "away.pt")
    assert empty_trash(store, 0.0, 1e12) == 0
    (tmp_path / "away.pt").rename(elsewhere)
    assert empty_trash(store, 0.0, 1e12) > 0


def test_it_is_forgotten_with_the_last_archive_that_needs_it(run, pretrained):
    first = compressed(run, 1, pretrained / "step_100.pt")
    store = Store.open(default_store(run))
    store.forget_unneeded_models()
    assert len(notes_in(store.root)) == 1
    Path(first.archive).unlink()
    store.forget_unneeded_models()
    assert notes_in(store.root) == []
    assert compress(pretrained / "step_100.pt", replace=True).replaced


def test_the_daemon_hands_it_to_its_workers(run, model, tmp_path):
    job = Compress(default_store(run), run / "step_1.pt", preset="lossless", base_model=model)
    report = perform(job, "cpu", lambda *_: None)
    assert report["reference"] == str(model)


def test_only_regular_files_are_located(tmp_path):
    with pytest.raises(ConfigError):
        locate(Path("/dev/null"))
