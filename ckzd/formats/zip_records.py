"""Where the records of a stored zip lie, proved from its structure alone.

Strict on purpose: records follow each other without gap or overlap from the first byte to the central directory,
none is encrypted, and local header, data descriptor and central directory agree. ZIP64 is read. Records may be
deflated, as TorchScript's code is; what they hold is not for us, and their bytes are kept as they lie there.
Checksums are not checked (that would read the whole file), and torch may have left them 0.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ckzd.errors import BadCheckpoint
from ckzd.formats.source import FileView, Window
from ckzd.zip_structs import CENTRAL, END, END_64, LIMIT_16, LIMIT_32, LOCAL, LOCATOR_64, MAX_END_BYTES

MAGIC = b"PK\x03\x04"
MAX_RECORDS = 1_000_000
MAX_DIRECTORY_BYTES = 256 << 20

_DESCRIPTOR = struct.Struct("<4s3L")
_DESCRIPTOR64 = struct.Struct("<4sL2Q")
_FULLS = (LIMIT_16, LIMIT_32, LIMIT_32)  # entries, size and offset in an end that leaves them to the ZIP64 end
_HAS_DESCRIPTOR, _UTF8 = 0x0008, 0x0800
_ALLOWED_FLAGS = _HAS_DESCRIPTOR | _UTF8
_STORED, _DEFLATED = 0, 8


@dataclass(frozen=True, slots=True)
class Record:
    """The bytes [offset, offset + nbytes) of the file, and where the file repeats their CRC-32 (nowhere if it is 0).

    The CRC-32 of a deflated record is that of what it inflates to: no place repeats that of its bytes.
    """

    name: str
    offset: int
    nbytes: int
    crc: int
    crc_offsets: tuple[int, ...]
    is_deflated: bool


@dataclass(frozen=True, slots=True)
class Directory:
    """The central directory's place, and the number of its entries."""

    offset: int
    nbytes: int
    entries: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of the central directory."""

    raw_name: bytes
    name: str
    flags: int
    method: int
    crc: int
    nbytes: int  # in the file
    inflated: int
    header_offset: int
    crc_offset: int


def read_records(view: FileView) -> list[Record]:
    """Every record of the zip, in file order. BadCheckpoint if anything about it is not as it should be."""
    directory = find_directory(view)
    entries = sorted(_entries(view, directory), key=lambda entry: entry.header_offset)
    if len({entry.name for entry in entries}) != len(entries):
        raise BadCheckpoint(view.subject, "two records of the zip have one name")
    records: list[Record] = []
    window = Window(view)
    position = 0
    for entry in entries:
        if entry.header_offset != position:
            raise BadCheckpoint(
                view.subject, f"zip record {_shown(entry)}: expected at {position}, got {entry.header_offset}"
            )
        if position + entry.nbytes > directory.offset:
            problem = f"{entry.nbytes} bytes at {position} do not fit in a file of {view.size}"
            raise BadCheckpoint(view.subject, f"zip record {_shown(entry)}: {problem}")
        record, position = _record(view, window, entry)
        if position > directory.offset:
            raise BadCheckpoint(view.subject, f"zip record {_shown(entry)} reaches into the central directory")
        records.append(record)
    if position != directory.offset:
        raise BadCheckpoint(view.subject, "bytes between the last zip record and the central directory")
    return records


def find_directory(view: FileView) -> Directory:
    """Read the end of the file. It is what a writer that was interrupted has not written yet."""
    tail = view.read(max(0, view.size - MAX_END_BYTES), min(view.size, MAX_END_BYTES))
    if len(tail) < END.size or not tail[-END.size :].startswith(b"PK\x05\x06"):
        raise BadCheckpoint(view.subject, "a zip without an end: cut off, or still being written")
    _, disk, first_disk, entries_here, entries, nbytes, offset, comment = END.unpack(tail[-END.size :])
    end = view.size - END.size
    if len(tail) == MAX_END_BYTES and tail[END_64.size :].startswith(b"PK\x06\x07"):
        end = view.size - len(tail)
        small = entries, nbytes, offset
        entries, nbytes, offset = _end64(view, tail)
        if any(s not in (full, large) for s, full, large in zip(small, _FULLS, (entries, nbytes, offset), strict=True)):
            raise BadCheckpoint(view.subject, "the two ends of the zip disagree")
        entries_here = entries
    if disk or first_disk or comment or entries_here != entries:
        raise BadCheckpoint(view.subject, "a zip of several parts or with a comment")
    if offset + nbytes != end or entries > MAX_RECORDS or not entries * CENTRAL.size <= nbytes <= MAX_DIRECTORY_BYTES:
        raise BadCheckpoint(view.subject, f"central directory: {entries} entries, {nbytes} bytes at {offset}")
    return Directory(offset, nbytes, entries)


def _end64(view: FileView, tail: bytes) -> tuple[int, int, int]:
    """Entries, size and offset of the central directory from the ZIP64 end, which lies right before its locator."""
    _, disk, place, disks = LOCATOR_64.unpack_from(tail, END_64.size)
    mark, length, _, _, this_disk, first_disk, here, entries, nbytes, offset = END_64.unpack_from(tail)
    right_place = mark == b"PK\x06\x06" and place == view.size - len(tail) and length == END_64.size - 12
    if not right_place or disk or disks > 1 or this_disk or first_disk or here != entries:
        raise BadCheckpoint(view.subject, "the ZIP64 end of the zip is not where or what it should be")
    return entries, nbytes, offset


def _entries(view: FileView, directory: Directory) -> Iterator[_Entry]:
    data = view.read(directory.offset, directory.nbytes)
    position = 0
    for _ in range(directory.entries):
        entry, position = _entry(view, data, position, directory.offset)
        yield entry
    if position != len(data):
        raise BadCheckpoint(view.subject, "the central directory has bytes that belong to no entry")


def _entry(view: FileView, data: bytes, position: int, base: int) -> tuple[_Entry, int]:
    if len(data) - position < CENTRAL.size:
        raise BadCheckpoint(view.subject, "the central directory is cut off")
    mark, _, _, flags, method, _, _, crc, packed, nbytes, *lengths, _, _, _, offset = CENTRAL.unpack_from(
        data, position
    )
    name_length, extra_length, comment_length = lengths
    name_start = position + CENTRAL.size
    extra_start = name_start + name_length
    stop = extra_start + extra_length + comment_length
    if mark != b"PK\x01\x02" or stop > len(data):
        raise BadCheckpoint(view.subject, "the central directory is damaged")
    raw_name = data[name_start:extra_start]
    if method not in (_STORED, _DEFLATED) or flags & ~_ALLOWED_FLAGS:
        raise BadCheckpoint(view.subject, f"zip record {raw_name[:80]!a} is encrypted, or compressed in an unknown way")
    extra = data[extra_start : extra_start + extra_length]
    nbytes, packed, offset = _zip64_values(view, extra, (nbytes, packed, offset))
    if method == _STORED and nbytes != packed:
        raise BadCheckpoint(view.subject, f"zip record {raw_name[:80]!a}: {nbytes} bytes stored as {packed}")
    try:
        name = raw_name.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise BadCheckpoint(view.subject, f"zip record {raw_name[:80]!a} has a name that is no text") from error
    return _Entry(raw_name, name, flags, method, crc, packed, nbytes, offset, base + position + 16), stop


def _zip64_values(view: FileView, extra: bytes, values: tuple[int, ...]) -> list[int]:
    """The values, those that are full replaced from the ZIP64 extra field in this order."""
    if LIMIT_32 not in values:
        return list(values)
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        body = extra[position + 4 : position + 4 + length]
        if kind == 1 and len(body) >= 8 * values.count(LIMIT_32):
            wide = iter(struct.unpack_from(f"<{values.count(LIMIT_32)}Q", body))
            return [next(wide) if value == LIMIT_32 else value for value in values]
        position += 4 + length
    raise BadCheckpoint(view.subject, "a zip record without its ZIP64 sizes")


def _record(view: FileView, window: Window, entry: _Entry) -> tuple[Record, int]:
    """The record behind an entry, and where the next one must start."""
    header = window.read(entry.header_offset, LOCAL.size + len(entry.raw_name))
    mark, _, flags, method, _, _, crc, packed, nbytes, name_length, extra_length = LOCAL.unpack_from(header)
    if mark != MAGIC or flags != entry.flags or method != entry.method or header[LOCAL.size :] != entry.raw_name:
        raise BadCheckpoint(view.subject, f"zip record {_shown(entry)}: local header and central directory disagree")
    offset = entry.header_offset + LOCAL.size + name_length + extra_length
    late = bool(flags & _HAS_DESCRIPTOR)
    if LIMIT_32 in (packed, nbytes):
        extra = window.read(offset - extra_length, extra_length)
        nbytes, packed = _zip64_values(view, extra, (nbytes, packed))
    sizes_agree = (late and nbytes == packed == 0) or (packed, nbytes) == (entry.nbytes, entry.inflated)
    if name_length != len(entry.raw_name) or not sizes_agree or not (crc == entry.crc or (late and crc == 0)):
        raise BadCheckpoint(view.subject, f"zip record {_shown(entry)}: local header and central directory disagree")
    stop = offset + entry.nbytes
    crc_offsets = [entry.header_offset + 14] if crc else []
    if late:
        crc_offsets.append(stop + 4)
        stop += _descriptor_bytes(view, window, entry, stop)
    crc_offsets.append(entry.crc_offset)
    is_deflated = entry.method == _DEFLATED
    places = tuple(crc_offsets) if entry.crc and not is_deflated else ()
    return Record(entry.name, offset, entry.nbytes, entry.crc, places, is_deflated), stop


def _descriptor_bytes(view: FileView, window: Window, entry: _Entry, offset: int) -> int:
    """Length of the data descriptor at `offset`, which must say what the central directory says."""
    data = window.read(offset, max(0, min(_DESCRIPTOR64.size, view.size - offset)))
    expected = b"PK\x07\x08", entry.crc, entry.nbytes, entry.inflated
    for kind in (_DESCRIPTOR64, _DESCRIPTOR):
        if len(data) >= kind.size and kind.unpack_from(data) == expected:
            return kind.size
    raise BadCheckpoint(view.subject, f"zip record {_shown(entry)}: data descriptor and central directory disagree")


def _shown(entry: _Entry) -> str:
    return ascii(entry.name[-80:])
