"""Moments are dropped without coding anything again: weights stay, dependents too, and what is left says so."""

import hashlib
import shutil
import time
from pathlib import Path

import pytest
from making import store_archive
from plain_decoder import PlainArchive
from serving import write_checkpoint

import ckzd
from ckzd.archive import ArchiveReader
from ckzd.archive.dropping import may_drop_moments, moment_bytes
from ckzd.archive.manifest import is_of_moments
from ckzd.chains import ArchiveRecord, is_sound, read_manifest
from ckzd.errors import ConfigError, CorruptArchive
from ckzd.operations.check import check
from ckzd.operations.heal import Copies, Patient, heal
from ckzd.operations.places import Asked, places
from ckzd.operations.prune import Run, prune
from ckzd.operations.replace import replace
from ckzd.operations.restore import restore
from ckzd.operations.slim import drop_moments
from ckzd.operations.writing import publish
from ckzd.retention import Rules
from ckzd.store import Store

GOLDEN = Path(__file__).parent.parent / "golden" / "format_8"
DAY = "2026-11-30"


@pytest.fixture(params=["resume", "paper"])
def archives(request, store, run) -> list[Path]:
    """A real chain with moments, base first."""
    place = store.archive_path(run, "x", "0" * 64).parent
    found = [Path(shutil.copy(path, place / path.name)) for path in sorted((GOLDEN / request.param).glob("*.ckz"))]
    return sorted(found, key=lambda path: read_manifest(path).depth)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights_of(archive: Path, out: Path) -> str:
    out.unlink(missing_ok=True)
    restore(archive, output=out, weights_only=True)
    return digest(out)


def test_weights_and_all_that_hangs_on_them_stay(archives, tmp_path):
    base, *later = archives
    whole, size, weights = read_manifest(base), base.stat().st_size, weights_of(base, tmp_path / "w")
    status = base.stat()
    assert may_drop_moments(whole)
    drop_moments(Store.open(base.parents[2]), base, DAY)
    left = read_manifest(base)
    assert size - base.stat().st_size >= moment_bytes(whole) > 0
    assert (left.moments_dropped, left.reconstruction, left.restored) == (DAY, whole.reconstruction, whole.restored)
    assert set(left.parts) == set(whole.parts) - {"first_moment", "second_moment"}
    assert (base.stat().st_mode, base.stat().st_mtime_ns) == (status.st_mode, status.st_mtime_ns)
    assert weights_of(base, tmp_path / "w") == weights
    assert not may_drop_moments(left)
    assert all(map(is_sound, archives))
    for archive in later:
        out = tmp_path / archive.name
        restore(archive, output=out)
        assert digest(out) == read_manifest(archive).files[0].sha256
    assert [report.ok for report in map(ckzd.verify, archives)] == [True] * len(archives)
    assert ckzd.verify(base).files == 0
    assert ckzd.inspect(base)["moments_dropped"] == DAY
    assert PlainArchive(base, None).manifest["moments_dropped"] == DAY


def test_a_whole_restore_says_since_when(archives, tmp_path):
    drop_moments(Store.open(archives[-1].parents[2]), archives[-1], DAY)
    with pytest.raises(ConfigError, match=f"weights alone since {DAY}") as caught:
        restore(archives[-1], output=tmp_path / "out")
    assert "--weights-only" in caught.value.hint
    assert not (tmp_path / "out").exists()
    restore(archives[-1], output=tmp_path / "out", weights_only=True)


def test_what_is_damaged_stays_as_it_is(archives):
    store, archive = Store.open(archives[0].parents[2]), archives[0]
    data = bytearray(archive.read_bytes())
    with ArchiveReader(archive) as reader:
        first = reader._members[reader.entries()[0]]
    data[first.data_offset] ^= 1
    archive.write_bytes(data)
    with pytest.raises(CorruptArchive):
        drop_moments(store, archive, DAY)
    assert archive.read_bytes() == data
    assert list(store.tmp.iterdir()) == []


def test_what_came_out_otherwise_takes_no_ones_place(archives, monkeypatch):
    more = lambda entry: is_of_moments(entry) or entry == "skeleton"  # noqa: E731
    monkeypatch.setattr("ckzd.archive.dropping.is_of_moments", more)
    store, before = Store.open(archives[0].parents[2]), digest(archives[0])
    with pytest.raises(CorruptArchive):
        drop_moments(store, archives[0], DAY)
    assert digest(archives[0]) == before
    assert list(store.tmp.iterdir()) == []


