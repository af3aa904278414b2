"""The .ckz file: bytes under names, one manifest, no byte that is free to be wrong.

`ArchiveWriter` writes front to back and never seeks. `ArchiveReader` believes nothing: opening compares the end
records, the central directory and the manifest with what a writer would have produced; `read` and `stream` compare
the entry's header, CRC and sha256; `check` does so for all entries. So every byte of the file is compared somewhere.

An archive may carry others, each whole in an entry: links of its chain that are no files any more. They are read where
they lie, and carry none themselves.
"""

import hashlib
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from ckzd.archive.manifest import CARRIED, EntryModel, Manifest, NewerFormat, is_of_moments
from ckzd.archive.records import (
    End,
    Member,
    central_header,
    end_records,
    local_header,
    parse_directory,
    parse_end,
)
from ckzd.errors import ConfigError, CorruptArchive, UnknownFormat
from ckzd.pace import took
from ckzd.streams import StreamRef
from ckzd.zip_structs import MAX_END_BYTES

MANIFEST = "manifest.json"
OWN_ENTRY_BYTES = 64 * 1024  # streams from here on have an entry of their own: readable alone, 0.3 % of overhead
PACK_BYTES = 4 * 1024 * 1024  # a full pack is written out, so that neither side ever holds more of them than this
CACHED_PACKS = 4  # verified packs that a reader keeps: streams are read in turn from a few kinds
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_DIRECTORY_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024

_KIND = re.compile(r"[a-z][a-z0-9_]*")
_ENTRY = re.compile(r"[a-z][a-z0-9_]*(/[0-9]+)?|manifest\.json")


@dataclass(slots=True)
class _Pack:
    entry: str
    data: bytearray


def weights_alone(archive: Path, day: str) -> ConfigError:
    """What is to be said to whoever wants more of an archive whose moments were dropped that day."""
    problem = f"holds weights alone since {day}: its optimizer's moments were dropped"
    return ConfigError(archive, problem, hint="add --weights-only -o FILE, or restore a younger checkpoint")


class ArchiveWriter:
    """Write an archive to `file` from its position 0 on. The same calls give the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members: list[Member] = []
        self._entries: list[EntryModel] = []
        self._packs: dict[str, _Pack] = {}  # open pack of each kind
        self._numbers: dict[str, int] = {}  # next running number of each kind; a name that `add` took is here too

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return self._members[-1].end if self._members else 0

    def put(self, kind: str, data: bytes | memoryview) -> StreamRef:
        """Store one stream in an entry "<kind>/<number>": 64 KiB and more in its own, less in one with others."""
        assert _KIND.fullmatch(kind), f"stream kind {kind!r}"
        if len(data) >= OWN_ENTRY_BYTES:
            entry = self._numbered(kind)
            self._write_entry(entry, data)
            return StreamRef(entry, 0, len(data))
        pack = self._packs.get(kind)
        if pack is None:
            pack = self._packs[kind] = _Pack(self._numbered(kind), bytearray())
        ref = StreamRef(pack.entry, len(pack.data), len(data))
        pack.data += data
        if len(pack.data) >= PACK_BYTES:
            self._write_pack(self._packs.pop(kind))
        return ref

    def add(self, entry: str, data: bytes | memoryview) -> None:
        """Store one entry under its own name."""
        assert _KIND.fullmatch(entry), f"entry {entry!r}"
        assert entry not in self._numbers, f"two entries are named {entry!r}"
        self._numbers[entry] = 0
        self._write_entry(entry, data)

    def copy(self, archive: "ArchiveReader", entry: EntryModel) -> None:
        """Store one entry of another archive, of any size. Raises CorruptArchive if it turns out to be damaged."""
        self._write_pieces(entry, archive.crc(entry.name), archive.pieces(entry.name))

    def carry(self, archive: "ArchiveReader") -> None:
        """Store an archive whole, in an entry of its own. It is read twice."""
        crc, digest = 0, hashlib.sha256()
        for chunk in archive.chunks():
            crc = zlib.crc32(chunk, crc)
            digest.update(chunk)
        entry = EntryModel(name=self._numbered(CARRIED), nbytes=archive.nbytes, sha256=digest.hexdigest())
        self._write_pieces(entry, crc, archive.chunks())

    def finish(self, manifest: Manifest) -> Manifest:
        """Write what is left, the manifest (its `entries` filled in) and the central directory; return the manifest."""
        for pack in self._packs.values():
            self._write_pack(pack)
        full = Manifest.model_validate({**manifest.model_dump(), "entries": self._entries})
        self._write_member(MANIFEST, full.to_json())
        directory = b"".join(central_header(member) for member in self._members)
        self._file.write(directory)
        self._file.write(end_records(End(len(self._members), len(directory), self.nbytes)))
        return full

    def _numbered(self, kind: str) -> str:
        number = self._numbers.get(kind, 0)
        self._numbers[kind] = number + 1
        return f"{kind}/{number}"

    def _write_pack(self, pack: _Pack) -> None:
        self._write_entry(pack.entry, bytes(pack.data))

    def _write_entry(self, entry: str, data: bytes | memoryview) -> None:
        self._write_member(entry, data)
        self._entries.append(EntryModel(name=entry, nbytes=len(data), sha256=hashlib.sha256(data).hexdigest()))

    def _write_pieces(self, entry: EntryModel, crc: int, pieces: Iterable[bytes]) -> None:
        member = Member(entry.name, entry.nbytes, crc, self.nbytes)
        self._file.write(local_header(member))
        self._file.writelines(pieces)
        self._members.append(member)
        self._entries.append(entry)

    def _write_member(self, entry: str, data: bytes | memoryview) -> None:
        member = Member(entry, len(data), zlib.crc32(data), self.nbytes)
        self._file.write(local_header(member))
        self._file.write(data)
        self._members.append(member)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an archive lies that another carries, in a file that is open."""

    descriptor: int
    offset: int
    nbytes: int


