"""Chains: who needs whom, and what is found of damage, wherever it is."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from making import put, put_chain, sha256

from ckzd import chains
from ckzd.chains import (
    ArchiveRecord,
    chain,
    is_sound,
    is_whole,
    reference_of,
    require_sound,
    sound,
)
from ckzd.errors import CorruptArchive, MissingReference


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def body_bit(archive: Path) -> int:
    """A bit that only a reading of all bytes finds: the manifest says nothing of it."""
    return 8 * archive.read_bytes().index(b"firstsecond") + 3


def chain_of(archive: Path) -> list[Path]:
    return [link.path for link in chain(ArchiveRecord.read(archive))]


def path_of_reference(archive: Path) -> Path | None:
    reference = reference_of(ArchiveRecord.read(archive))
    return reference.path if reference is not None else None


class TestChain:
    def test_it_begins_with_the_base(self, run, store):
        archives = put_chain(store, run, 4)
        assert chain_of(archives[3]) == archives
        assert chain_of(archives[0]) == archives[:1]
        assert path_of_reference(archives[0]) is None
        assert path_of_reference(archives[2]) == archives[1]

    def test_a_missing_link_is_named(self, run, store):
        archives = put_chain(store, run, 4)
        archives[1].unlink()
        with pytest.raises(MissingReference) as caught:
            chain_of(archives[3])
        assert sha256(b"step_100.pt") in str(caught.value)
        assert caught.value.subject == str(archives[2])

    def test_a_copied_chain_needs_no_store_and_no_names(self, run, store, tmp_path):
        archives = put_chain(store, run, 3)
        folder = tmp_path / "usb"
        folder.mkdir()
        copies = [Path(shutil.copy(path, folder / f"{n}.ckz")) for n, path in zip("bca", archives, strict=True)]
        (folder / "step_1.pt.ckz").write_text("{}")  # a pointer
        (folder / "torn.ckz").write_bytes(b"PK\3\4")
        assert chain_of(copies[2]) == copies
        assert path_of_reference(copies[1]) == copies[0]

    def test_checkpoints_that_do_not_change_make_no_circle(self, run, store):
        base = put(store, run, 0, reconstruction="R0")
        first = put(store, run, 100, "R0", reconstruction="R")
        second = put(store, run, 200, "R", reconstruction="R", content="2")
        third = put(store, run, 300, "R", reconstruction="R", content="3")
        assert chain_of(third)[-1] == third
        assert chain_of(third)[:2] == [base, first]
        assert chain_of(second) == [base, first, second]
        assert store.references_for(run, 400, "step_400.pt", 1).own.path == third

    def test_of_two_with_one_reconstruction_the_sound_one_is_taken(self, run, store):
        base = put(store, run, 0)
        twin = put(store, run, 0, content="archived anew")
        first = put(store, run, 100, "step_0.pt")
        assert len({base, twin, first}) == 3
        for damaged, other in ((base, twin), (twin, base)):
            saved = damaged.read_bytes()
            flip(damaged, body_bit(damaged))
            assert chain_of(first) == [other, first]
            assert is_sound(first)
            damaged.write_bytes(saved)


class TestSound:
    def test_every_single_bit_of_a_chain_is_looked_at(self, run, store):
        archives = put_chain(store, run, 3)
        assert is_sound(archives[2])
        for archive in archives:
            saved = archive.read_bytes()
            for bit in range(0, 8 * len(saved), 1 if archive is archives[0] else 7):
                flip(archive, bit)
                assert not is_sound(archives[2]), f"bit {bit} of {archive.name}"
                archive.write_bytes(saved)
        assert is_sound(archives[2])

    def test_damage_is_damage_to_all_that_needs_it(self, run, store):
        archives = put_chain(store, run, 4)
        flip(archives[1], body_bit(archives[1]))
        assert [is_sound(archive) for archive in archives] == [True, False, False, False]
        assert [is_whole(archive) for archive in archives] == [True, False, True, True]
        assert sound(store.archives(run)) == {archives[0]}
        with pytest.raises(CorruptArchive) as caught:
            require_sound(archives[3])
        assert caught.value.subject == str(archives[1])
        assert store.damaged(run) == archives[1:]

    def test_what_is_missing_or_cannot_be_opened_counts_too(self, run, store):
        archives = put_chain(store, run, 3)
        archives[0].write_bytes(archives[0].read_bytes()[:-1])
        assert store.damaged(run) == archives
        archives[0].unlink()
        assert store.damaged(run) == archives[1:]
        with pytest.raises(MissingReference):
            require_sound(archives[2])

    def test_a_sector_that_the_disk_cannot_read_is_damage(self, run, store, monkeypatch):
        (archive,) = put_chain(store, run, 1)
        real = os.pread

        def pread(descriptor, nbytes, offset):
            if offset == 0:
                raise OSError(errno.EIO, "input/output error")
            return real(descriptor, nbytes, offset)

        monkeypatch.setattr(os, "pread", pread)
        with pytest.raises(CorruptArchive, match="cannot be read from the disk"):
            require_sound(archive)

    def test_a_link_is_read_once_unless_it_changes_or_a_day_has_passed(self, run, store, monkeypatch):
        archives = put_chain(store, run, 3)
        read, now = [], [0.0]
        real = chains.ArchiveReader.check
        monkeypatch.setattr(chains.ArchiveReader, "check", lambda self: (read.append(self.path), real(self)))
        monkeypatch.setattr(chains.time, "monotonic", lambda: now[0])
        for archive in (*archives, archives[2]):
            require_sound(archive)
        assert read == archives
        read.clear()
        times, bit = archives[1].stat(), body_bit(archives[1])
        flip(archives[1], bit)
        os.utime(archives[1], ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time say that nothing happened
        assert not is_sound(archives[2])
        assert not is_sound(archives[2])  # damage is not remembered: it may be mended
        assert read == [archives[1], archives[1]]
        flip(archives[1], bit)
        read.clear()
        now[0] += chains.READ_AGAIN_SECONDS
        require_sound(archives[2])
        assert read == archives


def test_what_has_not_changed_is_not_opened_again(run, store, monkeypatch):
    """A run's archives are listed ten times for each new one: of a thousand that was most of what it took."""
    archives = put_chain(store, run, 3)
    opened: list[Path] = []
    read = ArchiveRecord.read
    monkeypatch.setattr(ArchiveRecord, "read", lambda path: opened.append(path) or read(path))
    assert [record.path for record in store.archives(run)] == archives
    assert [record.path for record in store.archives(run)] == archives
    assert sorted(opened) == archives
    archives[1].write_bytes(archives[1].read_bytes()[:-9])
    archives[2].unlink()
    archives.append(put(store, run, 400))
    opened.clear()
    assert [record.path for record in store.archives(run)] == [archives[0], archives[3]]
    assert sorted(opened) == [archives[1], archives[3]]
