"""Files put together from their verbatim bytes and their tensors: to hash what a restore will write, and to write it.

A tensor may lie in parts in many files. It is made once for all of them: each file goes on as far as it can with the
tensors at hand. Ranks write theirs in one order, so that there are few of them at a time.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from ckzd.checkpoint import Bytes, FileLayout, Hole
from ckzd.fingerprints import Fingerprint

MOST_TIMES = 64  # all tensors may be made, with what is made again
HELD_BYTES = 128 << 20  # of tensors that later holes need parts of; beyond it the oldest are made again

Payloads = Callable[[Sequence[int]], Iterator[Bytes]]  # the bytes of numbered tensors, in this order


@dataclass(frozen=True, slots=True)
class _Step:
    """A tensor that is made, the holes that are filled then (file, position in it), and what is let go after."""

    tensor: int
    filled: tuple[tuple[int, int], ...]
    let_go: tuple[int, ...]


def assembled(
    files: Sequence[FileLayout],
    verbatim: Sequence[Iterable[Bytes]],
    payloads: Payloads,
    *,
    held_bytes: int = HELD_BYTES,
) -> Iterator[tuple[int, Bytes]]:
    """Number of a file and its next bytes, for all files: each in order, files in turns.

    `verbatim` has for each file one piece per `FileLayout.verbatim_ranges()`, what repeats CRC-32s is patched. Raises
    ValueError where parts lie so that their tensors would be made again without end.
    """
    writers = [_Writer(file, iter(pieces)) for file, pieces in zip(files, verbatim, strict=True)]
    steps = _steps(files, held_bytes)
    _require_bounded(files, steps)
    held: dict[int, Bytes] = {}
    for step, payload in zip(steps, payloads([step.tensor for step in steps]), strict=True):
        held[step.tensor] = payload
        for file, position in step.filled:
            hole = files[file].holes[position]
            yield from ((file, piece) for piece in writers[file].filled(hole, held[hole.tensor]))
            if position + 1 == len(files[file].holes):
                yield file, writers[file].verbatim()
        for tensor in step.let_go:
            del held[tensor]
    yield from ((number, writers[number].verbatim()) for number, file in enumerate(files) if not file.holes)


def _steps(files: Sequence[FileLayout], held_bytes: int) -> list[_Step]:
    """In which order tensors are made, so that a tensor that lies in one place is made for it alone."""
    sizes: Counter[int] = Counter()
    left: Counter[int] = Counter()  # holes still to be filled, of each tensor
    for hole in (hole for file in files for hole in file.holes):
        sizes[hole.tensor] += hole.nbytes
        left[hole.tensor] += 1
    at = [0] * len(files)
    waiting: dict[int, list[int]] = defaultdict(list)  # for a tensor, files whose next hole it fills
    for number, file in enumerate(files):
        if file.holes:
            waiting[file.holes[0].tensor].append(number)
    held: dict[int, int] = {}  # sizes of tensors, the oldest first
    size = 0  # of all of them
    steps: list[_Step] = []
    for number, file in enumerate(files):
        while at[number] < len(file.holes):
            made = file.holes[at[number]].tensor
            held[made] = sizes[made]
            size += sizes[made]
            filled: list[tuple[int, int]] = []
            for other in waiting.pop(made):
                holes = files[other].holes
                while at[other] < len(holes) and holes[at[other]].tensor in held:
                    filled.append((other, at[other]))
                    left[holes[at[other]].tensor] -= 1
                    at[other] += 1
                if at[other] < len(holes):
                    waiting[holes[at[other]].tensor].append(other)
            done = [made, *(files[place].holes[position].tensor for place, position in filled)]
            let_go = [tensor for tensor in dict.fromkeys(done) if not left[tensor]]
            size -= sum(held.pop(tensor) for tensor in let_go)
            while size > held_bytes:
                oldest = next(iter(held))
                size -= held.pop(oldest)
                let_go.append(oldest)
            steps.append(_Step(made, tuple(filled), tuple(let_go)))
    return steps


def _require_bounded(files: Sequence[FileLayout], steps: Sequence[_Step]) -> None:
    sizes: Counter[int] = Counter()
    for hole in (hole for file in files for hole in file.holes):
        sizes[hole.tensor] += hole.nbytes
    if sum(sizes[step.tensor] for step in steps) > MOST_TIMES * sizes.total():
        raise ValueError(f"parts of {len(sizes)} tensors lie in so many orders that these are made again without end")


class _Writer:
    """The bytes of one file, hole by hole."""

    def __init__(self, layout: FileLayout, pieces: Iterator[Bytes]) -> None:
        self._ranges, self._pieces = layout.verbatim_ranges(), pieces
        self._has_crcs = any(hole.crc_offsets for hole in layout.holes)
        self._crc = 0  # of the storage so far
        self._patches: list[tuple[int, bytes]] = []  # a heap by where they belong
        self._fingerprints: list[tuple[int, int, Fingerprint]] = []  # another, with the CRC-32s that they follow from

    def filled(self, hole: Hole, tensor: Bytes) -> Iterator[Bytes]:
        """What lies before the next hole, and what is in it, of the bytes of its tensor."""
        payload = tensor if hole.part is None else hole.part.taken_from(tensor)
        if len(payload) != hole.nbytes:
            raise AssertionError(f"tensor {hole.tensor}: payload of {len(payload)} bytes for a hole of {hole.nbytes}")
        if self._has_crcs:
            self._crc = zlib.crc32(payload, 0 if hole.begins_storage else self._crc)
        for offset in hole.crc_offsets:
            heappush(self._patches, (offset, self._crc.to_bytes(4, "little")))
        if hole.fingerprint is not None:
            heappush(self._fingerprints, (hole.fingerprint.offset, self._crc, hole.fingerprint))
        yield self.verbatim()
        yield payload

    def verbatim(self) -> Bytes:
        """The next piece between holes."""
        start, stop = next(self._ranges)
        piece = bytearray(next(self._pieces))
        while self._patches and self._patches[0][0] < stop:
            offset, crc = heappop(self._patches)
            piece[offset - start : offset - start + 4] = crc
        while self._fingerprints and self._fingerprints[0][0] < stop:
            _, of_storage, fingerprint = heappop(self._fingerprints)
            fingerprint.write(piece, start, of_storage)
        return bytes(piece)
