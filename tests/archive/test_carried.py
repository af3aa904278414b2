"""Archives in an archive: they come out whole, each is what the next one needs, and nothing else is believed."""

import io
import subprocess
import time
from pathlib import Path

import pytest
from making import archive_bytes, made_manifest, sha256

from ckzd.archive import ArchiveReader, ArchiveWriter, Manifest
from ckzd.archive import manifest as module
from ckzd.archive.manifest import MAX_CARRIED, EntryModel
from ckzd.errors import CorruptArchive

DAY = "2026-11-30"


def link(number: int, **changes) -> Manifest:
    """Of a chain whose reconstructions are called after their numbers; `changes` are for whoever carries others."""
    reference = sha256(str(number - 1).encode()) if number else None
    plain = made_manifest(
        reconstruction=sha256(str(number).encode()), reference=reference, depth=number, moments_dropped=DAY
    )
    return plain.model_copy(update=changes)


def carrying(place: Path, carried: list[bytes], manifest: Manifest) -> Path:
    """An archive with those in front of its own entries."""
    archive = place / "carrying.ckz"
    with archive.open("wb") as file:
        writer = ArchiveWriter(file)
        for number, data in enumerate(carried):
            inner = place / f"{number}.ckz"
            inner.write_bytes(data)
            with ArchiveReader(inner) as reader:
                writer.carry(reader)
        writer.add("index", b"the index")
        writer.finish(manifest)
    return archive


def chain_of(count: int) -> list[bytes]:
    return [archive_bytes(link(number)) for number in range(count)]


def carried_by(archive: Path) -> list[Manifest]:
    with ArchiveReader(archive) as reader:
        return [inner.manifest for inner in reader.carried()]


def test_what_is_carried_comes_out_in_order(tmp_path):
    archive = carrying(tmp_path, chain_of(3), link(3, reference=None, moments_dropped=None))
    with ArchiveReader(archive) as reader:
        reader.check()
        links = [(each.manifest.depth, each.read("index"), b"".join(each.chunks())) for each in reader.links()]
    assert [depth for depth, _, _ in links] == [0, 1, 2, 3]
    assert {index for _, index, _ in links} == {b"the index"}
    assert [data for _, _, data in links] == [*chain_of(3), archive.read_bytes()]


def test_unzip_makes_an_archive_of_its_own_of_it(tmp_path):
    archive = carrying(tmp_path, chain_of(2), link(2, reference=None))
    for number, expected in enumerate(chain_of(2)):
        unzipped = subprocess.run(["unzip", "-p", archive, f"carried/{number}"], capture_output=True, check=True)
        assert unzipped.stdout == expected


def test_every_flipped_byte_is_found(tmp_path):
    archive = carrying(tmp_path, chain_of(2), link(2, reference=None))
    whole = archive.read_bytes()
    for position in range(0, len(whole), 7):
        archive.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(CorruptArchive), ArchiveReader(archive) as reader:
            reader.check()


@pytest.mark.parametrize(
    ("carried", "changes", "problem"),
    [
        ([link(0)] * 2, {"reference": None}, "is not a delta against what comes before it"),
        ([link(1), link(0)], {}, "is not a delta against what comes before it"),
        ([link(0)], {"reference": sha256(b"another")}, "is not a delta against what comes before it"),
        ([link(1, depth=5)], {"reference": sha256(b"0"), "depth": 5}, "is not a delta against what comes before it"),
        ([link(0, moments_dropped=None)], {"reference": None}, "is not weights alone"),
    ],
)
def test_what_does_not_follow_is_refused(tmp_path, carried, changes, problem):
    archive = carrying(tmp_path, list(map(archive_bytes, carried)), link(3, **changes))
    with pytest.raises(CorruptArchive, match=problem):
        carried_by(archive)


def test_nothing_is_nested(tmp_path):
    """However deep: the first that carries one is refused."""
    inner = archive_bytes(link(0))
    for number in range(1, 40):
        inner = carrying(tmp_path, [inner], link(number, reference=None)).read_bytes()
    archive = carrying(tmp_path, [inner], link(40, reference=None))
    with pytest.raises(CorruptArchive, match="is not weights alone"):
        carried_by(archive)


def test_thousands_are_refused_when_the_archive_is_opened(tmp_path, monkeypatch):
    file, base = io.BytesIO(), tmp_path / "base.ckz"
    base.write_bytes(archive_bytes(link(0)))
    writer = ArchiveWriter(file)
    with ArchiveReader(base) as reader:
        for _ in range(5000):
            writer.carry(reader)
    with monkeypatch.context() as lenient:
        lenient.setattr(module, "MAX_CARRIED", 5000)
        writer.finish(link(5000, reference=None))
    archive = tmp_path / "a.ckz"
    archive.write_bytes(file.getvalue())
    began = time.process_time()
    with pytest.raises(CorruptArchive, match=f"at most {MAX_CARRIED}"):
        ArchiveReader(archive)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("names", "changes", "problem"),
    [
        (["carried/1"], {}, "does not stand first, in order"),
        (["index", "carried/0"], {}, "does not stand first, in order"),
        (["carried/0"], {"format": 7}, "since format 8"),
        (["carried/0", "carried/1"], {"depth": 1}, "depth is less"),
        (["carried/0"], {"reference": sha256(b"0"), "depth": 1}, "depth is less"),
    ],
)
def test_a_manifest_must_agree_with_what_is_carried(names, changes, problem):
    entries = [EntryModel(name=name, nbytes=3, sha256=sha256(b"abc")) for name in names]
    with pytest.raises(ValueError, match=problem):
        made_manifest(**{"entries": entries, "reference": None, "depth": 2} | changes)
