"""A model that was trained elsewhere as first reference: the first archive is a delta, and lives and dies with it."""

import shutil
from pathlib import Path

import pytest
import torch
from making import tree_of
from safetensors.torch import save_file

from ckzd import compress, inspect, restore, verify
from ckzd.archive import Manifest
from ckzd.chains import ArchiveRecord, chain, is_sound, is_whole
from ckzd.daemon.jobs import Compress
from ckzd.daemon.perform import perform
from ckzd.errors import BadCheckpoint, ConfigError, CorruptArchive, MissingReference
from ckzd.operations.replace import require_replaceable
from ckzd.operations.verify import verify_each
from ckzd.store import Store, default_store

SHAPES = {"wte.weight": (200, 64), "h.0.weight": (64, 128), "h.0.bias": (128,), "norm.weight": (64,)}


def tuned(state: dict[str, torch.Tensor], steps: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(steps)
    return {name: value + steps * 1e-3 * value.std() * torch.randn(value.shape) for name, value in state.items()}


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


@pytest.fixture
def model(tmp_path, state) -> Path:
    """Of Hugging Face: two shards, and links to where they lie."""
    place, blobs = tmp_path / "model", tmp_path / "blobs"
    place.mkdir()
    blobs.mkdir()
    names = list(state)
    for number, some in enumerate((names[:2], names[2:]), 1):
        save_file({name: state[name] for name in some}, blobs / str(number))
        (place / f"model-0000{number}-of-00002.safetensors").symlink_to(blobs / str(number))
    (place / "config.json").write_text("{}")
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


def archived(run: Path, step: int, model: Path | None, **options) -> Path:
    report = compress(run / f"step_{step}.pt", base_model=model, **{"preset": "lossless"} | options)
    return Path(report.archive)


def manifest_of(archive: Path) -> Manifest:
    return ArchiveRecord.read(archive).manifest


def flip(place: Path, byte: int) -> None:
    data = bytearray(place.read_bytes())
    data[byte] ^= 1
    place.write_bytes(data)


@pytest.mark.parametrize("preset", ["lossless", "resume"])
def test_the_first_archive_is_a_delta_against_it(run, model, preset, tmp_path):
    first, second = (archived(run, step, model, preset=preset) for step in (1, 2))
    alone = compress(run / "step_1.pt", store=tmp_path / "other", preset=preset)
    assert first.stat().st_size < 0.9 * Path(alone.archive).stat().st_size
    manifest = manifest_of(first)
    assert (manifest.depth, manifest_of(second).depth) == (1, 2)
    assert manifest_of(second).base_model is None
    assert manifest.base_model.directory == str(model)
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


def test_without_it_what_is_missing_is_said_and_nothing_is_replaced(run, model, tmp_path):
    first, second = archived(run, 1, model), archived(run, 2, model)
    store = Store.open(default_store(run))
    shutil.rmtree(store.cache)
    store.cache.mkdir()
    wanted = manifest_of(first).base_model.files[0]
    before, models = tree_of(run), tree_of(model)
    place = model.rename(tmp_path / "away")
    for attempt in (
        lambda: verify(second),
        lambda: restore(second, output=tmp_path / "out"),
        lambda: require_replaceable(run / "step_1.pt", first, store),
    ):
        with pytest.raises(MissingReference, match=f"{wanted.name} .sha256 {wanted.sha256}"):
            attempt()
    assert not is_sound(first)
    assert is_whole(first)
    assert tree_of(run) == before
    place.rename(model)
    assert is_sound(second)
    assert verify(second).ok
    assert tree_of(model) == models


def test_another_model_in_its_place_is_never_taken_for_it(run, model, tmp_path):
    first = archived(run, 1, model)
    shutil.rmtree(default_store(run) / "cache")
    (changed,) = model.glob("*2-of*")
    flip(changed.resolve(), -1)
    for attempt in (lambda: verify(first), lambda: restore(first, output=tmp_path / "out")):
        with pytest.raises(MissingReference, match=f"{changed.name}: expected sha256"):
            attempt()
    assert not is_sound(first)
    assert not (tmp_path / "out").exists()


def test_a_damaged_list_of_its_tensors_is_refused(run, model):
    first = archived(run, 1, model)
    data = first.read_bytes()
    first.write_bytes(data.replace(b'{"tensors":[[["model","module.', b'{"tensors":[[["model","nodule.', 1))
    with pytest.raises(CorruptArchive):
        verify(first)


def test_checkpoints_are_replaced_over_it(run, model):
    original = (run / "step_1.pt").read_bytes()
    report = compress(run / "step_1.pt", base_model=model, preset="lossless", replace=True)
    assert (report.reference, report.replaced) == (str(model), True)
    restore(run / "step_1.pt")
    assert (run / "step_1.pt").read_bytes() == original


def test_while_it_is_away_archiving_goes_on_with_a_base(run, model, tmp_path):
    first = archived(run, 1, model)
    model.rename(tmp_path / "away")
    assert manifest_of(archived(run, 2, model)).depth == 0
    assert manifest_of(archived(run, 3, model)).depth == 1
    (tmp_path / "away").rename(model)
    assert is_sound(first)


def test_the_daemon_hands_it_to_its_workers(run, model, tmp_path):
    job = Compress(default_store(run), run / "step_1.pt", preset="lossless", base_model=model)
    report = perform(job, "cpu", lambda *_: None)
    assert report["reference"] == str(model)


def test_an_archive_that_was_damaged_is_made_anew_against_it(run, model):
    first, second = archived(run, 1, model), archived(run, 2, model)
    whole = first.read_bytes()
    flip(first, 100)
    assert archived(run, 1, None) == first
    assert first.read_bytes() == whole
    assert is_sound(second)


def test_weights_in_another_dtype_are_converted(run, model, state, tmp_path):
    named = {name: value.bfloat16() for name, value in tuned(state, 1).items()}
    (run / "half").mkdir()
    torch.save(named, run / "half" / "step_1.pt")
    report = compress(run / "half" / "step_1.pt", base_model=model, preset="lossless")
    assert report.reference == str(model)
    restore(report.archive, output=tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (run / "half" / "step_1.pt").read_bytes()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_one_file_is_a_model_too(run, state, tmp_path, suffix):
    path = tmp_path / f"pretrained{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    first = archived(run, 1, path)
    assert [file.name for file in manifest_of(first).base_model.files] == [path.name]
    assert verify(first).ok


def test_a_model_that_shares_nothing_makes_no_difference(run, tmp_path):
    save_file({"other": torch.ones(300)}, tmp_path / "x.safetensors")
    assert manifest_of(archived(run, 1, tmp_path / "x.safetensors")).depth == 0


def test_no_checkpoint_is_a_delta_against_itself(run):
    for model in (run / "step_1.pt", run):
        with pytest.raises(ConfigError, match="itself"):
            archived(run, 1, model, replace=True)
    assert (run / "step_1.pt").exists()


def test_what_is_no_model_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.pt").write_bytes(b"no model")
    before = tree_of(run)
    for path, error in (
        (tmp_path / "gone", ConfigError),
        (tmp_path / "empty", ConfigError),
        (tmp_path / "bad.pt", BadCheckpoint),
    ):
        with pytest.raises(error):
            archived(run, 1, path)
    assert tree_of(run) == before
