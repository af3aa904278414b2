"""What is listed of runs: each checkpoint with its archive, and what stands in its place."""

import shutil
from pathlib import Path

import pytest
from making import put, put_chain
from serving import write_checkpoint

import ckzd
from ckzd.operations.catalogue import Row, catalogue
from ckzd.operations.check import check
from ckzd.operations.places import Asked, places
from ckzd.operations.replace import replace
from ckzd.store import Store

NOW = 2_000_000_000.0


@pytest.fixture
def run(tmp_path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def store(run) -> Store:
    return Store.open_or_create(run.parent / ".ckzd")


def listed(*paths: Path, store: Path | None = None) -> list[Row]:
    return list(catalogue(places(Asked(path, store) for path in paths), NOW))


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.checkpoint: row for row in rows}


@pytest.fixture(scope="module")
def archived(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("archived")
    for step in range(1, 6):
        checkpoint = write_checkpoint(place / "run" / f"step_{step}.safetensors")
        if step < 5:
            ckzd.compress(checkpoint, preset="lossless")
    return place


def test_what_stands_in_the_place_of_each(archived, tmp_path):
    shutil.copytree(archived, tmp_path / "place")
    run, store = tmp_path / "place" / "run", Store.open(tmp_path / "place" / ".ckzd")
    archives = [record.path for record in store.archives(run)]
    raw, replaced, rotated, rewritten, new = (run / f"step_{step}.safetensors" for step in range(1, 6))
    replace(replaced, archives[1], store)
    rotated.unlink()
    write_checkpoint(rewritten, "another")
    rows = listed(run)
    assert [(row.checkpoint, row.stands) for row in rows] == [
        (raw.name, "original"),
        (replaced.name, "pointer"),
        (rotated.name, "nothing"),
        (rewritten.name, "another version"),
        (rewritten.name, "original"),  # as it stands now it is not archived
        (new.name, "original"),
    ]
    assert [row.archive for row in rows] == [*map(str, archives), None, None]
    assert [row.kind for row in rows] == ["base", "delta", "delta", "delta", None, None]
    assert [row.depth for row in rows] == [0, 1, 2, 3, None, None]
    ckzd.restore(replaced)
    shutil.copy(raw, run / "x.safetensors")
    assert by_name(listed(run))[replaced.name].stands == "original"
    assert by_name(listed(run))["x.safetensors"].archive is None


def test_sizes_and_times_are_those_of_the_checkpoint(run, store):
    archive = put(store, run, 100, mtime_ns=1_500_000_000 * 10**9)
    (row,) = listed(run)
    assert (row.run, row.checkpoint, row.step, row.preset) == (str(run), "step_100.pt", 100, "resume")
    assert (row.original_bytes, row.archive_bytes) == (3, archive.stat().st_size)
    assert row.ratio == 3 / archive.stat().st_size
    assert row.written == 1_500_000_000
    assert row.checked == archive.stat().st_mtime


def test_a_store_a_run_and_a_directory_of_runs_list_the_same(run, store):
    put_chain(store, run, 3)
    assert listed(run) == listed(run.parent) == listed(store.root) == listed(run, run.parent)
    assert len(listed(run)) == 3


def test_a_store_that_was_named_and_a_run_that_is_gone(run, store, tmp_path):
    put_chain(store, run, 2)
    elsewhere = Store.open_or_create(tmp_path / "stores" / "here")
    put_chain(elsewhere, run, 3)
    assert len(listed(run, store=elsewhere.root)) == 3
    assert {row.run for row in listed(elsewhere.root)} == {str(run)}  # it remembers where its runs are
    run.rename(tmp_path / "renamed")
    rows = listed(store.root)
    assert [(row.run, row.stands) for row in rows] == [(None, None)] * 2


def test_a_run_whose_pointers_lead_to_a_store_that_nobody_named(archived, tmp_path):
    shutil.copytree(archived, tmp_path / "place")
    run, store = tmp_path / "place" / "run", Store.open(tmp_path / "place" / ".ckzd")
    replace(run / "step_1.safetensors", store.archives(run)[0].path, store)
    (tmp_path / "moved").mkdir()
    moved = run.rename(tmp_path / "moved" / "run")
    rows = by_name(listed(moved))
    assert rows["step_1.safetensors"].stands == "pointer"
    assert rows["step_4.safetensors"].archive is not None


def test_a_run_without_any_archive_lists_its_checkpoints(run):
    write_checkpoint(run / "step_1.safetensors")
    (row,) = listed(run)
    assert (row.archive, row.stands, row.step) == (None, "original", 1)
    assert row.original_bytes == (run / "step_1.safetensors").stat().st_size


def test_damage_is_told_as_far_as_it_is_known_without_reading(run, store):
    chain = put_chain(store, run, 4)
    chain[2].write_bytes(chain[2].read_bytes().replace(b"first", b"fIrst"))
    assert [row.damaged for row in listed(run)] == [None] * 4
    list(check(places([Asked(run)])))
    damaged = [row.damaged or "" for row in listed(run)]
    assert damaged[:2] == ["", ""]
    assert "sha256" in damaged[2]
    assert damaged[3] == "what it needs is damaged or missing"
    chain[0].write_bytes(b"")
    rows = by_name(listed(run))
    assert rows[chain[0].name].damaged
    assert rows["step_100.pt"].damaged == "what it needs is damaged or missing"


def test_only_what_an_archive_says_of_itself_is_read(run, store, monkeypatch):
    put_chain(store, run, 3)
    monkeypatch.setattr("ckzd.archive.ArchiveReader.check", None)
    monkeypatch.setattr("ckzd.archive.ArchiveReader.read", None)
    assert len(listed(run)) == 3
