"""ZIP64 records in the one form that ckzd writes: stored entries, no flags, a fixed date, no comments.

Writer and reader share these functions: the reader rebuilds every record from the few values that are free in it
(name, size, CRC, offset) and compares bytes, so there is no record that it has to believe.
"""

import struct
from dataclasses import dataclass

from ckzd.zip_structs import CENTRAL, END, END_64, LIMIT_16, LIMIT_32, LOCAL, LOCATOR_64, MAX_END_BYTES

DATE = 0x0021  # 1980-01-01, the earliest that the format can say
PLAIN, WITH_ZIP64 = 20, 45  # ZIP versions 2.0 and 4.5
ZIP64_FIELDS = 0x0001


@dataclass(frozen=True, slots=True)
class Member:
    """An entry and where its local header stands in the file."""

    name: str
    nbytes: int
    crc: int
    offset: int

    @property
    def data_offset(self) -> int:
        """Where its bytes begin."""
        return self.offset + len(local_header(self))

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.data_offset + self.nbytes


@dataclass(frozen=True, slots=True)
class End:
    """What the end of the file says of the central directory."""

    count: int
    nbytes: int
    offset: int


def local_header(member: Member) -> bytes:
    """The record in front of an entry's bytes."""
    large = member.nbytes >= LIMIT_32
    extra = struct.pack("<2H2Q", ZIP64_FIELDS, 16, member.nbytes, member.nbytes) if large else b""
    name = member.name.encode("ascii")
    size = min(member.nbytes, LIMIT_32)
    version = WITH_ZIP64 if large else PLAIN
    return LOCAL.pack(b"PK\3\4", version, 0, 0, 0, DATE, member.crc, size, size, len(name), len(extra)) + name + extra


def central_header(member: Member) -> bytes:
    """The entry's record in the central directory."""
    wide = [member.nbytes] * 2 if member.nbytes >= LIMIT_32 else []
    wide += [member.offset] if member.offset >= LIMIT_32 else []
    extra = struct.pack(f"<2H{len(wide)}Q", ZIP64_FIELDS, 8 * len(wide), *wide) if wide else b""
    name = member.name.encode("ascii")
    size = min(member.nbytes, LIMIT_32)
    version = WITH_ZIP64 if wide else PLAIN
    head = (b"PK\1\2", version, version, 0, 0, 0, DATE, member.crc, size, size, len(name), len(extra))
    return CENTRAL.pack(*head, 0, 0, 0, 0, min(member.offset, LIMIT_32)) + name + extra


def end_records(end: End) -> bytes:
    """Everything behind the central directory."""
    count, nbytes, offset = min(end.count, LIMIT_16), min(end.nbytes, LIMIT_32), min(end.offset, LIMIT_32)
    plain = END.pack(b"PK\5\6", 0, 0, count, count, nbytes, offset, 0)
    if count < LIMIT_16 and nbytes < LIMIT_32 and offset < LIMIT_32:
        return plain
    wide = END_64.pack(
        b"PK\6\6", END_64.size - 12, WITH_ZIP64, WITH_ZIP64, 0, 0, end.count, end.count, end.nbytes, end.offset
    )
    return wide + LOCATOR_64.pack(b"PK\6\7", 0, end.offset + end.nbytes, 1) + plain


def parse_end(tail: bytes, file_bytes: int) -> End:
    """Read the last `MAX_END_BYTES` bytes (or the whole of a shorter file); ValueError unless they are canonical."""
    if len(tail) < END.size or tail[-END.size :][:4] != b"PK\5\6":
        raise ValueError("no end of central directory: cut off, or no archive")
    *_, count, nbytes, offset, _comment = END.unpack(tail[-END.size :])
    end = End(count, nbytes, offset)
    if count == LIMIT_16 or LIMIT_32 in (nbytes, offset):
        if len(tail) < MAX_END_BYTES:
            raise ValueError("no ZIP64 end of central directory")
        *_, count, nbytes, offset = END_64.unpack(tail[-MAX_END_BYTES:][: END_64.size])
        end = End(count, nbytes, offset)
    records = end_records(end) if max(count, nbytes, offset) < 2**63 else b""
    if not records or not tail.endswith(records):
        raise ValueError("end of central directory: not what a writer of ckzd leaves")
    if end.offset + end.nbytes + len(records) != file_bytes:
        raise ValueError(f"central directory ends at byte {end.offset + end.nbytes} of {file_bytes}: cut or padded")
    return end


def parse_directory(data: bytes, end: End) -> list[Member]:
    """The members, in order; ValueError unless they cover the file from byte 0 to the directory without a gap."""
    members: list[Member] = []
    position, expected_offset = 0, 0
    while position < len(data):
        member = _parse_member(data, position, expected_offset)
        if member.end > end.offset:
            raise ValueError(f"entry {member.name!r}: {member.nbytes} bytes reach into the central directory")
        members.append(member)
        position, expected_offset = position + len(central_header(member)), member.end
    if len(members) != end.count or expected_offset != end.offset:
        raise ValueError(f"central directory: {len(members)} entries up to byte {expected_offset}, not as announced")
    return members


def _parse_member(data: bytes, position: int, offset: int) -> Member:
    """One central record. Its offset follows from the entries before it; only name, size and CRC are read."""
    if len(data) - position < CENTRAL.size:
        raise ValueError("central directory: cut off")
    fields = CENTRAL.unpack_from(data, position)
    crc, size, name_length = fields[7], fields[9], fields[10]
    start = position + CENTRAL.size
    name = data[start : start + name_length]
    if size == LIMIT_32:
        size = int.from_bytes(data[start + name_length + 4 : start + name_length + 12], "little")
    if not name.isascii() or size >= 2**63:
        raise ValueError(f"central directory: record at byte {position} is not what a writer of ckzd leaves")
    member = Member(name.decode("ascii"), size, crc, offset)
    if not data.startswith(central_header(member), position):
        raise ValueError(f"entry {member.name!r}: its record in the central directory is damaged")
    return member
