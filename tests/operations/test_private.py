"""A checkpoint that others may not read is archived, replaced and restored without their ever being able to."""

import os
import stat
from pathlib import Path

import pytest
from serving import write_checkpoint

from ckzd.operations.compress import compress
from ckzd.operations.pointer import pointer_for
from ckzd.operations.restore import restore
from ckzd.store import default_store

GROUP = 4321


@pytest.fixture(autouse=True)
def _no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run in a directory that all may enter, whose files get the directory's group where we may say so."""
    tmp_path.chmod(0o755)
    run = tmp_path / "run"
    run.mkdir()
    if os.geteuid() == 0:
        os.chown(run, 0, GROUP)
    run.chmod(0o2775)
    return run


def make(run: Path, kind: str, mode: int) -> tuple[Path, Path]:
    """A checkpoint and the file of it that has this mode."""
    if kind == "file":
        path = file = write_checkpoint(run / "step_1.safetensors")
    else:
        path = run / "checkpoint-1"
        path.mkdir(mode=0o755)
        file = write_checkpoint(path / "model.safetensors")
        (path / "trainer_state.json").write_text('{"global_step": 1}')
    file.chmod(mode)
    return path, file


def is_open_beyond(path: Path, mode: int) -> bool:
    """Whether anybody but the owner may do more with a file than this mode says."""
    return bool(stat.S_IMODE(path.lstat().st_mode) & 0o077 & ~mode)


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660])
def test_nothing_is_ever_more_open_than_the_original(run, kind, mode):
    path, file = make(run, kind, mode)
    group, store = file.stat().st_gid, default_store(run)
    open_ones = []

    def look(stage: str, _: float) -> None:
        made = [*store.rglob("*.ckz"), *store.rglob("*.rec")]
        open_ones.extend(
            (stage, str(found)) for found in made if is_open_beyond(found, mode if found.parent.name != "tmp" else 0)
        )

    report = compress(path, preset="lossless", replace=True, on_stage=look)
    assert open_ones == []
    pointer = pointer_for(path)
    caches = list(store.glob("cache/*.rec"))
    assert len(caches) == 1
    for made in (Path(report.archive), caches[0], pointer):
        assert stat.S_IMODE(made.stat().st_mode) == mode & 0o644 | 0o600, made
        assert made.stat().st_gid == group, made

    restore(path, output=run / "copy")
    weights = run / "weights.safetensors"
    restore(path, output=weights, weights_only=True)
    assert stat.S_IMODE(weights.stat().st_mode) == mode & 0o644 | 0o600
    restore(path)
    for restored in (file, run / "copy" / file.relative_to(path) if kind == "directory" else run / "copy"):
        assert (stat.S_IMODE(restored.stat().st_mode), restored.stat().st_gid) == (mode, group)


def test_one_private_file_makes_the_archive_of_a_directory_private(run):
    path, _ = make(run, "directory", 0o644)
    (path / "trainer_state.json").chmod(0o600)
    report = compress(path, preset="lossless", replace=True)
    assert stat.S_IMODE(Path(report.archive).stat().st_mode) == 0o600
    assert stat.S_IMODE(pointer_for(path).stat().st_mode) == 0o644, "it stands for the tensors alone"


def test_a_checkpoint_that_was_closed_after_it_was_archived_closes_its_archive(run):
    path, _ = make(run, "file", 0o644)
    report = compress(path, preset="lossless")
    path.chmod(0o600)
    assert compress(path, preset="lossless", replace=True).already
    assert stat.S_IMODE(Path(report.archive).stat().st_mode) == 0o600


def test_what_an_accept_command_sees_is_behind_a_closed_door(run):
    path, _ = make(run, "file", 0o644)
    command = ["sh", "-c", 'test "$(stat -c %a "$(dirname "$0")")" = 700']
    assert compress(path, preset="lossless", accept_command=command).accepted


def test_the_original_is_closed_while_it_is_staged_on_another_file_system(run, tmp_path, monkeypatch):
    path, _ = make(run, "file", 0o600)
    archive = Path(compress(path, preset="lossless").archive)
    (tmp_path / "elsewhere").mkdir()
    copied = tmp_path / "elsewhere" / archive.name
    copied.write_bytes(archive.read_bytes())
    seen = []

    def look(_: float) -> None:
        seen.extend(stat.S_IMODE(found.stat().st_mode) for found in (tmp_path / "elsewhere").glob(".ckzd-*"))

    restore(copied, output=tmp_path / "elsewhere" / "step_1.safetensors", on_progress=look)
    assert set(seen) == {0o600}
