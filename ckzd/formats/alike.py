"""Files of torch.save by the thousand, each with one tensor: what differs in numbers alone is parsed once.

Of a file that was parsed all bytes but those of its tensor are remembered, without what follows from these: checksums,
and torch's fingerprint. What has the same bytes, and all that follows as it must be, has its tensor at the same place.
"""

import zlib
from collections import defaultdict, deque
from dataclasses import dataclass

from ckzd.checkpoint import Hole
from ckzd.fingerprints import DIGITS, digits
from ckzd.formats import torch_zip
from ckzd.formats.parsed import ParsedFile
from ckzd.formats.source import FileView

MAX_ALIKE = 8  # of one size that are remembered
MAX_REMEMBERED, MAX_REMEMBERED_BYTES = 4096, 1 << 13  # files, bytes beside the tensor: torch writes some 1500


@dataclass(frozen=True, slots=True)
class _Known:
    """A file that was parsed and has one hole; its other bytes, without what follows from what is in that."""

    parsed: ParsedFile
    others: bytes

    def fits(self, view: FileView) -> bool:
        """Whether another file of the same size is like it."""
        (hole,) = self.parsed.holes
        data = _around(view, hole)
        crc = _value(data, hole, hole.crc_offsets)
        if crc is None or _without(data, hole) != self.others:
            return False
        made = hole.fingerprint
        if made is None:
            return True
        at = _left(hole, made.offset)
        of_all, all_digits = _value(data, hole, made.crc_offsets), data[at - DIGITS : at + DIGITS]
        return all_digits[DIGITS:] == digits((*made.before, crc, *made.after)) and of_all == zlib.crc32(all_digits)


def _around(view: FileView, hole: Hole) -> bytes:
    stop = hole.offset + hole.nbytes
    return view.read(0, hole.offset) + view.read(stop, view.size - stop)


def _left(hole: Hole, offset: int) -> int:
    """The place of a byte in what is around a hole."""
    return offset if offset < hole.offset else offset - hole.nbytes


def _value(data: bytes, hole: Hole, offsets: tuple[int, ...]) -> int | None:
    """The checksum that stands at all of them; None if they disagree, or it is 0: then torch did not make it."""
    found = {data[place : place + 4] for place in (_left(hole, offset) for offset in offsets)}
    return int.from_bytes(found.pop(), "little") or None if len(found) == 1 else None


def _without(data: bytes, hole: Hole) -> bytes:
    """With zeros for what follows from what is in the hole."""
    left = bytearray(data)
    follows = hole.fingerprint.places if hole.fingerprint is not None else ()
    for offset, length in (*((offset, 4) for offset in hole.crc_offsets), *follows):
        place = _left(hole, offset)
        left[place : place + length] = bytes(length)
    return bytes(left)


class Alike:
    """Parses files that may be like others before."""

    def __init__(self) -> None:
        self._known: dict[int, deque[_Known]] = defaultdict(deque)  # by size, the last that fitted first
        self._count = 0

    def parse(self, view: FileView) -> ParsedFile:
        """As `torch_zip.parse`, but tensors of any size are tensors."""
        alike = self._known[view.size]
        for position, known in enumerate(alike):
            if known.fits(view):
                alike.rotate(-position)
                return known.parsed
        parsed = torch_zip.parse(view, least=1)
        if len(alike) < MAX_ALIKE and self._count < MAX_REMEMBERED and (new := _known(view, parsed)) is not None:
            alike.appendleft(new)
            self._count += 1
        return parsed


def _known(view: FileView, parsed: ParsedFile) -> _Known | None:
    """What to remember of a file: of one that has more than a tensor, or much else, nothing."""
    if len(parsed.holes) != 1 or view.size - parsed.holes[0].nbytes > MAX_REMEMBERED_BYTES:
        return None
    return _Known(parsed, _without(_around(view, parsed.holes[0]), parsed.holes[0]))
