"""The scrub: what it reads and when, what it says is lost, and from what it heals; by hand-made archives."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from making import put, put_chain

from ckzd import durable
from ckzd.archive import manifest
from ckzd.chains import is_sound, is_whole
from ckzd.errors import ConfigError, StoreLocked
from ckzd.operations import check as checking
from ckzd.operations.check import Options, check
from ckzd.operations.ledger import LEDGER_NAME, Ledger
from ckzd.operations.places import Asked, places
from ckzd.store import Store

DAY = 86400.0


@pytest.fixture
def run(tmp_path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def store(run) -> Store:
    return Store.open_or_create(run.parent / ".ckzd")


@pytest.fixture
def chain(store, run) -> list[Path]:
    return put_chain(store, run, 4)


def rot(archive: Path) -> None:
    """One byte of a stream: opening the archive does not see it."""
    archive.write_bytes(archive.read_bytes().replace(b"first", b"fIrst"))
    assert not is_whole(archive)


def checked(*paths: Path, **options) -> dict[str, list[str]]:
    """Names of archives by what a check found."""
    found: dict[str, list[str]] = {}
    for outcome in check(places(Asked(path) for path in paths), Options(**options)):
        found.setdefault(outcome.outcome, []).append(name(outcome.archive))
    return {outcome: sorted(names) for outcome, names in found.items()}


def name(archive) -> str:
    return Path(archive).name.split(".")[0]


def age(archives: list[Path]) -> None:
    """Written long ago, the first one longest."""
    for place, archive in enumerate(archives):
        when = time.time() - DAY * (100 - place)
        os.utime(archive, (when, when))


STEPS = [f"step_{n}" for n in (0, 100, 200, 300)]


def test_every_archive_of_a_run_a_store_or_a_directory_of_runs_is_read(run, store, chain):
    (run.parent / "other").mkdir()
    put_chain(store, run.parent / "other", 1)
    assert checked(run) == {"whole": STEPS}
    assert checked(store.root) == {"whole": sorted([*STEPS, "step_0"])}
    assert checked(run.parent) == {"whole": sorted([*STEPS, "step_0"])}
    assert checked(run, run.parent, store.root) == {"whole": sorted([*STEPS, "step_0"])}


def test_what_is_neither_a_run_nor_a_store_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nothing"):
        with pytest.raises(ConfigError):
            checked(path)


def test_a_share_takes_what_was_read_longest_ago_until_all_had_their_turn(run, chain):
    age(chain)
    assert [checked(run, percent=25)["whole"] for _ in STEPS] == [[step] for step in STEPS]
    assert checked(run, percent=1) == {"whole": ["step_0"]}


def test_a_share_begins_with_the_oldest_and_what_was_just_written_is_last(run, store, chain):
    age(chain)
    put(store, run, 400, "step_300.pt")
    assert checked(run, percent=60) == {"whole": STEPS[:3]}


def test_a_file_that_was_exchanged_counts_as_never_read(run, chain):
    age(chain)
    checked(run)
    copy = chain[2].with_name("copy")
    shutil.copy2(chain[2], copy)
    copy.replace(chain[2])
    assert checked(run, percent=25) == {"whole": ["step_200"]}


def test_damage_is_named_with_all_that_needs_it_and_remembered(run, chain):
    rot(chain[1])
    outcomes = [outcome for outcome in check(places([Asked(run)])) if outcome.outcome != "whole"]
    assert [(name(o.archive), o.outcome, list(map(name, o.lost))) for o in outcomes] == [
        ("step_100", "damaged", STEPS[2:])
    ]
    assert outcomes[0].error.exit_code == 4
    assert "; 2 others need it and cannot be restored either: step_200" in str(outcomes[0].error)
    assert checked(run, percent=0) == {"damaged": ["step_100"]}  # looked at again each time


def test_an_archive_that_says_nothing_any_more_is_damaged_and_what_needs_it_is_known(run, chain):
    checked(run)
    chain[1].write_bytes(b"")
    (outcome,) = [outcome for outcome in check(places([Asked(run)])) if outcome.outcome != "whole"]
    assert (name(outcome.archive), outcome.outcome) == ("step_100", "damaged")
    assert list(map(name, outcome.lost)) == STEPS[2:]


def test_a_missing_archive_is_told_of_what_needs_it(run, chain):
    chain[1].unlink()
    (outcome,) = [outcome for outcome in check(places([Asked(run)])) if outcome.outcome != "whole"]
    assert (name(outcome.archive), outcome.outcome, list(map(name, outcome.lost))) == (
        "step_200", "missing", ["step_300"]
    )  # fmt: skip
    assert outcome.error.exit_code == 5
    assert "; 1 other needs it and cannot be restored either: step_300" in str(outcome.error)
    assert "ckzd check" in outcome.error.hint


@pytest.mark.parametrize("harm", [rot, lambda path: path.write_bytes(b""), Path.unlink], ids=["rot", "cut", "gone"])
def test_a_copy_in_another_folder_heals(run, chain, tmp_path, harm):
    shutil.copytree(chain[0].parent, tmp_path / "copies")
    before = chain[1].read_bytes()
    checked(run)
    harm(chain[1])
    assert checked(run, tmp_path / "copies")["healed"] == ["step_100"]
    assert chain[1].read_bytes() == before
    assert all(map(is_sound, chain))
    assert checked(run) == {"whole": STEPS}
    damaged = list(chain[0].parent.glob("*.damaged"))
    assert len(damaged) == (0 if harm is Path.unlink else 1)
    assert not any(map(is_whole, damaged))


def test_a_copy_under_another_name_beside_it_heals(run, chain):
    shutil.copy(chain[0], chain[0].with_name("backup.ckz"))
    rot(chain[0])
    assert checked(run)["healed"] == ["step_0"]
    assert all(map(is_sound, chain))


def test_a_copy_that_is_damaged_too_heals_nothing(run, chain, tmp_path):
    rot(chain[1])
    shutil.copytree(chain[0].parent, tmp_path / "copies")
    assert checked(run, tmp_path / "copies")["damaged"] == ["step_100", "step_100"]
    assert list(chain[0].parent.glob("*.damaged")) == []


def test_what_was_set_aside_whole_comes_back(run, chain):
    """As a crash leaves it where the file system knows no exchange: both lie aside."""
    whole = chain[1].read_bytes()
    rot(chain[1])
    chain[1].rename(chain[1].with_name(f"{chain[1].name}.11111111.damaged"))
    chain[1].with_name(f"{chain[1].name}.22222222.damaged").write_bytes(whole)
    assert checked(run)["healed"] == ["step_100"]
    assert all(map(is_sound, chain))
    assert len(list(chain[0].parent.glob("*.damaged"))) == 1


def test_what_was_dropped_does_not_come_back_from_what_lies_aside_damaged(run, chain):
    rot(chain[3])
    chain[3].rename(chain[3].with_name(f"{chain[3].name}.11111111.damaged"))
    assert checked(run) == {"whole": STEPS[:3]}
    assert not chain[3].exists()


def test_nothing_is_healed_while_somebody_deletes_archives(run, store, chain, tmp_path):
    shutil.copytree(chain[0].parent, tmp_path / "copies")
    rot(chain[1])
    with store.lock(shared=False):
        assert checked(run, tmp_path / "copies")["damaged"] == ["step_100"]
    assert checked(run, tmp_path / "copies")["healed"] == ["step_100"]


def test_what_lies_aside_whole_is_taken_before_any_copy(run, chain, tmp_path):
    """As when the exchange failed: it would lie there for good."""
    shutil.copytree(chain[0].parent, tmp_path / "copies")
    shutil.copy(chain[1], chain[1].with_name(f"{chain[1].name}.22222222.damaged"))
    rot(chain[1])
    assert checked(run, tmp_path / "copies")["healed"] == ["step_100"]
    (aside,) = chain[0].parent.glob("*.damaged")
    assert not is_whole(aside)


def test_it_heals_where_the_file_system_knows_no_exchange(run, chain, tmp_path, monkeypatch):
    def no_flags(source, target, flags):
        raise OSError(22, "invalid argument")

    shutil.copytree(chain[0].parent, tmp_path / "copies")
    rot(chain[1])
    monkeypatch.setattr(durable, "_renameat2", no_flags)
    assert checked(run, tmp_path / "copies")["healed"] == ["step_100"]
    assert all(map(is_sound, chain))


def test_a_folder_of_copies_is_read_and_never_written_to(chain, tmp_path):
    folder = tmp_path / "copies"
    shutil.copytree(chain[0].parent, folder)
    rot(folder / chain[1].name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert checked(folder)["damaged"] == ["step_100"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_archive_of_a_newer_ckzd_is_not_damaged(run, chain, monkeypatch):
    """To be healed would be to lose it."""
    monkeypatch.setattr(manifest, "FORMAT_VERSION", manifest.FORMAT_VERSION - 1)
    assert checked(run) == {"unreadable": STEPS}
    assert checked(run, deep=True) == {"unreadable": STEPS}
    errors = [outcome.error for outcome in check(places([Asked(run)]), Options(deep=True))]
    assert [(error.exit_code, error.hint) for error in errors] == [(4, "update ckzd on this machine")] * 4
    assert list(chain[0].parent.glob("*.damaged")) == []


def test_what_is_remembered_may_be_lost_or_damaged(run, store, chain, caplog):
    checked(run)
    ledger = store.root / LEDGER_NAME
    assert json.loads(ledger.read_bytes())["archives"].keys() == {f"{a.parent.name}/{a.name}" for a in chain}
    endless = re.sub(r'"mark": \[\d+', '"mark": [1e999', ledger.read_text())
    for text in ("", "[]", "{", '{"version": 1}', '{"version": 2, "archives": {}}', ledger.read_text()[:-9], endless):
        ledger.write_text(text)
        caplog.clear()
        assert checked(run) == {"whole": STEPS}
        assert "cannot be read" in caplog.text
    ledger.unlink()
    assert checked(run) == {"whole": STEPS}


def test_a_pass_is_complete_when_everything_was_read_since_it_began(run, store, chain):
    age(chain)
    completed = []
    for _ in range(5):
        checked(run, percent=25)
        completed.append(Ledger.read(store).pass_completed)
    assert completed[:3] == [0.0, 0.0, 0.0]
    assert 0 < completed[3] == completed[4]
    assert Ledger.read(store).progress(chain, time.time()) == 0.25


def test_two_checks_of_one_store_do_not_heal_at_once(run, store, chain):
    with store.check_lock(), pytest.raises(StoreLocked):
        checked(run)


def test_a_full_disk_leaves_everything_as_it_was(run, chain, tmp_path, monkeypatch):
    shutil.copytree(chain[0].parent, tmp_path / "copies")
    rot(chain[1])
    before = chain[1].read_bytes()
    monkeypatch.setattr(durable, "free_bytes", lambda path: 0)
    assert checked(run, tmp_path / "copies")["damaged"] == ["step_100"]
    assert chain[1].read_bytes() == before


def test_gone_archives_are_forgotten(run, store, chain):
    checked(run)
    chain[3].unlink()
    checked(run)
    assert len(json.loads((store.root / LEDGER_NAME).read_bytes())["archives"]) == 3


def test_an_archive_that_we_may_not_read_is_no_damage(run, chain, monkeypatch):
    def refuse(archive):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checking, "require_whole", refuse)
    assert checked(run) == {"unreadable": STEPS}
