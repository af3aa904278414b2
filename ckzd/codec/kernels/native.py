"""The kernels of `native.c`: see `plain` for what each of them is.

They are called through ctypes, which lets go of the interpreter's lock while they run.
"""

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ckzd.codec.arrays import ContextLevels, Float64, HalfOctaves, Plane
from ckzd.codec.kernels.plain import (
    ALPHABET,
    CENTRED_LEVELS,
    CLASSES,
    MAX_DIRECTIONS,
    NEAREST,
    Cumulative,
    Ids,
    Lines,
    States,
    Sums,
    Symbols,
    Words,
)

VERSION = 5  # of native.c, which says it too: what was built from an older source is not called

_SPACING = (8, 8, 4, 2)
_OFFSET = (0, 4, 2, 1)


def library() -> ctypes.CDLL | None:
    """What was built when this ckzd was installed; None where there was no compiler, or if it is of another source."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        try:
            found = ctypes.CDLL(str(path))
            return found if found.ckzd_version() == VERSION else None
        except (OSError, AttributeError):
            continue
    return None


def elements_of(number: int, rows: int, columns: int) -> int:
    """How many elements of a plane are coded in a pass."""
    spacing, offset = _SPACING[number], _OFFSET[number]
    by_row = [max(0, -(-(columns - (offset - row) % spacing) // spacing)) for row in range(spacing)]
    whole, rest = divmod(rows, spacing)
    return whole * sum(by_row) + sum(by_row[:rest])


class Native:
    """The functions of `plain`, of a library that was built."""

    def __init__(self, built: ctypes.CDLL) -> None:
        for name in ("gather", "scatter", "rans_encode", "rans_decode"):
            getattr(built, f"ckzd_{name}").restype = ctypes.c_int64
        self._built = built

    def gather(self, levels: Plane, number: int, sums: Lines) -> Symbols:
        """See `plain`."""
        rows, columns = levels.shape
        symbols = np.empty(elements_of(number, rows, columns), np.uint8)
        where = int64(rows), int64(columns), number
        self._built.ckzd_gather(address(levels), *where, address(symbols), address(sums.rows), address(sums.columns))
        return symbols

    def scatter(self, symbols: Symbols, number: int, escapes: Plane, levels: Plane, sums: Lines) -> int:
        """See `plain`."""
        where = *map(int64, levels.shape), number
        beyond = address(escapes), int64(escapes.size)
        used = int(
            self._built.ckzd_scatter(
                address(symbols), *where, *beyond, address(levels), address(sums.rows), address(sums.columns)
            )
        )
        if used < 0:
            raise ValueError(f"{escapes.size} escapes but symbols that ask for more")
        return used

    def line_sums(self, levels: ContextLevels) -> Lines:
        """See `plain`."""
        rows, columns = levels.shape
        sums = Lines.zeros((rows, columns))
        self._built.ckzd_line_sums(
            address(levels), int64(rows), int64(columns), address(sums.rows), address(sums.columns)
        )
        return sums

    def contexts(
        self,
        number: int,
        energies: Lines,
        energy_class: npt.NDArray[np.int16],
        guide: ContextLevels | None,
        second: HalfOctaves | None,
        *,
        second_alone: bool,
    ) -> Ids:
        """See `plain`."""
        rows, columns = energies.rows.size, energies.columns.size
        seen = [None if each is None else address(each) for each in (guide, second)]
        ids = np.empty(elements_of(number, rows, columns), np.uint8)
        where = int64(rows), int64(columns), number
        classes = address(energy_class), int64(energy_class.size - 1)
        self._built.ckzd_contexts(
            *where, address(energies.rows), address(energies.columns), *classes, *seen, second_alone, address(ids)
        )
        return ids

    def count(self, ids: Ids, symbols: Symbols, contexts: int) -> Sums:
        """See `plain`."""
        cells = np.zeros((contexts, ALPHABET), np.int64)
        self._built.ckzd_count(address(ids), address(symbols), int64(ids.size), address(cells))
        return cells

    def rans_encode(
        self, symbols: Symbols, ids: Ids, passes: list[int], cumulative: Cumulative, lanes: int
    ) -> tuple[States, Words]:
        """See `plain`."""
        states, words = np.empty(lanes, np.uint32), np.empty(symbols.size, np.uint16)
        lengths = np.array(passes, np.int64)
        start = self._built.ckzd_rans_encode(
            address(symbols), address(ids), address(lengths), len(passes), address(cumulative), int64(lanes),
            address(states), address(words), int64(words.size),
        )  # fmt: skip
        return states, words[start:]

    def rans_decode(
        self, ids: Ids, cumulative: Cumulative, states: States, words: Words, at: int
    ) -> tuple[Symbols, int]:
        """See `plain`."""
        symbols = np.empty(ids.size, np.uint8)
        at = self._built.ckzd_rans_decode(
            address(ids), int64(ids.size), address(cumulative), int64(states.size), address(states), address(words),
            int64(words.size), int64(at), address(symbols),
        )  # fmt: skip
        if at < 0:
            raise ValueError(f"{words.size} words of symbols that ask for more")
        return symbols, at

    def quantize(self, values: Float64, step: float, dead_zone: float) -> tuple[Plane, Sums, Sums]:
        """See `plain`."""
        values, levels = np.ascontiguousarray(values), np.empty(values.shape, np.int16)
        sums, counts = np.zeros((2, CENTRED_LEVELS), np.int64)
        how = ctypes.c_double(step), ctypes.c_double(1.0 - dead_zone)
        self._built.ckzd_quantize(
            address(values), int64(values.size), *how, address(levels), address(sums), address(counts)
        )
        return levels, sums, counts

    def dequantize(self, levels: Plane, restored: Float64, step: float) -> Float64:
        """See `plain`."""
        levels, values = np.ascontiguousarray(levels), np.empty(levels.shape)
        self._built.ckzd_dequantize(
            address(levels), int64(levels.size), address(restored), ctypes.c_double(step), address(values)
        )
        return values

    def near_sums(self, levels: Plane) -> Lines:
        """See `plain`."""
        levels, (rows, columns) = np.ascontiguousarray(levels), levels.shape
        sums = Lines.zeros((rows, columns))
        self._built.ckzd_near_sums(
            address(levels), int64(rows), int64(columns), address(sums.rows), address(sums.columns)
        )
        return sums

    def class_counts(self, levels: Plane, row_logs: Float64, column_logs: Float64) -> Sums:
        """See `plain`."""
        levels, counts = np.ascontiguousarray(levels), np.zeros((CLASSES, NEAREST + 1), np.int64)
        shape = map(int64, levels.shape)
        self._built.ckzd_class_counts(address(levels), *shape, address(row_logs), address(column_logs), address(counts))
        return counts

    def orthonormal(self, rows: Float64) -> Float64:
        """See `plain`."""
        rows = np.ascontiguousarray(rows).copy()
        across, done = np.zeros((2, MAX_DIRECTIONS, MAX_DIRECTIONS))
        for each in rows:
            self._built.ckzd_orthonormal(address(each), int64(len(each)), address(across), address(done))
        return rows


def address(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    """Where an array lies."""
    assert array.flags.c_contiguous, "kernels know no strides"
    return ctypes.c_void_p(array.ctypes.data)


def int64(value: int) -> ctypes.c_int64:
    """A number as C takes it."""
    return ctypes.c_int64(value)
