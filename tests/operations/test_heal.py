"""Archives that are made anew, exactly as they were, from what they were made of: in its place, the trash, a copy."""

import shutil
from pathlib import Path

import pytest
from codec.test_budget import saved_run
from serving import write_checkpoint

import ckzd
from ckzd.archive import ArchiveReader
from ckzd.chains import is_sound
from ckzd.errors import VerificationFailed
from ckzd.operations import verify as verifying
from ckzd.operations.check import Options, check
from ckzd.operations.places import Asked, places
from ckzd.operations.pointer import pointer_for
from ckzd.operations.replace import replace
from ckzd.store import Store

STEPS = (1, 2, 3)


@pytest.fixture(scope="module")
def archived(tmp_path_factory) -> Path:
    """A run of three, with last.pt a copy of the first, and their store; to be copied."""
    place = tmp_path_factory.mktemp("archived")
    for step in STEPS:
        ckzd.compress(write_checkpoint(place / "run" / f"step_{step}.safetensors"), preset="lossless")
    shutil.copy2(place / "run" / "step_1.safetensors", place / "run" / "last.safetensors")
    return place


class Run:
    """A copy of it."""

    def __init__(self, archived: Path, place: Path) -> None:
        shutil.copytree(archived, place)
        self.path, self.store = place / "run", Store.open(place / ".ckzd")
        self.archives = sorted(self.store.run_directory(self.path).glob("*.ckz"))
        self.bytes = [archive.read_bytes() for archive in self.archives]
        self.checkpoints = [self.path / f"step_{step}.safetensors" for step in STEPS]

    def checked(self, **options) -> dict[str, str]:
        outcomes = check(places([Asked(self.path)]), Options(**options))
        return {Path(o.archive).name.split(".")[0]: o.healed_from or o.outcome for o in outcomes}

    def is_as_it_was(self) -> bool:
        return [archive.read_bytes() for archive in self.archives] == self.bytes and all(map(is_sound, self.archives))


@pytest.fixture
def run(archived, tmp_path) -> Run:
    return Run(archived, tmp_path / "place")


def rot(archive: Path) -> None:
    with ArchiveReader(archive) as reader:
        offset = reader._members[reader.entries()[0]].data_offset
    data = bytearray(archive.read_bytes())
    data[offset + 1] ^= 1
    archive.write_bytes(data)


def cut(archive: Path) -> None:
    archive.write_bytes(b"")


@pytest.mark.parametrize("harm", [rot, cut])
def test_from_originals_in_their_place_bases_first(run, harm):
    (run.path / "last.safetensors").unlink()
    run.checked()  # from now on it is known how they were made
    for archive in run.archives[:2]:
        harm(archive)
    found = run.checked()
    assert {found[f"step_{step}"].partition(" /")[0] for step in (1, 2)} == {"the original"}
    assert run.is_as_it_was()
    assert len(list(run.archives[0].parent.glob("*.damaged"))) == 2
    assert list(run.store.tmp.iterdir()) == []


def test_what_was_cut_before_it_was_ever_checked_is_made_as_its_neighbours_were(run):
    cut(run.archives[1])
    assert run.checked()["step_2"].startswith("the original")
    assert run.is_as_it_was()


def test_from_originals_in_the_trash_which_stay_there(run):
    for checkpoint, archive in zip(run.checkpoints, run.archives, strict=True):
        replace(checkpoint, archive, run.store)
    (run.path / "last.safetensors").unlink()
    rot(run.archives[1])
    assert run.checked()["step_2"].startswith("the original in the trash")
    assert run.is_as_it_was()
    assert pointer_for(run.checkpoints[1]).exists()
    assert not run.checkpoints[1].exists()


def test_from_a_copy_of_the_original_under_another_name(run):
    run.checkpoints[0].unlink()
    rot(run.archives[0])
    assert run.checked()["step_1"].startswith("a copy of the original")
    assert run.is_as_it_was()


@pytest.mark.parametrize("effort", ["best", "fast"])
def test_what_loses_is_made_anew_bit_for_bit(tmp_path, effort):
    """With another cache, or none: the base, and the delta against what it yields."""
    (tmp_path / "run").mkdir()
    checkpoints = saved_run(tmp_path / "run", lambda *_: None, weights=2)
    archives = [Path(ckzd.compress(checkpoint, effort=effort).archive) for checkpoint in checkpoints]
    before = [archive.read_bytes() for archive in archives]
    for archive in archives:
        rot(archive)
    for cached in (tmp_path / ".ckzd" / "cache").iterdir():
        cached.unlink()
    outcomes = [outcome.outcome for outcome in check(places([Asked(tmp_path / "run")]))]
    assert outcomes == ["healed", "healed"]
    assert [archive.read_bytes() for archive in archives] == before


def test_an_original_that_was_written_anew_heals_nothing(run):
    (run.path / "last.safetensors").unlink()
    write_checkpoint(run.checkpoints[0], "something else")
    rot(run.archives[0])
    assert run.checked() == {"step_1": "damaged", "step_2": "whole", "step_3": "whole"}


def test_deep_decodes_and_finds_what_checksums_do_not(run, monkeypatch):
    assert run.checked(deep=True) == dict.fromkeys(("step_1", "step_2", "step_3"), "whole")
    real = verifying.check_link

    def look(reader, *rest):
        if reader.path == run.archives[1]:
            raise VerificationFailed(reader.path, "decodes to another sha256")
        return real(reader, *rest)

    monkeypatch.setattr(verifying, "check_link", look)
    assert run.checked(deep=True) == {"step_1": "whole", "step_2": "damaged", "step_3": "whole"}
    monkeypatch.undo()
    assert run.checked()["step_2"] == "damaged"  # reading alone does not take it back
    assert run.checked(deep=True)["step_2"] == "whole"


def test_deep_names_what_is_damaged_and_heals_it(run):
    rot(run.archives[0])
    found = run.checked(deep=True)
    assert found["step_1"].startswith("the original")
    assert run.is_as_it_was()
