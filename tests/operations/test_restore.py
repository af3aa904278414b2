"""Restoring touches what it was asked for and nothing that is somebody else's."""

import errno
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from serving import write_checkpoint

import ckzd
from ckzd import chains, durable
from ckzd.archive import ArchiveReader
from ckzd.errors import ConfigError
from ckzd.locks import Process
from ckzd.operations import pointer as pointers
from ckzd.operations import undo
from ckzd.operations.pointer import pointer_for, points_to, resolve
from ckzd.operations.replace import recover
from ckzd.store import Store


@pytest.fixture(scope="module")
def archived(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint without loss and its archive, to be copied."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("archived") / "run" / "step_1.safetensors")
    return checkpoint, Path(ckzd.compress(checkpoint, preset="lossless").archive)


def test_an_archive_that_is_named_like_a_pointer_stays(archived, tmp_path):
    """Somebody renamed it; it may be all that there is."""
    checkpoint, archive = archived
    target = tmp_path / checkpoint.name
    shutil.copy(archive, pointer_for(target))
    for output in (target, None):
        ckzd.restore(pointer_for(target) if output else target, output=output)
        assert target.read_bytes() == checkpoint.read_bytes()
        assert pointer_for(target).read_bytes() == archive.read_bytes()
        target.unlink()


def test_the_pointer_of_another_archive_stays(archived, tmp_path):
    target, pointer = tmp_path / "step_9.safetensors", tmp_path / "step_9.safetensors.ckz"
    said = {"archive": "elsewhere.ckz", "archive_absolute": "/elsewhere.ckz", "checkpoint": "", "reconstruction": ""}
    pointer.write_text(json.dumps({"ckzd_pointer": 1, "restore": "", **said}))
    ckzd.restore(archived[1], output=target)
    assert pointer.exists()
    assert not points_to(pointer, archived[1])


@pytest.fixture
def looks(monkeypatch) -> Counter:
    """How often something is opened or listed: archives by their step, directories of archives, pointers, stores."""
    found: Counter = Counter()

    def count(owner, name, key):
        look = getattr(owner, name)

        def counted(*arguments):
            found[key(*arguments) if callable(key) else key] += 1
            return look(*arguments)

        monkeypatch.setattr(owner, name, counted)

    count(ArchiveReader, "__init__", lambda _, path: path.name.partition(".")[0])
    count(chains, "archive_files", "lists")
    count(pointers, "read_pointer", "pointers")
    count(Store, "open", "stores")
    return found


def test_a_restore_looks_at_each_thing_as_often_as_it_has_to(tmp_path, looks):
    """What is meant and what it needs is found out once: of slow disks and long chains every look counts."""
    run = tmp_path / "run"
    steps = [write_checkpoint(run / f"step_{step}.safetensors") for step in (1, 2, 3, 4)]
    reports = [ckzd.compress(path, preset="lossless", replace=path == steps[-1]) for path in steps]
    assert [report.reference for report in reports] == [None, *(report.archive for report in reports[:-1])]
    for cached in (tmp_path / ".ckzd" / "cache").iterdir():
        cached.unlink()
    chains._records_before.cache_clear()  # as in a process of its own
    looks.clear()
    ckzd.restore(steps[-1])
    links = dict.fromkeys(("step_1", "step_2", "step_3"), 2)  # its manifest among its neighbours', and to decode it
    own = {"step_4": 4}  # as well, and to know it by what names it, and to restore from it
    assert looks == {**links, **own, "lists": 1, "pointers": 2, "stores": 1}  # the pointer again before it goes


def test_what_is_said_of_an_archive_takes_one_look_at_it(archived, looks):
    ckzd.inspect(archived[0])
    assert looks == {"step_1": 1, "lists": 1, "stores": 1}


def test_weights_alone_are_not_the_checkpoint(archived, tmp_path):
    """So the pointer stays, even where they take the checkpoint's name."""
    checkpoint = tmp_path / "run" / archived[0].name
    checkpoint.parent.mkdir()
    shutil.copy(archived[0], checkpoint)
    ckzd.compress(checkpoint, preset="lossless", replace=True)
    ckzd.restore(pointer_for(checkpoint), output=checkpoint, weights_only=True)
    assert pointer_for(checkpoint).exists()


def test_the_longest_name_can_be_restored(archived, tmp_path):
    target = tmp_path / ("x" * 255)
    ckzd.restore(archived[1], output=target)
    assert target.read_bytes() == archived[0].read_bytes()
    with pytest.raises(ConfigError, match="is not there"):
        resolve(tmp_path / ("y" * 255))


def test_what_came_into_a_replaced_directory_stays(tmp_path):
    """Files, links that lead nowhere, directories; and an edit of a small file that was left there."""
    checkpoint = tmp_path / "run" / "checkpoint-20"
    write_checkpoint(checkpoint / "model.safetensors")
    for name, text in {"trainer_state.json": '{"global_step": 20}', "config.json": "{}"}.items():
        (checkpoint / name).write_text(text)
    os.utime(checkpoint, ns=(10**18, 10**18))
    ckzd.compress(checkpoint, preset="lossless", replace=True)

    (checkpoint / "config.json").write_text('{"edited": true}')
    (checkpoint / "nowhere").symlink_to("/nonexistent")
    (checkpoint / "more").mkdir()
    (checkpoint / "more" / "notes.txt").write_text("mine")
    (checkpoint / "more" / "link").symlink_to("notes.txt")
    ckzd.restore(checkpoint)

    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.json", "model.safetensors", "more", "nowhere", "trainer_state.json",
    ]  # fmt: skip
    assert (checkpoint / "config.json").read_text() == '{"edited": true}'
    assert (checkpoint / "nowhere").readlink() == Path("/nonexistent")
    assert (checkpoint / "more" / "link").readlink() == Path("notes.txt")
    assert checkpoint.stat().st_mtime_ns == 10**18


