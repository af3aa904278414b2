"""What carries others and is damaged heals, or is left as it is; whoever decodes beside a merge takes no harm."""

import shutil
import time
from pathlib import Path

import pytest
from operations.merging import chain_in, cut, merged, rot
from serving import write_checkpoint

import ckzd
from ckzd import cli
from ckzd.chains import is_sound, read_manifest
from ckzd.operations import heal as healing
from ckzd.operations import verify as verifying
from ckzd.operations.check import check
from ckzd.operations.merge import merge
from ckzd.operations.places import Asked, places
from ckzd.operations.prune import Run
from ckzd.operations.restore import restore


@pytest.mark.parametrize("harm", ["rot", "cut"])
def test_it_heals_from_a_copy_of_itself_or_of_all_that_it_was(store, run, tmp_path, harm):
    archives = chain_in(store, run)
    shutil.copytree(archives[0].parent, tmp_path / "before")
    ids = [read_manifest(archive).reconstruction for archive in archives]
    merged(store, run, archives[0], archives[1])
    shutil.copytree(archives[0].parent, tmp_path / "after")
    whole = archives[2].read_bytes()
    for copies, left in (("after", archives[2:]), ("before", archives)):
        archives[2].write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:] if harm == "rot" else whole[:-9])
        outcomes = list(check(places([Asked(run), Asked(tmp_path / copies)])))
        healed = {Path(outcome.archive) for outcome in outcomes if outcome.outcome == "healed"}
        assert healed == {archives[2], *left}
        assert [archive for archive in archives if archive.exists()] == left
        assert all(map(is_sound, left))
        assert [read_manifest(archive).reconstruction for archive in archives if archive.exists()] == ids[-len(left) :]
    assert [archive.read_bytes() for archive in archives] == [
        (tmp_path / "before" / archive.name).read_bytes() for archive in archives
    ]


def test_a_copy_that_needs_what_is_gone_takes_nobodys_place(store, run, tmp_path):
    archives = chain_in(store, run)
    (tmp_path / "before").mkdir()
    shutil.copy(archives[2], tmp_path / "before")
    merged(store, run, archives[1])
    rot(archives[2])
    outcomes = {outcome.archive: outcome.outcome for outcome in check(places([Asked(run), Asked(tmp_path / "before")]))}
    assert outcomes[str(archives[2])] == "damaged"
    assert read_manifest(archives[2]).carried == ["carried/0"]


def found(*paths: Path) -> dict[str, list[str]]:
    """Of each archive what a check of these says."""
    said: dict[str, list[str]] = {}
    for outcome in check(places([Asked(path) for path in paths])):
        said.setdefault(outcome.archive, []).append(outcome.outcome)
    return said


def copied(archive: Path, to: Path) -> Path:
    to.mkdir()
    shutil.copy(archive, to)
    return to


def test_what_says_nothing_any_more_heals_from_a_copy_whose_reference_is_there(store, run, tmp_path):
    archives = chain_in(store, run)
    before = copied(archives[2], tmp_path / "0before")
    merged(store, run, archives[1])
    whole, after = archives[2].read_bytes(), copied(archives[2], tmp_path / "1after")
    found(run)
    cut(archives[2])
    assert found(run, before)[str(archives[2])] == ["damaged"]  # that copy needs what nobody has
    assert found(run, before, after)[str(archives[2])] == ["healed"]
    assert archives[2].read_bytes() == whole
    assert is_sound(archives[2])
    cut(archives[2])
    archives[2].with_name("x.damaged").write_bytes(whole)
    assert found(run, before)[str(archives[2])] == ["healed"]
    assert archives[2].read_bytes() == whole


def test_what_needs_what_is_gone_heals_from_what_carries_it(store, run, tmp_path):
    archives = chain_in(store, run)
    before = copied(archives[2], tmp_path / "before")
    merged(store, run, archives[1])
    whole, after = archives[2].read_bytes(), copied(archives[2], tmp_path / "after")
    shutil.copy(before / archives[2].name, archives[2])
    assert found(run)[str(archives[2])] == ["whole", "missing"]
    assert found(run, after)[str(archives[2])] == ["whole", "healed"]
    assert archives[2].read_bytes() == whole
    assert found(run) == {str(archive): ["whole"] for archive in (archives[0], archives[2])}
    assert len(list(archives[2].parent.glob("*.damaged"))) == 1  # nothing is deleted


