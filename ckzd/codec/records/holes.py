"""A file and its holes, as an index lists them: lists of numbers.

`Made` are the CRC-32s that fingerprints are made of beside that of a storage, each pair of lists of them once.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ckzd.checkpoint import FileLayout, FileStat, Hole
from ckzd.fingerprints import Fingerprint
from ckzd.parts import Part

MAX_BYTES = 1 << 48  # of one file; more is a lie
_UNKNOWN_STAT = FileStat(0, 0, 0, 0)  # the manifest knows it

Numbers = tuple[int, ...]
Made = tuple[Numbers, Numbers]  # of the records before the storage, and behind it


def file_entry(file: FileLayout, made: dict[Made, int]) -> list[object]:
    """A file as a list; what its fingerprints are made of is numbered in `made`."""
    holes = [
        [hole.tensor, hole.offset, hole.nbytes, *_part_entry(hole), *hole.crc_offsets, *_fingerprint_entry(hole, made)]
        for hole in file.holes
    ]
    continuing = [hole.tensor for hole in file.holes if hole.continues]
    joining = [position for position, hole in enumerate(file.holes) if hole.joins]
    further = [continuing, joining] if joining else [continuing] if continuing else []
    return [file.name, file.size, holes, *further]


def _part_entry(hole: Hole) -> list[list[int]]:
    part = hole.part
    return [] if part is None else [[part.start]] if part.count == 1 else [[part.start, part.run, part.pitch]]


def _fingerprint_entry(hole: Hole, made: dict[Made, int]) -> list[list[int]]:
    found = hole.fingerprint
    if found is None:
        return []
    return [[made.setdefault((found.before, found.after), len(made)), found.offset, *found.crc_offsets]]


def file_of(made: Sequence[Made], entry: Sequence[Any]) -> FileLayout:
    """The inverse of `file_entry`; ValueError, TypeError or IndexError if it is malformed."""
    name, size, holes, *further = entry
    continuing, joining = [*further, [], []][:2] if len(further) < 3 else further  # more are too many
    carried, joined = frozenset(counts(continuing)), frozenset(counts(joining))
    found = tuple(replace(_hole(made, carried, *hole), joins=number in joined) for number, hole in enumerate(holes))
    if len(carried) + len(joined) != sum(not hole.begins_storage for hole in found):
        raise ValueError(f"file {name!r}: a tensor goes on with a storage that is not in it, or in two ways")
    return FileLayout(text(name), count(size), _UNKNOWN_STAT, found)


def _hole(
    made: Sequence[Made],
    carried: Container[int],
    tensor: int,
    offset: int,
    nbytes: int,
    *further: Any,
) -> Hole:
    """What is further: which part it is, if it is not whole, places of CRC-32s, and a fingerprint, if there is one."""
    place = count(tensor), count(offset), count(nbytes)
    is_part = bool(further) and isinstance(further[0], list)
    is_sealed = len(further) > is_part + 1 and isinstance(further[-1], list)
    part = _part(nbytes, *further[0]) if is_part else None
    fingerprint = _fingerprint(made, *counts(further[-1])) if is_sealed else None
    crcs = counts(further[is_part : len(further) - is_sealed])
    return Hole(*place, crcs, continues=tensor in carried, part=part, fingerprint=fingerprint)


def _fingerprint(made: Sequence[Made], number: int, offset: int, *crc_offsets: int) -> Fingerprint:
    before, after = made[number]
    return Fingerprint(offset, crc_offsets, before, after)


def _part(nbytes: int, start: object, run: object = None, pitch: object = 0) -> Part:
    """Of so many bytes: one run, or several, which do not overlap."""
    if run is None:
        part = Part(count(start), nbytes)
    else:
        run, pitch = count(run), count(pitch)
        part = Part(count(start), run, nbytes // max(run, 1), pitch)
    if not part.nbytes == nbytes > 0 or (run is not None and not (part.count > 1 and part.run <= part.pitch)):
        raise ValueError(f"a part of {nbytes} bytes in runs of {run} at a pitch of {pitch}")
    return part


def count(value: object) -> int:
    """A number that is one; else ValueError."""
    if type(value) is not int or not 0 <= value <= MAX_BYTES:
        raise ValueError(f"expected a number of 0..{MAX_BYTES}, got {value!r:.40}")
    return value


def counts(values: Iterable[object]) -> Numbers:
    """Numbers, each of which is one; else ValueError."""
    return tuple(count(value) for value in values)


def text(value: object) -> str:
    """A text that is one; else TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value
