"""The bytes of a checkpoint that are no tensors: kept verbatim, in one run."""

from collections.abc import Sequence

from ckzd.checkpoint import Checkpoint, FileLayout


def skeleton_of(checkpoint: Checkpoint) -> bytes:
    """All verbatim bytes of all files, in order, with the CRC-32 fields of payloads zeroed: a restore computes them."""
    pieces = []
    for number, file in enumerate(checkpoint.files):
        offsets = sorted(offset for hole in file.holes for offset in hole.crc_offsets)
        for (start, stop), piece in zip(file.verbatim_ranges(), checkpoint.verbatim(number), strict=True):
            cleared = bytearray(piece)
            while offsets and offsets[0] < stop:
                offset = offsets.pop(0) - start
                cleared[offset : offset + 4] = bytes(4)
            pieces.append(bytes(cleared))
    return b"".join(pieces)


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