def test_what_carries_takes_nobodys_place_whose_reference_can_come_back(store, run, tmp_path):
    archives = chain_in(store, run)
    shutil.copytree(archives[0].parent, tmp_path / "before")
    merged(store, run, archives[1])
    after = copied(archives[2], tmp_path / "after")
    shutil.copy(tmp_path / "before" / archives[2].name, archives[2])
    said = found(run, after, tmp_path / "before")
    assert said[str(archives[1])] == ["healed"]
    assert "healed" not in said[str(archives[2])]
    assert all(map(is_sound, archives))


def test_a_copy_that_was_merged_on_another_day_heals(store, run, tmp_path):
    archives = chain_in(store, run)
    shutil.copytree(archives[0].parent, tmp_path / "before")
    merged(store, run, archives[1])
    other = copied(archives[2], tmp_path / "other")
    for archive in archives:
        shutil.copy(tmp_path / "before" / archive.name, archive)
    list(merge(store, Run(run, run), [archives[1]], day="2026-12-24", now=time.time(), roots=[run]))
    assert archives[2].read_bytes() != (other / archives[2].name).read_bytes()
    rot(archives[2])
    assert found(run, other)[str(archives[2])] == ["healed"]
    assert is_sound(archives[2])
    assert archives[2].read_bytes() == (other / archives[2].name).read_bytes()


@pytest.mark.parametrize("harm", [rot, cut])
def test_nothing_is_encoded_that_would_come_out_otherwise(store, run, monkeypatch, harm):
    """What a merged archive that loses was made against is damaged with it: its original heals nothing."""
    archives = chain_in(store, run)
    restore(archives[2], output=run / "step_60.pt")
    merged(store, run, archives[1])
    found(run)
    harm(archives[2])
    asked, real = [], healing.remake

    def remake(source, *rest, **options):
        asked.append(source)
        real(source, *rest, **options)

    monkeypatch.setattr(healing, "remake", remake)
    assert found(run)[str(archives[2])] == ["damaged"]
    assert asked == []


def test_what_carries_others_and_loses_nothing_is_made_anew(store, run):
    """Against what it needs as a whole: it yields the same, and carries nothing any more."""
    steps = [write_checkpoint(run / f"step_{step}.safetensors") for step in (1, 2, 3)]
    archives = [Path(ckzd.compress(step, preset="lossless").archive) for step in steps]
    yields = read_manifest(archives[2]).reconstruction
    steps[1].unlink()
    merged(store, run, archives[1])
    assert read_manifest(archives[2]).carried == ["carried/0"]
    rot(archives[2])
    assert found(run)[str(archives[2])] == ["healed"]
    assert is_sound(archives[2])
    assert read_manifest(archives[2]).reconstruction == yields


def test_a_merge_beside_a_deep_check_damages_nothing(store, run, monkeypatch, capsys):
    archives = chain_in(store, run)
    real = verifying.check_link

    def meanwhile(reader, *rest):
        own = real(reader, *rest)
        if reader.path == archives[1] and archives[1].exists():
            merged(store, run, archives[1])
        return own

    monkeypatch.setattr(verifying, "check_link", meanwhile)
    assert cli.run(["check", str(run), "--deep"]) == 0
    assert not archives[1].exists()
    assert cli.run(["merge", str(archives[0]), "--dry-run"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("number", [0, 1])
def test_a_merge_beside_verify_damages_nothing(store, run, monkeypatch, number):
    """One whose reference is decoded already, and one that is gone before it is."""
    archives = chain_in(store, run)
    real = verifying.decode_archive

    def meanwhile(reader, *rest):
        own = real(reader, *rest)
        if reader.path == archives[number] and archives[1].exists():
            merged(store, run, archives[1])
        return own

    monkeypatch.setattr(verifying, "decode_archive", meanwhile)
    assert ckzd.verify(archives[2]).files == 1
    assert not archives[1].exists()
