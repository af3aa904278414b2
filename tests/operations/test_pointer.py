"""Whether a pointer names an archive: what is replaced, dropped, restored and counted hangs on one answer."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from making import manifest_of, store_archive

from ckzd.config import WatchSettings
from ckzd.daemon.clock import SystemClock
from ckzd.daemon.stores import Stores
from ckzd.errors import CorruptArchive
from ckzd.operations.pointer import pointer_for, pointer_text, points_to, read_pointer
from ckzd.operations.replace import replace
from ckzd.store import Store, default_store


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "runs" / "gpt" / "step_100.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(range(256)) * 40)
    return path


@pytest.fixture
def store(checkpoint) -> Store:
    return Store.open_or_create(default_store(checkpoint.parent))


@pytest.fixture
def archive(store, checkpoint) -> Path:
    """The pointer to it stands."""
    archive, pointer = store_archive(store, checkpoint), pointer_for(checkpoint)
    pointer.write_text(pointer_text(pointer, checkpoint, archive, manifest_of(checkpoint)))
    return archive


def test_a_pointer_names_its_archive_by_whichever_way(archive, checkpoint, store, tmp_path):
    pointer = pointer_for(checkpoint)
    assert points_to(pointer, archive)
    (tmp_path / "link").symlink_to(store.root)
    assert points_to(pointer, tmp_path / "link" / archive.relative_to(store.root))
    said = json.loads(pointer.read_text())
    pointer.write_text(json.dumps({**said, "archive": "gone.ckz"}))
    assert points_to(pointer, archive)  # by the absolute path


@pytest.mark.parametrize("file", [7, [], {"mode": 1}, {"mode": "x", "uid": 0, "gid": 0, "mtime_ns": 0}, {"size": 3}])
def test_what_a_pointer_says_of_its_file_is_checked(archive, checkpoint, file):
    pointer = pointer_for(checkpoint)
    said = json.loads(pointer.read_text())
    assert "file" not in said, "the archive knows it"
    pointer.write_text(json.dumps({**said, "file": file}))
    with pytest.raises(CorruptArchive, match="'file'"):
        read_pointer(pointer)


def away(pointer, archive):
    pointer.unlink()


def directory(pointer, archive):
    pointer.unlink()
    pointer.mkdir()


def an_archive(pointer, archive):
    shutil.copy(archive, pointer)


def of_another(pointer, archive):
    shutil.copy(archive, archive.with_name("other.ckz"))
    said = json.loads(pointer.read_text())
    other = {name: said[name].replace(archive.name, "other.ckz") for name in ("archive", "archive_absolute")}
    pointer.write_text(json.dumps({**said, **other}))


def of_none(pointer, archive):
    of_another(pointer, archive)
    archive.with_name("other.ckz").unlink()


@pytest.mark.parametrize("change", [away, directory, an_archive, of_another, of_none])
def test_what_else_has_its_name_does_not(archive, checkpoint, change):
    change(pointer_for(checkpoint), archive)
    assert not points_to(pointer_for(checkpoint), archive)


@pytest.fixture
def moved(store) -> Store:
    """It was moved, and a symbolic link stands where it stood: pointers lead through that, it knows its own place."""
    place = store.root.rename(store.root.with_name("elsewhere"))
    store.root.symlink_to(place)
    return Store.open(store.root)


def test_what_a_pointer_names_is_not_dropped(archive, checkpoint, moved):
    run = checkpoint.parent
    shutil.copy(checkpoint, run / "step_200.pt")
    store_archive(moved, run / "step_200.pt", step=200, reconstruction="2" * 64)  # the newest would stay in any case
    unwanted = {record.path for record in moved.archives(run)}
    with closing(Stores(SystemClock())) as stores:
        root = stores.open(run, WatchSettings(path=run.parent, replace=True))
        assert stores.drop(root, run, unwanted, stride=1) == []
        pointer_for(checkpoint).unlink()
        assert stores.drop(root, run, unwanted, stride=1) == [archive.resolve()]


def test_what_is_replaced_already_is_so(archive, checkpoint, moved):
    checkpoint.unlink()
    assert replace(checkpoint, archive, moved) == 0
