"""The bytes of a checkpoint that are no tensors: kept verbatim, in one run."""

from collections import deque
from collections.abc import Iterator, Sequence

from ckzd.checkpoint import Checkpoint, FileLayout, Hole


def skeleton_of(checkpoint: Checkpoint) -> bytes:
    """All verbatim bytes of all files, in order, with zeros for what follows from payloads: a restore computes it."""
    pieces = []
    for number, file in enumerate(checkpoint.files):
        fields = deque(sorted(place for hole in file.holes for place in _follows(hole)))
        for (start, stop), piece in zip(file.verbatim_ranges(), checkpoint.verbatim(number), strict=True):
            cleared = bytearray(piece)
            while fields and fields[0][0] < stop:
                offset, length = fields.popleft()
                cleared[offset - start : offset - start + length] = bytes(length)
            pieces.append(bytes(cleared))
    return b"".join(pieces)


def _follows(hole: Hole) -> Iterator[tuple[int, int]]:
    """Offset and length of each field that follows from what is in a hole."""
    yield from ((offset, 4) for offset in hole.crc_offsets)
    if hole.fingerprint is not None:
        yield from hole.fingerprint.places


def skeleton_bytes(files: Sequence[FileLayout]) -> int:
    """How long the skeleton of these files is."""
    return sum(stop - start for file in files for start, stop in file.verbatim_ranges())


def split_skeleton(skeleton: bytes, files: Sequence[FileLayout]) -> list[list[bytes]]:
    """The verbatim pieces of each file; ValueError if the lengths do not add up."""
    pieces: list[list[bytes]] = []
    position = 0
    for file in files:
        pieces.append([])
        for start, stop in file.verbatim_ranges():
            pieces[-1].append(skeleton[position : position + stop - start])
            position += stop - start
    if position != len(skeleton):
        raise ValueError(f"expected a skeleton of {position} bytes, got {len(skeleton)}")
    return pieces
