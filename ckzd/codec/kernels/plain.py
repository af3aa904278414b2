"""The kernels in NumPy: what each of them is, and what a machine without a compiler runs.

`native.c` has the same loops, faster. Both give the same bits (`tests/codec/kernels`), so an archive and a restore do
not depend on which of them ran.

# R = rows, C = columns of a plane; N = elements of a pass; D = contexts, A = alphabet; L = lanes
# K = matrices that are worked on together, B = directions of each, at most `MAX_DIRECTIONS`
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ckzd.codec.arrays import MAX_LEVEL, ContextLevels, Float64, HalfOctaves, Plane

Symbols = npt.NDArray[np.uint8]  # (N,)
Ids = npt.NDArray[np.uint8]  # (N,): contexts of the tables
Sums = npt.NDArray[np.int64]  # (R,) or (C,)
Magnitudes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint16]
States = npt.NDArray[np.uint32]  # (L,)
Cumulative = npt.NDArray[np.uint16]  # (D, 32): how often symbols below each are, of 2**15; 2**15 from the 18th on

ALPHABET = 18  # zigzag levels -8..8 and an escape
ESCAPE = ALPHABET - 1
MAX_SYMBOL_LEVEL = 8
MAGNITUDE_LIMIT = 15  # a single outlier must not colour its whole row
ENERGY_CLASSES = 24
MEAN_SECOND = np.int16(12)  # class of a second moment as large as the mean of its plane, half octaves apart
TOTAL_BITS = 15  # of the frequencies of a context together
CENTRED_LEVELS = 3  # |level| 1..3 restore at their own mean
NEAREST, CLASSES = 9, 48  # magnitudes and classes that an estimate of a plane's bits tells apart
LEAST = 1 << 16  # of a lane's state between two symbols
_LANE_BITS = 16  # of a word
_FULL_BITS = 32 - TOTAL_BITS  # a state that is as many times a frequency gives a word away first
MAX_DIRECTIONS = 256
ROW_BITS = 18  # of the vectors that `orthonormal` returns
_WORK_BITS = 22  # of a row on its way there: 256 squares stay under 2**53
_PANEL = 16  # rows that are made orthogonal one by one; against earlier panels they are projected together

# 0 for 0, then +, - up to 2, then +, - beyond; of an int8 seen as uint8
SIGNED_CLASS = np.array([0, 1, 1] + [3] * 125 + [4] * 126 + [2, 2], np.int16)
_PASS_OF_DIAGONAL = np.array([0, 3, 2, 3, 1, 3, 2, 3], np.uint8)


@dataclass(frozen=True, slots=True)
class Lines:
    """A number of every row and of every column of a plane."""

    rows: Sums  # (R,)
    columns: Sums  # (C,)

    @classmethod
    def zeros(cls, shape: tuple[int, int]) -> Self:
        """To be added to."""
        return cls(np.zeros(shape[0], np.int64), np.zeros(shape[1], np.int64))

    def add(self, other: "Lines") -> None:
        """Add another one's numbers."""
        self.rows[...] += other.rows
        self.columns[...] += other.columns


# Symbols and their contexts


