"""The bytes of a checkpoint that are no tensors: kept verbatim, those between two holes in a piece.

Ranks that save each tensor in a file of its own write the same headers again and again: of 64 ranks a third of a
checkpoint of 100 MB. So a piece that repeats another one is a number.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from ckzd.checkpoint import Bytes, Checkpoint, FileLayout, Hole

_NUMBER = np.dtype("<u4")


def skeleton_of(checkpoint: Checkpoint) -> bytes:
    """All verbatim bytes of all files, in order, with zeros for what follows from payloads: a restore computes it.

    If that is shorter, what repeats stands there once, and behind all a number a piece: 0 where it is new, else that of
    the new one, from 1 on, which it is.
    """
    new: dict[bytes, int] = {}
    numbers: list[int] = []
    for piece in _pieces(checkpoint):
        numbers.append(new.get(piece, 0))
        new.setdefault(piece, len(new) + 1)
    listed = np.array(numbers, _NUMBER).tobytes()
    if sum(map(len, new)) + len(listed) < skeleton_bytes(checkpoint.files):
        return b"".join(new) + listed
    by_number, following = list(new), iter(new)
    return b"".join(by_number[number - 1] if number else next(following) for number in numbers)


def _pieces(checkpoint: Checkpoint) -> Iterator[bytes]:
    for number, file in enumerate(checkpoint.files):
        fields = deque(sorted(place for hole in file.holes for place in _follows(hole)))
        for (start, stop), piece in zip(file.verbatim_ranges(), checkpoint.verbatim(number), strict=True):
            cleared = bytearray(piece)
            while fields and fields[0][0] < stop:
                offset, length = fields.popleft()
                cleared[offset - start : offset - start + length] = bytes(length)
            yield bytes(cleared)


def _follows(hole: Hole) -> Iterator[tuple[int, int]]:
    """Offset and length of each field that follows from what is in a hole."""
    yield from ((offset, 4) for offset in hole.crc_offsets)
    if hole.fingerprint is not None:
        yield from hole.fingerprint.places


def skeleton_bytes(files: Sequence[FileLayout]) -> int:
    """How long the skeleton of these files is at most: where nothing is left out it is that long."""
    return sum(stop - start for file in files for start, stop in file.verbatim_ranges())


def split_skeleton(skeleton: bytes, files: Sequence[FileLayout]) -> list[list[Bytes]]:
    """The verbatim pieces of each file; ValueError if the lengths do not add up."""
    ranges = [list(file.verbatim_ranges()) for file in files]
    lengths = [stop - start for pieces in ranges for start, stop in pieces]
    end, numbers = len(skeleton), [0] * len(lengths)
    if end < sum(lengths):
        end -= _NUMBER.itemsize * len(lengths)
        if end < 0:
            raise ValueError(f"expected a skeleton of {len(lengths)} pieces, got {len(skeleton)} bytes")
        numbers = np.frombuffer(skeleton, _NUMBER, offset=end).tolist()
    pieces = iter(_pieces_of(memoryview(skeleton)[:end], lengths, numbers))
    return [[next(pieces) for _ in own] for own in ranges]


def _pieces_of(new: memoryview, lengths: Sequence[int], numbers: Sequence[int]) -> list[Bytes]:
    """Pieces of these lengths, the new ones from their bytes, the others by the numbers of those."""
    found: list[Bytes] = []
    known: list[Bytes] = []
    position = 0
    for length, number in zip(lengths, numbers, strict=True):
        if number > len(known):
            raise ValueError(f"expected a skeleton of {len(known)} pieces so far, got the number {number}")
        if not number:
            known.append(new[position : position + length])
            position += length
        found.append(known[number - 1])
        if len(found[-1]) != length:
            raise ValueError(f"expected a skeleton with a piece of {length} bytes, got {len(found[-1])}")
    if position != len(new):
        raise ValueError(f"expected a skeleton of {position} new bytes, got {len(new)}")
    return found