def test_an_original_is_never_replaced_by_weights_alone(store, run):
    checkpoint = run / "step_1.pt"
    checkpoint.write_bytes(b"x" * 100)
    archive = store_archive(store, checkpoint, step=1, moments_dropped=DAY)
    with pytest.raises(ConfigError, match="weights alone"):
        replace(checkpoint, archive, store)
    manifest = read_manifest(archive)
    assert store.find_by_checkpoint(run, manifest.checkpoint) is None
    assert store.find_by_content(run, "step_1.pt", manifest.files[0].sha256) is None


def test_all_of_a_checkpoint_takes_the_place_of_its_weights_alone(archives):
    slim = archives[-1]
    store, whole = Store.open(slim.parents[2]), slim.read_bytes()
    drop_moments(store, slim, DAY)
    temp = store.new_temp(".ckz")
    temp.write_bytes(whole)
    assert publish(temp, slim, store)
    assert slim.read_bytes() == whole


def test_weights_alone_heal_nothing_that_may_have_given_more(archives):
    """Both yield the same, and under one name: a damaged one that cannot say what it was may have had moments."""
    damaged = archives[-1]
    store = Store.open(damaged.parents[2])
    (copies := store.root.parent / "copies").mkdir()
    slim = Path(shutil.copy(damaged, copies))
    drop_moments(store, slim, DAY)
    patient = Patient(damaged, store, None, None, None, read_manifest(slim).reconstruction)
    damaged.write_bytes(b"PK")
    assert heal(patient, Copies((slim.parent,))) is None
    assert damaged.read_bytes() == b"PK"


@pytest.mark.parametrize("lies", ["elsewhere", "aside"])
def test_a_backup_from_before_heals_weights_alone(archives, store, run, lies):
    """What is brought back is what was damaged, and no more."""
    slim = archives[-1]
    (copies := store.root.parent / "copies").mkdir()
    backup = Path(shutil.copy(slim, copies if lies == "elsewhere" else slim.with_name("x.damaged")))
    whole = digest(backup)
    drop_moments(store, slim, DAY)
    was = slim.read_bytes()
    data = bytearray(was)
    with ArchiveReader(slim) as reader:
        data[reader._members[reader.entries()[0]].data_offset + 1] ^= 1
    slim.write_bytes(data)
    asked = [Asked(run), *([Asked(copies)] if lies == "elsewhere" else [])]
    outcomes = list(check(places(asked)))
    assert [o.healed_from for o in outcomes if o.outcome == "healed"] == [f"the copy {backup}"]
    assert slim.read_bytes() == was
    assert digest(backup) == whole
    assert {outcome.outcome for outcome in check(places([Asked(run)]))} == {"whole"}


def test_one_that_cannot_be_rewritten_stops_no_other(archives, store, run):
    rotten = archives[0]
    data = bytearray(rotten.read_bytes())
    with ArchiveReader(rotten) as reader:
        data[reader._members[reader.entries()[0]].data_offset + 1] ^= 1
    rotten.write_bytes(data)
    write_checkpoint(run / "other_9.safetensors")  # the run is in sight
    report = prune(store, [Run(run, run.parent, Rules(moments=1))], roots=[run.parent], now=time.time())
    dropped = {judged.archive for judged in report.judged if judged.drops_moments}
    assert str(rotten) not in dropped
    assert dropped == {str(path) for path in archives if read_manifest(path).moments_dropped is not None}


def test_pruning_drops_those_beyond_the_newest(archives, store, run):
    write_checkpoint(run / "other_9.safetensors")  # the run is in sight

    def pruned(**options):
        return prune(store, [Run(run, run.parent, Rules(moments=1))], roots=[run.parent], now=1.8e9, **options)

    told = pruned(dry_run=True)
    report = pruned()
    assert told.judged == report.judged
    assert [judged.drops_moments for judged in report.judged] == [True] * (len(archives) - 1) + [False]
    assert report.freed_bytes > 0
    slimmed = [ArchiveRecord.read(archive).manifest.moments_dropped for archive in archives]
    assert slimmed == ["2027-01-15"] * (len(archives) - 1) + [None]
    assert not any(judged.drops_moments for judged in pruned().judged)
