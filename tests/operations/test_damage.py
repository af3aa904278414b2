"""A disk that rots under the archives: nothing is deleted on top of it, archiving goes on, and what can heals."""

import logging
import time
from pathlib import Path

import pytest
from making import store_archive
from serving import write_checkpoint

import ckzd
from ckzd.archive import ArchiveReader
from ckzd.chains import is_sound, read_manifest
from ckzd.errors import CorruptArchive
from ckzd.operations.pointer import pointer_for, resolve
from ckzd.operations.replace import empty_trash, replace, rescue
from ckzd.store import Store


class Run:
    """Checkpoints of a run, each archived by hand."""

    def __init__(self, place: Path) -> None:
        self.path = place / "run"
        self.checkpoints = [write_checkpoint(self.path / f"step_{step}.safetensors") for step in (1, 2, 3, 4)]
        self.contents = [checkpoint.read_bytes() for checkpoint in self.checkpoints]
        self.archives: list[Path] = []

    @property
    def store(self) -> Store:
        return Store.open(self.path.parent / ".ckzd")

    def compress(self, *numbers: int, **options) -> list:
        reports = [ckzd.compress(self.checkpoints[n], preset="lossless", **options) for n in numbers]
        self.archives += [Path(report.archive) for report in reports if not report.already]
        return reports

    def restored(self, number: int, target: Path) -> bytes:
        ckzd.restore(self.checkpoints[number], output=target)
        data = target.read_bytes()
        target.unlink()
        return data


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def rot(archive: Path) -> None:
    """One bit of a stream: opening the archive does not see it."""
    with ArchiveReader(archive) as reader:
        offset = reader._members[reader.entries()[0]].data_offset
    data = bytearray(archive.read_bytes())
    data[offset + 1] ^= 1
    archive.write_bytes(data)
    assert not is_sound(archive)


def empty_cache(run: Run) -> None:
    for path in run.store.cache.iterdir():
        path.unlink()


def test_the_next_checkpoint_is_a_new_base_loudly_and_the_one_after_a_delta_to_it(run, caplog):
    run.compress(0, 1)
    rot(run.archives[0])
    first, second = run.compress(2, 3)
    assert first.reference is None
    assert second.reference == first.archive
    assert set(second.damaged) == {str(archive) for archive in run.archives[:2]}
    (said,) = [r for r in caplog.records if "becomes a new base" in r.message]
    assert said.levelno == logging.ERROR
    assert said.archive == str(run.archives[1])


def test_no_original_is_deleted_on_top_of_damage_though_the_cache_is_whole(run, tmp_path):
    run.compress(0, 1)
    rot(run.archives[0])
    with pytest.raises(CorruptArchive, match="sha256") as caught:
        replace(run.checkpoints[1], run.archives[1], run.store)
    assert caught.value.subject == str(run.archives[0])
    assert run.checkpoints[1].read_bytes() == run.contents[1]
    (report,) = run.compress(1, replace=True)
    assert not report.already
    empty_cache(run)
    assert run.restored(1, tmp_path / "x") == run.contents[1]


def test_damage_heals_when_its_own_original_is_archived_anew(run, tmp_path):
    """All that hangs on it: encoding is deterministic."""
    run.compress(0, 1, 2)
    for checkpoint, archive in zip(run.checkpoints[1:3], run.archives[1:], strict=True):
        replace(checkpoint, archive, run.store)
    before, manifest = run.archives[0].read_bytes(), read_manifest(run.archives[0])
    rot(run.archives[0])
    ckzd.compress(run.checkpoints[0], preset="resume")  # archived as it was, whatever is asked for
    assert run.archives[0].read_bytes() == before
    assert read_manifest(run.archives[0]) == manifest
    assert all(is_sound(archive) for archive in run.archives)
    assert run.store.damaged(run.path) == []
    (aside,) = run.archives[0].parent.glob("*.damaged")
    assert len(aside.read_bytes()) == len(before)
    empty_cache(run)
    assert run.restored(2, tmp_path / "x") == run.contents[2]


def test_a_link_in_the_middle_is_archived_against_what_it_was_archived_against(run):
    run.compress(0, 1, 2)
    before = run.archives[1].read_bytes()
    write_checkpoint(run.path / "step_0.safetensors")
    ckzd.compress(run.path / "step_0.safetensors", preset="lossless")
    rot(run.archives[1])
    run.compress(1)
    assert run.archives[1].read_bytes() == before
    assert run.store.damaged(run.path) == []


