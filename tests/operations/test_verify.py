"""What is verified, how often each link is decoded, and that no cache is believed."""

import shutil
from pathlib import Path

import pytest
from serving import write_checkpoint

import ckzd
from ckzd.archive import ArchiveReader
from ckzd.errors import CkzdError, CorruptArchive, MissingReference
from ckzd.operations import reconstruct
from ckzd.operations import verify as verifying
from ckzd.operations.replace import replace
from ckzd.operations.verify import verify_each
from ckzd.store import Store

STEPS = range(1, 6)


@pytest.fixture(scope="module")
def archived(tmp_path_factory) -> Path:
    """Two runs with their store, to be copied: a chain of five, one base alone."""
    place = tmp_path_factory.mktemp("archived")
    for step in STEPS:
        ckzd.compress(write_checkpoint(place / "a" / f"step_{step}.safetensors"), preset="lossless")
    ckzd.compress(write_checkpoint(place / "b" / "step_1.safetensors"), preset="lossless")
    return place


@pytest.fixture
def place(archived, tmp_path) -> Path:
    shutil.copytree(archived, tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the archives as they are decoded."""
    seen = []
    real = reconstruct.decode_archive

    def watched(reader, *rest):
        seen.append(reader.path.name[:6])
        return real(reader, *rest)

    monkeypatch.setattr(verifying, "decode_archive", watched)
    return seen


def archives_of(place: Path, run: str = "a") -> list[Path]:
    return sorted(Store.open(place / ".ckzd").run_directory(place / run).glob("*.ckz"))


def rot(archive: Path, entry: int = 0) -> None:
    with ArchiveReader(archive) as reader:
        offset = reader._members[reader.entries()[entry]].data_offset
    data = bytearray(archive.read_bytes())
    data[offset + 1] ^= 1
    archive.write_bytes(data)


def test_each_link_is_decoded_once_whatever_is_asked_for(place, decoded):
    archives = archives_of(place)
    reports = list(verify_each(archives[::-1]))
    assert [Path(report.archive) for report in reports] == archives
    assert decoded == [f"step_{step}" for step in STEPS]
    decoded.clear()
    assert [Path(report.archive) for report in verify_each([archives[3], archives[1]])] == [archives[1], archives[3]]
    assert decoded == [f"step_{step}" for step in (1, 2, 3, 4)]


def test_a_cached_reconstruction_proves_nothing(place):
    archives = archives_of(place)
    with ArchiveReader(archives[3]) as reader:
        cached = Store.open(place / ".ckzd").cache_path(reader.manifest.reconstruction)
    ckzd.verify(archives[4])
    assert [path.stem for path in cached.parent.iterdir()] != []
    rot(archives[0])
    with pytest.raises(CorruptArchive) as caught:
        ckzd.verify(archives[4])
    assert caught.value.subject == str(archives[4])
    assert archives[0].name in caught.value.problem


def test_damage_is_told_of_it_and_of_all_that_needs_it(place):
    archives = archives_of(place)
    rot(archives[2])
    outcomes = list(verify_each([place / "a"]))
    assert [isinstance(outcome, CkzdError) for outcome in outcomes] == [False, False, True, True, True]
    assert {outcome.subject for outcome in outcomes[2:]} == set(map(str, archives[2:]))
    assert all(isinstance(outcome, CorruptArchive) for outcome in outcomes[2:])


def test_damage_to_what_only_its_own_restore_reads_is_its_own(place, monkeypatch):
    """As a moment that no dependent needs."""
    archives = archives_of(place)
    real = verifying.check_link

    def check(reader, *rest):
        if reader.path == archives[1]:
            raise CorruptArchive(reader.path, "entry 'first_moment/0': sha256")
        return real(reader, *rest)

    monkeypatch.setattr(verifying, "check_link", check)
    assert [isinstance(outcome, CkzdError) for outcome in verify_each(archives)] == [False, True, False, False, False]


def test_a_missing_link_is_named(place):
    archives = archives_of(place)
    archives[1].unlink()
    outcomes = list(verify_each(archives[::2]))
    assert [type(outcome) for outcome in outcomes[:2]] == [MissingReference, MissingReference]
    assert outcomes[2].ok


def test_what_a_user_may_name(place, tmp_path):
    archives, other = archives_of(place), archives_of(place, "b")
    replace(place / "a" / "step_2.safetensors", archives[1], Store.open(place / ".ckzd"))
    folder = tmp_path / "copies"
    shutil.copytree(archives[0].parent, folder)

    def verified(*paths: Path) -> list[Path]:
        return [Path(outcome.archive) for outcome in verify_each(paths)]

    assert verified(place / "a") == archives
    assert sorted(verified(place / ".ckzd")) == sorted(archives + other)
    assert sorted(verified(place)) == sorted(archives + other)
    assert verified(folder) == sorted(folder.glob("*.ckz"))
    assert verified(place / "a" / "step_2.safetensors", archives[1]) == [archives[1]]


def test_a_pointer_without_an_archive_and_what_is_nothing_are_errors(place, tmp_path):
    archives = archives_of(place)
    run = tmp_path / "elsewhere"
    run.mkdir()
    replace(place / "a" / "step_2.safetensors", archives[1], Store.open(place / ".ckzd"))
    shutil.copy(place / "a" / "step_2.safetensors.ckz", run)
    archives[1].rename(tmp_path / "gone")
    outcomes = list(verify_each([run, tmp_path / "nothing", archives[0]]))
    assert [isinstance(outcome, CkzdError) for outcome in outcomes] == [True, True, False]


def test_an_unreadable_archive_is_corrupt_not_left_out(place):
    archives = archives_of(place)
    archives[4].write_bytes(archives[4].read_bytes()[:-7])
    outcomes = list(verify_each([place / "a"]))
    assert [type(outcome) for outcome in outcomes if isinstance(outcome, CkzdError)] == [CorruptArchive]
    assert len(outcomes) == 5


def test_branches_are_all_decoded_and_nothing_is_left_open(place, decoded):
    """With a stride of three, the base has several dependents."""
    run = place / "c"
    for step in range(1, 8):
        ckzd.compress(write_checkpoint(run / f"step_{step}.safetensors"), preset="lossless", stride=3)
    assert len(list(verify_each([run]))) == 7
    assert sorted(decoded) == [f"step_{step}" for step in range(1, 8)]
    assert list((place / ".ckzd" / "tmp").iterdir()) == []


def test_what_is_not_published_yet_is_of_its_store(tmp_path):
    """So what a proof writes is on the store's disk, not in the system's temporary directory."""
    store = Store.open_or_create(tmp_path / "store")
    assert reconstruct.store_of(store.new_temp(".ckz")).root == store.root
    assert reconstruct.store_of(store.root / "archives" / "run" / "x.ckz").root == store.root
    assert reconstruct.store_of(tmp_path / "x" / "y.ckz") is None
