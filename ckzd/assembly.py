"""Files put together from their verbatim bytes and their tensors: to hash what a restore will write, and to write it.

A tensor may lie in parts in many files. It is made once for all of them: each file goes on as far as it can with the
tensors at hand. Ranks write theirs in one order, so that there are few of them at a time.
"""

import zlib
from collections import Counter, defaultdict, deque
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
    turns = _Turns(files)
    steps: list[_Step] = []
    for number, file in enumerate(files):
        while turns.at[number] < len(file.holes):
            steps.append(turns.step(number, held_bytes))
    return steps


class _Turns:
    """How far each file is, and which tensors are held."""

    def __init__(self, files: Sequence[FileLayout]) -> None:
        self._files = files
        self.at = [0] * len(files)  # holes of each that are filled
        self._sizes: Counter[int] = Counter()
        self._left: dict[int, deque[tuple[int, int]]] = defaultdict(deque)  # of a tensor, holes: the first is unfilled
        self._waiting: dict[int, list[int]] = defaultdict(list)  # for a tensor, files whose next hole it fills
        self._held: dict[int, int] = {}  # sizes of tensors, the oldest first
        self._size = 0  # of all of them
        for number, file in enumerate(files):
            for position, hole in enumerate(file.holes):
                self._sizes[hole.tensor] += hole.nbytes
                self._left[hole.tensor].append((number, position))
            if file.holes:
                self._waiting[file.holes[0].tensor].append(number)

    def step(self, number: int, held_bytes: int) -> _Step:
        """What a file waits for is made; while a tensor is held, what the first waits for that needs it.

        Ranks whose rows are in different tiles of one tensor wait for different ones.
        """
        oldest = next(iter(self._held), None)
        behind = number if oldest is None else self._left[oldest][0][0]
        made = self._files[behind].holes[self.at[behind]].tensor
        self._held[made] = self._sizes[made]
        filled = [place for file in self._waiting.pop(made) for place in self._filled(file)]
        tensors = [made, *(self._files[file].holes[position].tensor for file, position in filled)]
        let_go = [tensor for tensor in dict.fromkeys(tensors) if not self._is_needed(tensor)]
        self._size += self._sizes[made] - sum(map(self._held.pop, let_go))
        while self._size > held_bytes:
            let_go.append(next(iter(self._held)))
            self._size -= self._held.pop(let_go[-1])
        return _Step(made, tuple(filled), tuple(let_go))

    def _filled(self, file: int) -> Iterator[tuple[int, int]]:
        """The holes of a file, with its number, that what is held fills; then it waits for another tensor."""
        holes = self._files[file].holes
        while self.at[file] < len(holes) and holes[self.at[file]].tensor in self._held:
            yield file, self.at[file]
            self.at[file] += 1
        if self.at[file] < len(holes):
            self._waiting[holes[self.at[file]].tensor].append(file)

    def _is_needed(self, tensor: int) -> bool:
        """Whether a hole of it is left."""
        holes = self._left[tensor]
        while holes and self.at[holes[0][0]] > holes[0][1]:
            holes.popleft()
        return bool(holes)


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