class ArchiveReader:
    """Read an archive. Opening it validates everything but the entries' own bytes."""

    def __init__(self, path: Path, place: _Place | None = None) -> None:
        self.path = path
        self._packs: dict[str, bytes] = {}  # verified small entries, oldest first
        if place is None:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        else:
            self._descriptor = os.dup(place.descriptor)
        try:
            self._start, self._file_bytes = self._extent() if place is None else (place.offset, place.nbytes)
            self._members = self._read_directory()
            self.manifest = self._read_manifest()
            self._sha256 = {entry.name: entry.sha256 for entry in self.manifest.entries}
        except NewerFormat as error:
            self.close()
            raise UnknownFormat(path, f"{MANIFEST}: {error}") from None
        except ValueError as error:
            self.close()
            raise CorruptArchive(path, str(error)) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def nbytes(self) -> int:
        """Size of the archive."""
        return self._file_bytes

    def links(self) -> Iterator["ArchiveReader"]:
        """What its reconstruction is decoded from: the archives that it carries, and itself."""
        yield from self.carried()
        yield self

    def carried(self) -> Iterator["ArchiveReader"]:
        """The archives that it carries, base first, each open while it is at hand.

        Raises CorruptArchive where one is not what it should be, a delta against the one before say.
        """
        wanted, depth = self.manifest.reference, -1
        for number, name in enumerate(self.manifest.carried):
            member = self._members[name]
            place = _Place(self._descriptor, self._start + member.data_offset, member.nbytes)
            with ArchiveReader(self.path, place) as link:
                model = self.manifest.base_model if number == 0 else None
                got = link.manifest
                if (got.reference, got.base_model) != (wanted, model) or not depth < got.depth < self.manifest.depth:
                    raise CorruptArchive(self.path, f"entry {name!r}: is not a delta against what comes before it")
                if got.carried or got.moments_dropped is None:
                    raise CorruptArchive(self.path, f"entry {name!r}: is not weights alone")
                wanted, depth = got.reconstruction, got.depth
                yield link

    def chunks(self) -> Iterator[bytes]:
        """All its bytes, as they are."""
        for offset in range(0, self._file_bytes, CHUNK_BYTES):
            yield self._pread(offset, min(CHUNK_BYTES, self._file_bytes - offset), "archive")

    def entries(self) -> list[str]:
        """Names of all entries but the manifest, in file order."""
        return [entry.name for entry in self.manifest.entries]

    def read(self, entry: str) -> bytes:
        """All bytes of one entry, checked."""
        if entry not in self._sha256 and is_of_moments(entry) and self.manifest.moments_dropped is not None:
            raise weights_alone(self.path, self.manifest.moments_dropped)
        if entry not in self._sha256:
            raise CorruptArchive(self.path, f"there is no entry {entry!r}")
        data = self._read_member(self._members[entry])
        self._compare(entry, "sha256", self._sha256[entry], hashlib.sha256(data).hexdigest())
        return data

    def crc(self, entry: str) -> int:
        """What is recorded of an entry's bytes."""
        return self._members[entry].crc

    def pieces(self, entry: str) -> Iterator[bytes]:
        """An entry's bytes, some at a time. Raises CorruptArchive behind the last if they are not what was recorded."""
        member, crc, digest = self._members[entry], 0, hashlib.sha256()
        self._check_header(member)
        for offset in range(0, member.nbytes, CHUNK_BYTES):
            piece = self._pread(member.data_offset + offset, min(CHUNK_BYTES, member.nbytes - offset), entry)
            crc = zlib.crc32(piece, crc)
            digest.update(piece)
            yield piece
        self._compare(entry, "sha256", self._sha256[entry], digest.hexdigest())
        self._compare(entry, "CRC", f"{member.crc:08x}", f"{crc:08x}")

    def stream(self, ref: StreamRef) -> bytes:
        """The bytes of one stream. Its whole entry is checked; small entries are kept for the next call."""
        data = self._packs.get(ref.entry)
        if data is None:
            data = self.read(ref.entry)
            if len(data) < PACK_BYTES + OWN_ENTRY_BYTES:
                if len(self._packs) >= CACHED_PACKS:
                    self._packs.pop(next(iter(self._packs)))
                self._packs[ref.entry] = data
        if ref.offset < 0 or ref.nbytes < 0 or ref.offset + ref.nbytes > len(data):
            problem = f"a stream at bytes {ref.offset} + {ref.nbytes} of {len(data)}"
            raise CorruptArchive(self.path, f"entry {ref.entry!r}: {problem}")
        return data[ref.offset : ref.offset + ref.nbytes]

    def check(self) -> None:
        """Read the whole file; return only if every byte is the one that a writer would have put there."""
        for model in self.manifest.entries:
            for _ in self.pieces(model.name):
                pass
        self._read_member(self._members[MANIFEST])

    def _extent(self) -> tuple[int, int]:
        """Where it begins in its file, which it is all of, and how long it is."""
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        return 0, status.st_size

    def _read_directory(self) -> dict[str, Member]:
        tail_bytes = min(MAX_END_BYTES, self._file_bytes)
        end = parse_end(self._pread(self._file_bytes - tail_bytes, tail_bytes, "end"), self._file_bytes)
        if end.nbytes > MAX_DIRECTORY_BYTES:
            raise ValueError(f"central directory of {end.nbytes} bytes exceeds {MAX_DIRECTORY_BYTES}")
        members = parse_directory(self._pread(end.offset, end.nbytes, "central directory"), end)
        bad = [member.name for member in members if not _ENTRY.fullmatch(member.name)]
        if bad or len({member.name for member in members}) != len(members):
            raise ValueError(f"central directory: entry names are wrong or repeated: {bad[:1]}")
        if not members or members[-1].name != MANIFEST:
            raise ValueError(f"the last entry is not {MANIFEST}")
        return {member.name: member for member in members}

    def _read_manifest(self) -> Manifest:
        member = self._members[MANIFEST]
        if member.nbytes > MAX_MANIFEST_BYTES:
            raise ValueError(f"{MANIFEST} of {member.nbytes} bytes exceeds {MAX_MANIFEST_BYTES}")
        data = self._read_member(member)
        try:
            manifest = Manifest.from_json(data)
        except NewerFormat:
            raise
        except ValueError as error:
            raise ValueError(f"{MANIFEST}: {error}") from None
        stored = [(member.name, member.nbytes) for member in self._members.values()][:-1]
        if stored != [(entry.name, entry.nbytes) for entry in manifest.entries]:
            raise ValueError(f"{MANIFEST}: its entries are not those of the central directory")
        return manifest

    def _read_member(self, member: Member) -> bytes:
        self._check_header(member)
        data = self._pread(member.data_offset, member.nbytes, member.name)
        self._compare(member.name, "CRC", f"{member.crc:08x}", f"{zlib.crc32(data):08x}")
        return data

    def _check_header(self, member: Member) -> None:
        expected = local_header(member)
        if self._pread(member.offset, len(expected), member.name) != expected:
            raise CorruptArchive(self.path, f"entry {member.name!r}: its header is damaged")

    def _compare(self, entry: str, what: str, expected: str, got: str) -> None:
        if expected != got:
            raise CorruptArchive(self.path, f"entry {entry!r}: {what} expected {expected}, got {got}")

    def _pread(self, offset: int, nbytes: int, what: str) -> bytes:
        """Exactly these bytes; sizes were held against the size of the file before."""
        pieces, got = [], 0
        while got < nbytes:
            piece = os.pread(self._descriptor, nbytes - got, self._start + offset + got)
            if not piece:
                raise CorruptArchive(self.path, f"{what!r}: expected {nbytes} bytes, got {got}")
            pieces.append(piece)
            got += len(piece)
        took(nbytes)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