def test_one_that_only_hangs_on_damage_stays_beside_its_successor(run, tmp_path):
    """Were it overwritten, what hangs on it would be lost, though the damage below it heals."""
    run.compress(0, 1, 2)
    replace(run.checkpoints[2], run.archives[2], run.store)
    rot(run.archives[0])
    run.compress(1)
    assert run.archives[3] != run.archives[1]
    run.compress(0)
    assert run.store.damaged(run.path) == []
    empty_cache(run)
    assert run.restored(2, tmp_path / "x") == run.contents[2]


def test_a_damaged_one_does_not_make_way_for_what_others_cannot_be_decoded_with(run):
    """They may need only what is whole of it, as no moment; and one day it may be made as it was."""
    store = Store.open_or_create(run.path.parent / ".ckzd")
    damaged = store_archive(store, run.checkpoints[0], preset="lossless")
    yielded = read_manifest(damaged).reconstruction
    store_archive(store, run.checkpoints[2], reference=yielded, depth=1, reconstruction="0" * 64)
    rot(damaged)
    before = damaged.read_bytes()
    (report,) = run.compress(0)
    assert Path(report.archive) != damaged
    assert is_sound(Path(report.archive))
    assert damaged.read_bytes() == before
    assert list(damaged.parent.glob("*.damaged")) == []


def test_what_only_a_cached_reconstruction_still_gives_is_not_forgotten(run, tmp_path):
    """Of a damaged link: what hangs on it goes on from the cache, and nothing else could make that again."""
    run.compress(0, 1)
    yielded = [run.store.cache_path(read_manifest(archive).reconstruction) for archive in run.archives]
    assert [path.exists() for path in yielded] == [False, True]
    rot(run.archives[0])
    for checkpoint in run.checkpoints[:2]:  # nothing to archive anew from
        checkpoint.unlink()
    run.compress(2, 3)
    run.store.evict_cache(keep=set(), max_bytes=0)
    assert yielded[1].exists()
    assert [path.stem for path in run.store.cache.iterdir()] == [yielded[1].stem]
    ckzd.restore(run.archives[1], output=tmp_path / "x", weights_only=True)
    run.archives[1].unlink()
    run.store.evict_cache(keep=set(), max_bytes=0)
    assert list(run.store.cache.iterdir()) == [], "nothing is lost with it any more"


def test_one_that_nothing_hangs_on_makes_way_whatever_comes_out(run):
    store = Store.open_or_create(run.path.parent / ".ckzd")
    damaged = store_archive(store, run.checkpoints[0], preset="lossless")
    rot(damaged)
    (report,) = run.compress(0)
    assert Path(report.archive) == damaged
    assert is_sound(damaged)
    assert len(list(damaged.parent.glob("*.damaged"))) == 1


def test_originals_in_the_trash_are_put_back_and_archived_anew(run, tmp_path):
    run.compress(0, 1)
    for checkpoint, archive in zip(run.checkpoints, run.archives, strict=False):
        replace(checkpoint, archive, run.store)
    rot(run.archives[0])
    assert empty_trash(run.store, 0.0, time.time() + 1) == 0
    assert sorted(rescue(run.store)) == run.checkpoints[:2]
    assert [checkpoint.read_bytes() for checkpoint in run.checkpoints] == run.contents
    assert not any(pointer_for(checkpoint).exists() for checkpoint in run.checkpoints)
    assert list(run.store.trash.iterdir()) == []
    run.compress(0, 1, replace=True)
    empty_cache(run)
    assert [run.restored(n, tmp_path / "x") for n in (0, 1)] == run.contents[:2]


def test_the_command_puts_them_back_itself(run):
    run.compress(0)
    replace(run.checkpoints[0], run.archives[0], run.store)
    rot(run.archives[0])
    run.compress(1, replace=True)
    assert run.checkpoints[0].read_bytes() == run.contents[0]
    assert resolve(run.checkpoints[1]).path.exists()


def test_a_place_that_is_taken_keeps_the_older_original_in_the_trash(run):
    run.compress(0)
    replace(run.checkpoints[0], run.archives[0], run.store)
    run.checkpoints[0].write_bytes(b"newer")
    rot(run.archives[0])
    assert rescue(run.store) == []
    (entry,) = run.store.trash.iterdir()
    assert (entry / "held" / run.checkpoints[0].name).read_bytes() == run.contents[0]
    assert empty_trash(run.store, 0.0, time.time() + 1) == 0
    assert "was written anew" in (entry / "kept").read_text()
