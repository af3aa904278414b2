"""An archive that a check heals is never lost on the way, whatever ends the check; and the next one finishes it.

As in test_replace_crashes: the victim is killed before the first call that changes the disk, the second, ... until it
gets through, or such a call fails. Here a copy heals; campaign.py strikes at every system call, and where archives are
made anew.
"""

import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from making import put_chain
from on_disk import unnamed

from ckzd.chains import is_sound, is_whole
from ckzd.operations.check import check
from ckzd.operations.places import Asked, places
from ckzd.store import Store


@dataclass
class Scene:
    """A chain of three whose second archive has rotted, or is gone, and copies of all of them."""

    root: Path
    harm: str
    archives: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        self.run, self.copies = self.root / "run", self.root / "copies"
        self.run.mkdir(parents=True)
        self.store = Store.open_or_create(self.root / ".ckzd")
        self.archives = put_chain(self.store, self.run, 3)
        shutil.copytree(self.archives[0].parent, self.copies)
        self.contents = [archive.read_bytes() for archive in self.archives]
        if self.harm == "rot":
            self.archives[1].write_bytes(self.contents[1].replace(b"first", b"fIrst"))
        else:
            self.archives[1].unlink()

    def order(self, victim, *, no_flags: bool, **fields) -> dict:
        return victim(
            do="check", store=self.store.root, paths=[str(self.run), str(self.copies)], no_flags=no_flags, **fields
        )

    def assert_nothing_is_lost(self) -> None:
        """What was whole is whole still, and what was damaged is somewhere; all has a name that DESIGN.md knows."""
        assert unnamed({"STORE": self.store.root, "RUN": self.run}) == []
        for archive in (self.archives[0], self.archives[2], *self.copies.glob("*.ckz")):
            assert is_whole(archive)
        if self.harm == "rot":
            aside = self.archives[1].parent.glob("*.damaged")
            assert any(b"fIrst" in path.read_bytes() for path in (self.archives[1], *aside) if path.exists())

    def assert_two_more_heal_all(self) -> None:
        for _ in range(2):
            outcomes = [outcome.outcome for outcome in check(places([Asked(self.run), Asked(self.copies)]))]
        assert outcomes == ["whole"] * 6
        assert [archive.read_bytes() for archive in self.archives] == self.contents
        assert all(map(is_sound, self.archives))
        assert list(self.store.tmp.iterdir()) == []
        assert not list(self.store.root.glob(".ckzd-*"))
        self.assert_nothing_is_lost()


@pytest.mark.parametrize("no_flags", [False, True], ids=["exchange", "no exchange"])
@pytest.mark.parametrize("harm", ["rot", "gone"])
@pytest.mark.parametrize("blow", ["kill", "EIO", "ENOSPC"])
def test_at_every_instant(victim, place, blow, harm, no_flags):
    struck = 0
    for instant in itertools.count(1):
        scene = Scene(place / str(instant), harm)
        order = {"die_at": instant} if blow == "kill" else {"fail_at": instant, "error": blow}
        answer = scene.order(victim, no_flags=no_flags, **order)
        scene.assert_nothing_is_lost()
        scene.assert_two_more_heal_all()
        if not answer["killed"] and answer.get("calls", instant) < instant:
            break
        struck += 1
        shutil.rmtree(scene.root)
    assert struck >= 8
