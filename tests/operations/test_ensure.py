"""ensure_restored: one rank restores, the others wait, and errors arrive as what they were."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckzd
from ckzd.errors import CkzdError, ConfigError, CorruptArchive, MissingReference
from ckzd.operations.child import error_of
from ckzd.operations.replace import pointer_for, replace
from ckzd.store import Store

RANK = """
import sys
from pathlib import Path
import ckzd.operations.ensure as ensure
real = ensure._restore_in_child
ensure._restore_in_child = lambda path: (print("restored"), real(path))
ensure.ensure_restored(Path(sys.argv[1]))
print("there" if "torch" not in sys.modules else "loaded torch")
"""


@pytest.fixture(params=["file", "directory"])
def replaced(request, tmp_path):
    """A checkpoint that was replaced without loss, and what it was: path, archive, bytes by name."""
    weights = {"weight": torch.randn(256, 256), "bias": torch.randn(64)}  # large enough to gain something
    run = tmp_path / "runs" / "gpt"
    if request.param == "file":
        checkpoint = run / "step_100.pt"
        run.mkdir(parents=True)
        torch.save({"step": 100, "model": weights}, checkpoint)
        files = [checkpoint]
    else:
        checkpoint = run / "checkpoint-100"
        checkpoint.mkdir(parents=True)
        save_file(weights, checkpoint / "model.safetensors")
        torch.save({"state": {}, "param_groups": []}, checkpoint / "optimizer.pt")
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 100}))
        files = sorted(checkpoint.iterdir())
    original = {file.name: file.read_bytes() for file in files}
    report = ckzd.compress(checkpoint, preset="lossless", replace=True)
    assert pointer_for(checkpoint).exists()
    return checkpoint, Path(report.archive), original


def content(checkpoint):
    files = sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]
    return {file.name: file.read_bytes() for file in files}


def test_one_rank_restores_and_the_others_wait(replaced):
    checkpoint, _, original = replaced
    command = [sys.executable, "-c", RANK, str(checkpoint)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [rank.communicate(timeout=60)[0].split() for rank in ranks]

    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert sorted(len(words) for words in said) == [1, 1, 2]
    assert {words[-1] for words in said} == {"there"}
    assert content(checkpoint) == original


def test_a_checkpoint_that_is_there_needs_nothing(replaced):
    checkpoint, archive, _ = replaced
    ckzd.restore(checkpoint)
    archive.unlink()
    assert ckzd.ensure_restored(str(checkpoint)) == checkpoint


def test_a_damaged_archive_is_reported_as_such(replaced):
    checkpoint, archive, _ = replaced
    for cached in (archive.parents[2] / "cache").iterdir():
        cached.unlink()  # with it the damaged bytes would not even be needed
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(CorruptArchive) as caught:
        ckzd.ensure_restored(checkpoint)
    assert str(archive) in caught.value.subject


def test_a_missing_archive_is_reported_as_such(replaced):
    checkpoint, archive, _ = replaced
    archive.unlink()
    with pytest.raises(MissingReference):
        ckzd.ensure_restored(checkpoint)


def save_again(checkpoint, original, *names):
    """As a trainer does that was set back: into what is there."""
    checkpoint.mkdir(exist_ok=True)
    after = pointer_for(checkpoint).stat().st_mtime_ns + 1_000_000_000
    for name in names:
        (checkpoint / name).write_bytes(original[name])
        os.utime(checkpoint / name, ns=(after, after))


def test_a_directory_that_was_saved_again_over_its_pointer_is_there(replaced):
    checkpoint, archive, original = replaced
    if not checkpoint.is_dir():
        pytest.skip("a file is there or not")
    save_file({"weight": torch.ones(64, 64), "bias": torch.ones(64)}, checkpoint / "model.safetensors")
    saved = {**original, "model.safetensors": (checkpoint / "model.safetensors").read_bytes()}
    save_again(checkpoint, saved, *original)
    assert ckzd.ensure_restored(checkpoint) == checkpoint
    assert {name: data for name, data in content(checkpoint).items() if name != "ckzd.json"} == saved

    report = ckzd.compress(checkpoint, preset="lossless", replace=True)
    assert report.archive != str(archive)
    assert ckzd.ensure_restored(checkpoint) == checkpoint
    assert content(checkpoint) == saved


def test_a_directory_that_was_half_saved_again_is_not(replaced):
    checkpoint, _, original = replaced
    if not checkpoint.is_dir():
        pytest.skip("a file is there or not")
    save_again(checkpoint, original, "model.safetensors")
    with pytest.raises(ConfigError, match="was written again since it was archived"):
        ckzd.ensure_restored(checkpoint)


def test_nothing_there_at_all(tmp_path):
    with pytest.raises(ConfigError, match="is not there"):
        ckzd.ensure_restored(tmp_path / "step_1.pt")


@pytest.mark.parametrize("stderr", ["", "Killed", "{}", '{"error": "Path", "subject": "", "problem": "", "hint": ""}'])
def test_a_child_that_dies_without_a_word_is_an_error_too(tmp_path, stderr):
    error = error_of(tmp_path, -9, stderr)
    assert type(error) is CkzdError
    assert "-9" in error.problem


@pytest.fixture
def step(tmp_path):
    """A directory of a step whose files were replaced one by one, and what they were."""
    folder = tmp_path / "runs" / "gan" / "step_10"
    (folder / "deeper").mkdir(parents=True)
    original = {}
    for name in ("net.pt", "deeper/optim.pt"):
        torch.save({"weight": torch.zeros(64, 64)}, folder / name)
        original[name] = (folder / name).read_bytes()
        report = ckzd.compress(folder / name, preset="lossless")
        replace(folder / name, Path(report.archive), Store(Path(report.archive).parents[2]))
    return folder, original


def test_a_directory_is_there_when_nothing_below_it_is_a_pointer(step):
    folder, original = step
    assert not (folder / "net.pt").exists()
    assert ckzd.ensure_restored(str(folder)) == folder
    assert {name: (folder / name).read_bytes() for name in original} == original
    assert not list(folder.rglob("*.ckz"))


def test_a_directory_is_not_there_when_a_pointer_below_it_leads_nowhere(step):
    folder, _ = step
    (folder / "deeper" / "optim.pt.ckz").write_bytes(b"")
    with pytest.raises(CorruptArchive, match="is no pointer"):
        ckzd.ensure_restored(folder)
    assert (folder / "net.pt").exists()


def test_a_store_is_never_inside_the_directory_of_a_step(step):
    folder, _ = step
    assert [place.parent for place in folder.parents[2].rglob(".ckzd")] == [folder.parent]
