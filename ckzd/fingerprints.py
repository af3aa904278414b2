"""The fingerprint that torch writes into its files: a hash of the CRC-32s of all records, in decimal digits.

It follows from what a storage holds, as the CRC-32 of that does, and is as new in each checkpoint: of a state that is
cut into thousands of files of torch.save it is most of what differs beside the tensors. So a restore makes it anew.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

DIGITS = 20  # of a hash; before them are as many, of the names of all records
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Its digits are at `offset` of the file, which repeats the CRC-32 of all 40 at `crc_offsets`.

    `before` and `after` are the CRC-32s of the records before and behind the storage that it follows from.
    """

    offset: int
    crc_offsets: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Offset and length of all that follows from the storage."""
        return ((self.offset, DIGITS), *((offset, 4) for offset in self.crc_offsets))

    @property
    def records(self) -> int:
        """How many records it follows from."""
        return len(self.before) + 1 + len(self.after)

    def moved(self, by: int) -> "Fingerprint":
        """As it is where the file is part of another, which has `by` bytes in front of it."""
        return replace(self, offset=self.offset + by, crc_offsets=tuple(offset + by for offset in self.crc_offsets))

    def write(self, piece: bytearray, start: int, crc: int) -> None:
        """Put it into bytes from `start` on of the file, for a storage of this CRC-32."""
        at = self.offset - start
        piece[at : at + DIGITS] = digits((*self.before, crc, *self.after))
        of_all = zlib.crc32(piece[at - DIGITS : at + DIGITS]).to_bytes(4, "little")
        for offset in self.crc_offsets:
            piece[offset - start : offset - start + 4] = of_all


def digits(crcs: Iterable[int]) -> bytes:
    """Of the CRC-32s of all records, in the order in which they were written (c10/util/hash.h: hash_combine)."""
    return b"%020d" % reduce(_combined, crcs, 0)


def _combined(seed: int, value: int) -> int:
    return seed ^ ((value + 0x9E3779B9 + (seed << 6 & _MASK) + (seed >> 2)) & _MASK)