def left_by(process: Process, directory: Path) -> Path:
    """What a restore leaves that was killed with half a directory written."""
    left = directory / f".ckzd-{process}-0123456789ab.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(bytes(1000))
    return left


@pytest.mark.parametrize("next_one", ["restore", "compress"])
def test_what_a_killed_restore_left_beside_its_target_goes_with_the_next_one(archived, tmp_path, next_one):
    here = Process.this()
    dead = left_by(Process(here.boot, here.namespace, here.pid, "1"), tmp_path)
    living = left_by(here, tmp_path)
    if next_one == "restore":
        copied = tmp_path / "elsewhere" / "a.ckz"
        copied.parent.mkdir()
        shutil.copy(archived[1], copied)
        ckzd.restore(copied, output=tmp_path / "restored.safetensors")
    else:
        ckzd.compress(write_checkpoint(tmp_path / "step_7.safetensors"), store=tmp_path / "store", preset="lossless")
    assert (dead.exists(), living.exists()) == (False, True)


@pytest.mark.parametrize("in_store", [True, False])
def test_a_restore_writes_where_a_sweep_finds_it(archived, tmp_path, monkeypatch, in_store):
    archive = archived[1]
    if not in_store:
        archive = Path(shutil.copy(archived[1], tmp_path / "a.ckz"))
    found = []
    monkeypatch.setattr(
        sys.modules["ckzd.operations.restore"], "write_files", lambda *arguments: found.append(arguments[2]) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        ckzd.restore(archive, output=tmp_path / "restored.safetensors")
    assert Process.parse(found[0].name) == Process.this()


def test_a_restore_that_died_before_it_took_its_pointer_is_finished(archived, tmp_path):
    """Both stand then; the next one takes the pointer, but never one beside a file that was written since."""
    run = tmp_path / "run"
    shutil.copytree(archived[0].parent, run)
    checkpoint = run / archived[0].name
    ckzd.compress(checkpoint, preset="lossless", replace=True)
    pointer, text = pointer_for(checkpoint), pointer_for(checkpoint).read_text()
    ckzd.restore(checkpoint)
    assert not pointer.exists()
    for path in (checkpoint, pointer):
        pointer.write_text(text)
        with pytest.raises(ConfigError, match="nothing to restore"):
            ckzd.restore(path)
        assert not pointer.exists()
    pointer.write_text(text)
    os.utime(checkpoint)
    with pytest.raises(ConfigError, match="nothing to restore"):
        ckzd.restore(pointer)
    assert pointer.read_text() == text


@pytest.mark.parametrize("dies", [False, True], ids=["lives", "dies"])
def test_what_training_writes_while_a_directory_is_restored_is_kept(tmp_path, monkeypatch, dies):
    """Between the last look and the exchange a rank may write a file, or edit one that stayed."""
    place = tmp_path / "run" / "checkpoint-1"
    model = write_checkpoint(place / "model.safetensors")
    content = model.read_bytes()
    (place / "trainer_state.json").write_text('{"global_step": 1}')
    ckzd.compress(place, preset="lossless", replace=True)
    assert not model.exists()
    real = durable.exchange

    def late(staged, target):
        (target / "late").mkdir()
        (target / "late" / "rng_state_1.pth").write_text("rank 1")
        (target / "trainer_state.json").write_text('{"global_step": 1, "note": "edited"}')
        real(staged, target)

    def die(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable, "exchange", late)
    if dies:
        with monkeypatch.context() as patched:
            patched.setattr(undo, "carry_over_what_came_later", die)
            with pytest.raises(OSError, match="Input/output"):
                ckzd.restore(place)
        assert not (place / "late").exists()
        (place / "scheduler.pt").write_text("later still")
        assert recover(Store.open(tmp_path / ".ckzd")) == [f"ended the restore of {place}"]
        assert (place / "scheduler.pt").read_text() == "later still"
    else:
        ckzd.restore(place)
    assert model.read_bytes() == content
    assert (place / "late" / "rng_state_1.pth").read_text() == "rank 1"
    assert "edited" in (place / "trainer_state.json").read_text()
    assert not pointer_for(place).exists()
    assert [*(tmp_path / ".ckzd" / "tmp").iterdir(), *(tmp_path / ".ckzd" / "trash").iterdir()] == []