def lattice(shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The pass in which each element is coded; (R, C)."""
    rows, columns = shape
    eight = _PASS_OF_DIAGONAL[(np.arange(8)[:, None] + np.arange(columns)) & 7]
    return np.tile(eight, (-(-rows // 8), 1))[:rows]


def magnitudes(levels: npt.NDArray[np.signedinteger]) -> Magnitudes:
    """|level|, cut off at 15."""
    near = np.clip(levels, -MAGNITUDE_LIMIT, MAGNITUDE_LIMIT)
    return np.asarray(np.abs(near), np.uint8)


def to_symbols(levels: Plane) -> Symbols:
    """Zigzag: 0, 1, -1, 2, -2, ... 8, -8 -> 0..16; everything beyond is the escape."""
    near = np.clip(levels, -MAX_SYMBOL_LEVEL - 1, MAX_SYMBOL_LEVEL + 1)
    return np.minimum(np.where(near > 0, 2 * near - 1, -2 * near), ESCAPE).astype(np.uint8)


def to_levels(symbols: npt.NDArray[np.integer], escapes: Plane) -> Plane:
    """The inverse; `escapes` are the levels beyond, in their order, as many as there are."""
    wide = symbols.astype(np.int16)
    levels = np.where(wide & 1, (wide + 1) >> 1, -(wide >> 1)).astype(np.int16)
    levels[symbols == ESCAPE] = escapes
    return levels


def gather(levels: Plane, number: int, sums: Lines) -> Symbols:
    """The symbols of a pass of a plane (R, C) in coding order; adds their magnitudes to the sums of their lines."""
    here = lattice(levels.shape) == number
    _add(np.where(here, magnitudes(levels), np.uint8(0)), sums)
    return to_symbols(levels[here])


def scatter(symbols: Symbols, number: int, escapes: Plane, levels: Plane, sums: Lines) -> int:
    """The inverse of `gather`, into `levels`; how many escapes it took, ValueError if there are not so many."""
    count = int(np.count_nonzero(symbols == ESCAPE))
    if count > escapes.size:
        raise ValueError(f"{escapes.size} escapes but symbols that ask for more")
    here, found = lattice(levels.shape) == number, to_levels(symbols, escapes[:count])
    levels[here] = found
    known = np.zeros(levels.shape, np.uint8)
    known[here] = magnitudes(found)
    _add(known, sums)
    return count


def line_sums(levels: ContextLevels) -> Lines:
    """Sums of magnitudes of all rows and of all columns of (R, C)."""
    sums = Lines.zeros((levels.shape[0], levels.shape[1]))
    _add(magnitudes(levels), sums)
    return sums


def _add(magnitude: Magnitudes, sums: Lines) -> None:
    sums.rows[...] += magnitude.sum(1, dtype=np.int64)
    sums.columns[...] += magnitude.sum(0, dtype=np.int64)


def contexts(
    number: int,
    energies: Lines,
    energy_class: npt.NDArray[np.int16],
    guide: ContextLevels | None,
    second: HalfOctaves | None,
    *,
    second_alone: bool,
) -> Ids:
    """Class of side information x class of energy of each element of a pass, in coding order.

    An element's energy is its row's times its column's in 2**-12; `energy_class` is looked up there, at its end for all
    beyond. Half octaves of a second moment come on top of the class, or stand for it (`second_alone`).
    """
    here = lattice((energies.rows.size, energies.columns.size)) == number
    relative = (energies.rows[:, None] * energies.columns)[here] >> 12
    energy = energy_class[np.clip(relative, 0, energy_class.size - 1)]  # negative: a total that no encoder writes
    if second is not None:
        energy = np.clip(second[here] + (MEAN_SECOND if second_alone else energy), 0, ENERGY_CLASSES - 1)
    if guide is not None:
        energy = energy + np.int16(ENERGY_CLASSES) * SIGNED_CLASS[guide.view(np.uint8)[here]]
    ids: Ids = energy.astype(np.uint8)
    return ids


def count(ids: Ids, symbols: Symbols, contexts: int) -> Sums:
    """How often each symbol follows each context, (D, A)."""
    cells = np.bincount(ids.astype(np.int64) * ALPHABET + symbols, minlength=contexts * ALPHABET)
    return cells.reshape(contexts, ALPHABET)


# rANS in lanes (Duda 2013; interleaved as by Giesen 2014): symbol n of a pass is coded by lane n mod L


def rans_encode(
    symbols: Symbols, ids: Ids, passes: list[int], cumulative: Cumulative, lanes: int
) -> tuple[States, Words]:
    """Symbols of all passes, one after the other, `passes` of each; the lanes' states and the words to decode them."""
    states, words, stop = np.full(lanes, LEAST, np.uint64), [], symbols.size
    low = cumulative[ids, symbols].astype(np.uint64)
    frequency = cumulative[ids, symbols.astype(np.int64) + 1] - low
    for length in reversed(passes):
        start = stop - length
        for first in reversed(range(start, stop, lanes)):
            part = slice(first, min(first + lanes, stop))
            x, each = states[: part.stop - first], frequency[part]
            full = x >> np.uint64(_FULL_BITS) >= each
            words.append((x[full] & np.uint64(0xFFFF)).astype(np.uint16))
            x = np.where(full, x >> np.uint64(_LANE_BITS), x)
            states[: part.stop - first] = ((x // each) << np.uint64(TOTAL_BITS)) + x % each + low[part]
        stop = start
    return states.astype(np.uint32), np.concatenate([np.empty(0, np.uint16), *reversed(words)])


def rans_decode(ids: Ids, cumulative: Cumulative, states: States, words: Words, at: int) -> tuple[Symbols, int]:
    """The symbols of the next pass, and the place of the next word; ValueError if there are too few words."""
    symbols, lanes, total = np.empty(ids.size, np.uint8), states.size, 1 << TOTAL_BITS
    used, where = np.unique(ids, return_inverse=True)
    low = cumulative[used].astype(np.uint32)
    symbol_at = np.stack([np.repeat(np.arange(row.size - 1), np.diff(row)) for row in low]) if used.size else low
    symbol_at, share, row = symbol_at.astype(np.uint8).ravel(), np.diff(low).ravel(), low.shape[1]
    tables, rows, shares = where * total, where * row, where * (row - 1)  # of each symbol, in those flat arrays
    low = low.ravel()
    for first in range(0, ids.size, lanes):
        part = slice(first, min(first + lanes, ids.size))
        x = states[: part.stop - first]
        slot = x & np.uint32(total - 1)
        found = symbol_at[tables[part] + slot]
        symbols[part] = found
        x[...] = share[shares[part] + found] * (x >> np.uint32(TOTAL_BITS)) + slot - low[rows[part] + found]
        empty = np.flatnonzero(x < LEAST)
        if at + empty.size > words.size:
            raise ValueError(f"{words.size} words of symbols that ask for more")
        x[empty] = x[empty] << np.uint32(_LANE_BITS) | words[at : at + empty.size]
        at += empty.size
    return symbols, at


# Levels


def quantize(values: Float64, step: float, dead_zone: float) -> tuple[Plane, Sums, Sums]:
    """Levels of values (R, C); of those of magnitude 1 to 3 the sum of |value| / step in 2**-20, and how many, (3,)."""
    relative = values / step
    size = np.abs(relative)
    magnitude = np.minimum(np.floor(size + (1.0 - dead_zone)), MAX_LEVEL)
    inside = [size[magnitude == level] for level in range(1, CENTRED_LEVELS + 1)]
    sums = [np.rint(np.minimum(each, 4.0) * 2.0**20).astype(np.int64).sum() for each in inside]
    levels: Plane = np.copysign(magnitude, relative).astype(np.int16)
    return levels, np.array(sums, np.int64), np.array([each.size for each in inside], np.int64)


def dequantize(levels: Plane, restored: Float64, step: float) -> Float64:
    """Values (R, C) of levels, given what magnitudes 1 to 3 restore to in steps (3,); the others are themselves."""
    values = levels.astype(np.float64)
    magnitude = np.abs(values)
    for level, inside in enumerate(restored.tolist(), start=1):
        magnitude[np.abs(levels) == level] = inside
    return np.copysign(magnitude, values) * step


def near_sums(levels: Plane) -> Lines:
    """Sums of magnitudes, cut off at 9, of all rows and of all columns of (R, C)."""
    near = np.minimum(np.abs(levels.astype(np.int64)), NEAREST)
    return Lines(near.sum(1), near.sum(0))


def class_counts(levels: Plane, row_logs: Float64, column_logs: Float64) -> Sums:
    """How often magnitudes, cut off at 9, follow quarters of an octave of row times column, (48, 10)."""
    near = np.minimum(np.abs(levels.astype(np.int64)), NEAREST)
    classes = np.floor(4.0 * np.add.outer(row_logs, column_logs)) + CLASSES // 2
    cells = np.clip(classes, 0, CLASSES - 1).astype(np.int64) * (NEAREST + 1) + near
    return np.bincount(cells.ravel(), minlength=CLASSES * (NEAREST + 1)).reshape(CLASSES, NEAREST + 1)


# Adaptive bases: integers in float64, whose sums stay under 2**53, so that no order of summation can change them


def shifted(values: Float64, bits: int) -> Float64:
    """Integers times 2**bits, rounded to integers, ties to even; zeros positive: BLAS does not say which it gives."""
    product = values * 2.0**bits
    np.rint(product, out=product)
    product += 0.0
    return product


def orthonormal(rows: Float64) -> Float64:
    """The rows (K, B, B), of full rank, made orthonormal from the first to the last (Gram-Schmidt, each panel twice).

    In 2**-18. Of rows of lower rank some may come out alike; one that vanishes becomes a unit vector.
    """
    done = np.zeros_like(rows)
    for start in range(0, rows.shape[1], _PANEL):
        panel, before = _scaled(rows[:, start : start + _PANEL]), done[:, :start]
        for _ in range(2):
            shares = shifted(panel @ before.swapaxes(1, 2), -ROW_BITS)
            panel = _gram_schmidt(_scaled(panel - shifted(shares @ before, -ROW_BITS)), start)
        done[:, start : start + _PANEL] = panel
    return done


def _scaled(rows: Float64) -> Float64:
    """Each row times a power of two, so that its largest magnitude is a number of 22 bits."""
    _, exponents = np.frexp(np.abs(rows).max(-1, keepdims=True))
    units = np.ldexp(1.0, _WORK_BITS - exponents)  # a product is exact, and a tenth of the time of an ldexp a number
    scaled: Float64 = rows * units
    np.rint(scaled, out=scaled)
    return scaled


def _gram_schmidt(panel: Float64, start: int) -> Float64:
    """The panel's rows, orthonormal among themselves, in 2**-18."""
    rows = panel.swapaxes(0, 1).copy()  # those still to come are one piece of memory
    scratch = np.empty_like(rows)
    for number in range(len(rows)):
        row, rest, along = rows[number], rows[number + 1 :], scratch[number + 1 :]
        square = np.einsum("kn,kn->k", row, row)[:, None]
        if not square.all():
            row[square[:, 0] == 0, start + number] = 1.0
            square = np.maximum(square, 1.0)
        row *= 2.0**ROW_BITS / np.sqrt(square)
        np.rint(row, out=row)
        shares = shifted(rest.swapaxes(0, 1) @ row[..., None], -ROW_BITS)[..., 0]
        np.einsum("kr,kn->rkn", 2.0**-ROW_BITS * shares, row, out=along)  # broadcasting takes twice as long
        rest -= np.rint(along, out=along)
    return rows.swapaxes(0, 1)
