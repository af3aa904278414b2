"""Where the bytes of a tensor lie that is cut between places, as a sharded one is between the files of ranks.

Of a matrix that is cut by rows a rank has one run of bytes; of one that is cut by columns a run in each row.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """`count` runs of `run` bytes of a tensor, the first at `start`, each `pitch` bytes behind the start of the last.

    One run has no pitch: it is 0. Runs do not overlap.
    """

    start: int
    run: int
    count: int = 1
    pitch: int = 0

    @property
    def nbytes(self) -> int:
        """How many bytes it is of."""
        return self.run * self.count

    def taken_from(self, tensor: bytes | memoryview) -> bytes | memoryview:
        """Its bytes, run by run, of all bytes of the tensor."""
        if self.count == 1:
            return memoryview(tensor)[self.start : self.start + self.run]
        return self._runs(np.frombuffer(tensor, np.uint8)).tobytes()

    def put_into(self, tensor: bytearray, data: bytes | memoryview) -> None:
        """The inverse of `taken_from`."""
        self._runs(np.frombuffer(tensor, np.uint8))[:] = np.frombuffer(data, np.uint8).reshape(self.count, self.run)

    def _runs(self, tensor: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A view (count, run) of the tensor's bytes."""
        stop = self.start + (self.count - 1) * self.pitch + self.run
        return np.lib.stride_tricks.as_strided(tensor[self.start : stop], (self.count, self.run), (self.pitch, 1))

    def between(self, start: int, stop: int) -> Iterator["Part"]:
        """What of it lies in bytes [start, stop) of the tensor, in order, as parts of these."""
        first, last = self._before(start), self._before(stop)
        while first < last:
            row, column = divmod(first, self.run)
            at = self.start + row * self.pitch + column - start
            rows = 0 if column else (last - first) // self.run
            if rows > 1:
                yield Part(at, self.run, rows, self.pitch)
                first += rows * self.run
            else:
                length = min(self.run - column, last - first)
                yield Part(at, length)
                first += length

    def _before(self, place: int) -> int:
        """How many of its bytes lie before a place in the tensor."""
        if place <= self.start:
            return 0
        row, column = divmod(place - self.start, self.pitch) if self.pitch else (0, place - self.start)
        return min(row * self.run + min(column, self.run), self.nbytes)


def box(
    shape: Sequence[int], start: Sequence[int], sizes: Sequence[int], cut: int, element_bytes: int
) -> Iterator[Part]:
    """The parts that an array of `sizes`, from `start` on, is of one of `shape`, in the order of its own bytes.

    `cut` is the last dimension that it does not have all of, or a later one.
    """
    inner = element_bytes * prod(shape[cut + 1 :])
    pitch, run = inner * shape[cut], inner * sizes[cut]
    strides = [prod(shape[axis + 1 : cut]) for axis in range(cut)]
    whole = next((axis for axis in range(cut) if tuple(sizes[axis + 1 : cut]) == tuple(shape[axis + 1 : cut])), cut)
    rows = prod(sizes[whole:cut])
    for place in product(*map(range, sizes[:whole])):
        outer = [*(at + by for at, by in zip(start[:whole], place, strict=True)), *start[whole:cut]]
        row = sum(at * stride for at, stride in zip(outer, strides, strict=True))
        first = row * pitch + inner * start[cut]
        yield Part(first, rows * run) if run == pitch or rows == 1 else Part(first, run, rows, pitch)


def cover(parts: Sequence[Part], nbytes: int) -> bool:
    """Whether each byte of a tensor lies in one of them, and in one alone; those of several runs have one pitch.

    Seen as rows of the length of the pitch each part is a rectangle or a few. What of a row's places has a rectangle
    that ends there has another one that begins there.
    """
    pitches = {part.pitch for part in parts if part.count > 1} or {max(nbytes, 1)}
    pitch = pitches.pop()
    if pitches or nbytes % pitch:
        return False
    begins, ends = defaultdict[int, list[Interval]](list), defaultdict[int, list[Interval]](list)
    for part in parts:
        for row, rows, places in _rectangles(part, pitch):
            begins[row].append(places)
            ends[row + rows].append(places)
    begins[nbytes // pitch] += [(0, pitch)]
    ends[0] += [(0, pitch)]
    return all(
        (merged := _merged(begins.get(row, ()))) is not None and merged == _merged(ends.get(row, ()))
        for row in begins.keys() | ends.keys()
    )


def _rectangles(part: Part, pitch: int) -> Iterator[tuple[int, int, Interval]]:
    """Its first row, the number of rows, and what it has of each."""
    if part.count > 1:
        row, left = divmod(part.start, pitch)
        yield row, part.count, (left, left + part.run)
        return
    start, stop = part.start, part.start + part.run
    while start < stop:
        row, left = divmod(start, pitch)
        rows = 0 if left else (stop - start) // pitch
        length = rows * pitch or min(pitch - left, stop - start)
        yield row, rows or 1, (left, left + length // (rows or 1))
        start += length


def _merged(intervals: Iterable[Interval]) -> list[Interval] | None:
    """Sorted, those that touch in one; None if two overlap."""
    found: list[Interval] = []
    for left, right in sorted(intervals):
        if found and left < found[-1][1]:
            return None
        if found and left == found[-1][1]:
            found[-1] = (found[-1][0], right)
        else:
            found.append((left, right))
    return found
