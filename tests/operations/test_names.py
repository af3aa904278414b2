"""One content under several names: archived once, and given back under each name as it stood there."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from codec.diverged import STEPS, sound
from making import tree_of
from safetensors.torch import save_file

import ckzd
from ckzd.checkpoint import Checkpoint
from ckzd.operations.compress import CompressReport

FIRST = STEPS[0]


@pytest.fixture
def run(tmp_path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    return run


@pytest.fixture
def step(run) -> Path:
    path = run / f"step_{FIRST}.pt"
    torch.save(sound(FIRST), path)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def archives(report: CompressReport) -> list[Path]:
    return sorted(Path(report.archive).parent.glob("*.ckz"))


def copied(step: Path, name: str) -> Path:
    return Path(shutil.copy2(step, step.with_name(name)))


def copied_later(step: Path, name: str) -> Path:
    return Path(shutil.copyfile(step, step.with_name(name)))


def linked(step: Path, name: str) -> Path:
    os.link(step, step.with_name(name))
    return step.with_name(name)


@pytest.mark.parametrize("copy", [copied, copied_later, linked])
@pytest.mark.parametrize("name", ["last.pt", "model_best.pth"])
def test_a_copy_or_a_hard_link_is_archived_once(step, copy, name):
    first = ckzd.compress(step)
    second = ckzd.compress(copy(step, name))
    assert (second.already, second.archive) == (True, first.archive)
    assert archives(first) == [Path(first.archive)]


def test_whichever_comes_first(step):
    last = ckzd.compress(copied(step, "last.pt"))
    assert ckzd.compress(step).archive == last.archive
    assert ckzd.compress(copied(step, "epoch_3.pt")).archive == last.archive


def test_what_differs_is_archived_for_itself(run):
    paths = [run / "step_1.safetensors", run / "last.safetensors"]
    for value, path in enumerate(paths):
        save_file({"weight": torch.full((64, 64), float(value))}, path)
    assert len({path.stat().st_size for path in paths}) == 1
    assert len({ckzd.compress(path).archive for path in paths}) == 2


def test_a_name_with_a_number_is_hashed_only_where_the_time_says_that_it_may_be_a_copy(step, monkeypatch):
    ckzd.compress(step)
    hashed = []
    real = Checkpoint.sha256
    monkeypatch.setattr(Checkpoint, "sha256", lambda self: (hashed.append(self.name), real(self))[1])
    for name, copy in (("epoch_3.pt", copied_later), ("epoch_4.pt", copied), ("last.pt", copied_later)):
        ckzd.compress(copy(step, name))
    assert hashed == ["epoch_4.pt", "last.pt"]


def test_each_name_is_given_back_as_it_stood_there(step, run, tmp_path):
    """One restored archive, with the mode and time that the file under that name had."""
    copy = copied_later(step, "model.pt")
    copy.chmod(0o600)
    os.utime(copy, (1_700_000_777, 1_700_000_777))
    stood = {path.name: path.stat() for path in (step, copy)}
    reports = [ckzd.compress(path, replace=True) for path in (step, copy)]
    assert all(report.replaced for report in reports)
    assert sorted(path.name for path in run.iterdir()) == ["model.pt.ckz", f"step_{FIRST}.pt.ckz"]
    elsewhere = ckzd.restore(run / "model.pt", output=tmp_path / "elsewhere.pt").checkpoint
    for path in (step, copy):
        ckzd.restore(path)
    assert sorted(path.name for path in run.iterdir()) == ["model.pt", f"step_{FIRST}.pt"]
    assert step.read_bytes() == copy.read_bytes()
    for path, before in ((step, stood[step.name]), (copy, stood["model.pt"]), (Path(elsewhere), stood["model.pt"])):
        after = path.stat()
        assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_the_archive_stays_as_private_as_its_most_private_name(step):
    copy = copied(step, "model.pt")
    copy.chmod(0o600)
    archive = Path(ckzd.compress(step, replace=True).archive)
    ckzd.compress(copy, replace=True)
    assert archive.stat().st_mode & 0o077 == 0
    assert step.with_name("model.pt.ckz").stat().st_mode & 0o077 == 0


def test_a_restored_copy_is_known_by_what_was_restored(step, run):
    first = ckzd.compress(step, replace=True)
    ckzd.restore(step)
    assert ckzd.compress(copied(step, "last.pt")).archive == first.archive


def test_where_the_archive_is_damaged_the_copy_gets_one_of_its_own(step):
    first = Path(ckzd.compress(step).archive)
    first.write_bytes(first.read_bytes()[:-100])
    second = ckzd.compress(copied(step, "last.pt"))
    assert Path(second.archive) != first
    assert ckzd.verify(second.archive).ok


def test_a_killed_restore_of_a_copy_is_finished(step, run):
    """It died between the file and its pointer: both stand there."""
    copy = copied_later(step, "model.pt")
    os.utime(copy, (1_700_000_777, 1_700_000_777))
    for path in (step, copy):
        ckzd.compress(path, replace=True)
    pointer = run / "model.pt.ckz"
    text = pointer.read_bytes()
    ckzd.restore(copy)
    pointer.write_bytes(text)
    with pytest.raises(ckzd.errors.ConfigError, match="nothing to restore"):
        ckzd.restore(copy)
    assert not pointer.exists()
    assert sorted(tree_of(run)) == [".", "model.pt", f"step_{FIRST}.pt.ckz"]
