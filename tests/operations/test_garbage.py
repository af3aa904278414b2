"""Garbage: only what nothing needs, and archives of runs that are gone only if they are asked for."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from making import put, put_chain, store_archive
from serving import named

from ckzd.base_models import notes_in
from ckzd.errors import StoreLocked
from ckzd.locks import Process
from ckzd.operations.garbage import Garbage, Wanted, collect
from ckzd.operations.pointer import pointer_for
from ckzd.store import Store

LITTLE = Wanted()
ALL = Wanted(damaged_days=0, gone_runs=True)


def dead(suffix: str) -> str:
    ours = Process.this()
    return f"{Process(ours.boot, ours.namespace, ours.pid, '1')}-{suffix}"


def collected(store, run, wanted=LITTLE, **options) -> list[Garbage]:
    return collect(store, [run], roots=[run.parent], now=time.time() + 1, wanted=wanted, **options)


def told(found) -> dict[str, tuple[bool, str]]:
    return {Path(garbage.path).name: (garbage.goes, garbage.why) for garbage in found}


def point_to(archive: Path, pointer: Path) -> None:
    said = dict.fromkeys(("checkpoint", "reconstruction", "restore"), "x")
    pointer.parent.mkdir(exist_ok=True)
    pointer.write_text(json.dumps({"ckzd_pointer": 1, "archive": "nowhere", "archive_absolute": str(archive), **said}))


def test_a_sound_store_holds_none(store, run):
    for archive in put_chain(store, run, 3):
        point_to(archive, pointer_for(run / archive.name.split(".ckz")[0]))
    (store.tmp / "somebodys").touch()
    (store.tmp / f"{Process.this()}-ours.ckz").touch()
    assert collected(store, run, ALL) == []


@pytest.mark.leaves_temporaries
def test_what_the_dead_left_goes_in_the_store_and_beside_checkpoints(store, run):
    places = [store.tmp / dead("a.ckz"), run / f".ckzd-{dead('b')}.tmp", store.cache / f".ckzd-{dead('c')}.tmp"]
    for place in places:
        place.write_bytes(bytes(100))
    (store.tmp / dead("d")).mkdir()
    (store.tmp / dead("d") / "x").write_bytes(bytes(5000))
    assert {garbage.path for garbage in collected(store, run, dry_run=True)} == {
        *map(str, places),
        str(store.tmp / dead("d")),
    }
    assert all(place.exists() for place in places)
    assert sum(garbage.nbytes for garbage in collected(store, run)) >= 3 * 4096 + 8192
    assert not any(place.exists() for place in places)
    assert list(store.tmp.iterdir()) == []


def test_a_reconstruction_goes_when_its_archive_is_gone(store, run):
    archive = put(store, run, 1)
    kept = store.cache_path(store.archives(run)[0].manifest.reconstruction)
    for path in (kept, store.cache_path("f" * 64)):
        path.write_bytes(b"x")
    assert told(collected(store, run)) == {"f" * 64 + ".rec": (True, "its archive is gone")}
    assert kept.exists()
    archive.write_bytes(b"PK damaged")
    assert collected(store, run) == []  # what depends on it may be decoded from there
    assert kept.exists()


def set_aside(store: Store, archive: Path) -> Path:
    """As when it was found damaged, and healed."""
    healed = store.new_temp(".ckz")
    shutil.copy(archive, healed)
    archive.write_bytes(archive.read_bytes().replace(b"first", b"fIrst"))
    return store.supplant(healed, archive)


def test_a_whole_archive_that_a_crash_left_aside_on_its_way_to_its_name_stays(store, run):
    archive = put(store, run, 1)
    shutil.copy(archive, aside := archive.with_name(f"{archive.name}.11111111.damaged"))
    archive.write_bytes(b"PK damaged")
    assert told(collected(store, run, ALL))[aside.name] == (False, "it is whole: `ckzd check` brings it back")
    archive.unlink()
    assert not told(collected(store, run, ALL))[aside.name][0]
    shutil.copy(aside, archive)
    assert told(collected(store, run, ALL))[aside.name][0]


def test_damage_that_was_set_aside_goes_after_a_while(store, run):
    aside = set_aside(store, put(store, run, 1))
    (garbage,) = collected(store, run)
    assert not garbage.goes
    assert garbage.why.startswith("set aside ")
    assert aside.exists()
    os.utime(aside, (0, 0))  # only its content is old
    assert not collected(store, run)[0].goes
    assert collected(store, run, Wanted(damaged_days=0))[0].goes
    assert not aside.exists()


class TestGoneRuns:
    def test_their_archives_are_named_and_go_only_if_they_are_asked_for(self, store, run):
        archives = put_chain(store, run, 3)
        run.rmdir()
        found = told(collected(store, run))
        assert found == {archive.name: (False, f"its run {run} is gone") for archive in archives}
        assert all(archive.exists() for archive in archives)
        found = told(collected(store, run, ALL, dry_run=True))
        assert found.pop(archives[0].parent.name) == (True, "there are none, nor their run")
        assert all(goes for goes, _ in found.values())
        assert told(collected(store, run, ALL)).keys() == {*found, archives[0].parent.name}
        assert not archives[0].parent.exists()

    def test_what_a_pointer_names_stays_with_all_that_it_needs(self, store, run):
        archives = put_chain(store, run, 4)
        run.rename(run.parent / "renamed")
        point_to(archives[2], run.parent / "renamed" / "step_200.pt.ckz")
        found = told(collected(store, run, ALL))
        assert found[archives[2].name] == (False, "a pointer names it")
        assert found[archives[1].name] == (False, "needed by step_200.pt")
        assert [archive.exists() for archive in archives] == [True, True, True, False]

    def test_what_a_base_model_may_be_restored_from_stays(self, store, run, tmp_path):
        """And what archives of theirs needed is forgotten with them."""
        model = run / "step_100.pt"
        model.write_bytes(b"weights")
        archives = [store_archive(store, model, step=100), put(store, run, 200)]
        other = Store.open_or_create(tmp_path / "other" / ".ckzd")
        named(model, other)
        model.unlink()
        run.rmdir()
        (tmp_path / "gone").write_bytes(b"another")
        named(tmp_path / "gone", store)
        found = told(collected(store, run, ALL))
        assert found[archives[0].name] == (False, "a base model may be restored from it")
        assert [archive.exists() for archive in archives] == [True, False]
        assert (len(notes_in(store.root)), len(notes_in(other.root))) == (0, 1)

    def test_a_run_whose_surroundings_are_gone_too_may_be_out_of_sight(self, store, tmp_path):
        away = tmp_path / "mnt" / "disk" / "run"
        away.mkdir(parents=True)
        archive = put(store, away, 1)
        shutil.rmtree(tmp_path / "mnt" / "disk")
        assert "out of sight" in told(collected(store, away, ALL))[archive.name][1]
        assert archive.exists()

    def test_a_run_that_has_never_said_where_it_is_is_looked_for(self, store, run):
        archive = put(store, run, 1)
        (archive.parent / "run.json").unlink()
        assert collected(store, run, ALL) == []
        run.rmdir()
        assert "no run in sight" in told(collected(store, run, ALL))[archive.name][1]
        assert archive.exists()

    def test_where_something_is_damaged_nothing_goes(self, store, run):
        archives = put_chain(store, run, 3)
        archives[1].unlink()
        run.rmdir()
        assert {goes for goes, _ in told(collected(store, run, ALL)).values()} == {False}


def test_nobody_else_is_at_work_meanwhile(store, run):
    with store.lock(shared=True), pytest.raises(StoreLocked):
        collected(store, run)
