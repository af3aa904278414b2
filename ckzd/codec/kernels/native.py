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

VERSION = 4  # of native.c, which says it too: what was built from an older source is not called

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
        where = _int(rows), _int(columns), number
        self._built.ckzd_gather(_at(levels), *where, _at(symbols), _at(sums.rows), _at(sums.columns))
        return symbols

    def scatter(self, symbols: Symbols, number: int, escapes: Plane, levels: Plane, sums: Lines) -> int:
        """See `plain`."""
        where = *map(_int, levels.shape), number
        beyond = _at(escapes), _int(escapes.size)
        used = int(
            self._built.ckzd_scatter(_at(symbols), *where, *beyond, _at(levels), _at(sums.rows), _at(sums.columns))
        )
        if used < 0:
            raise ValueError(f"{escapes.size} escapes but symbols that ask for more")
        return used

    def line_sums(self, levels: ContextLevels) -> Lines:
        """See `plain`."""
        rows, columns = levels.shape
        sums = Lines.zeros((rows, columns))
        self._built.ckzd_line_sums(_at(levels), _int(rows), _int(columns), _at(sums.rows), _at(sums.columns))
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
        seen = [None if each is None else _at(each) for each in (guide, second)]
        ids = np.empty(elements_of(number, rows, columns), np.uint8)
        where = _int(rows), _int(columns), number
        classes = _at(energy_class), _int(energy_class.size - 1)
        self._built.ckzd_contexts(
            *where, _at(energies.rows), _at(energies.columns), *classes, *seen, second_alone, _at(ids)
        )
        return ids

    def count(self, ids: Ids, symbols: Symbols, contexts: int) -> Sums:
        """See `plain`."""
        cells = np.zeros((contexts, ALPHABET), np.int64)
        self._built.ckzd_count(_at(ids), _at(symbols), _int(ids.size), _at(cells))
        return cells

    def rans_encode(
        self, symbols: Symbols, ids: Ids, passes: list[int], cumulative: Cumulative, lanes: int
    ) -> tuple[States, Words]:
        """See `plain`."""
        states, words = np.empty(lanes, np.uint32), np.empty(symbols.size, np.uint16)
        lengths = np.array(passes, np.int64)
        start = self._built.ckzd_rans_encode(
            _at(symbols), _at(ids), _at(lengths), len(passes), _at(cumulative), _int(lanes), _at(states), _at(words),
            _int(words.size),
        )  # fmt: skip
        return states, words[start:]

    def rans_decode(
        self, ids: Ids, cumulative: Cumulative, states: States, words: Words, at: int
    ) -> tuple[Symbols, int]:
        """See `plain`."""
        symbols = np.empty(ids.size, np.uint8)
        at = self._built.ckzd_rans_decode(
            _at(ids), _int(ids.size), _at(cumulative), _int(states.size), _at(states), _at(words), _int(words.size),
            _int(at), _at(symbols),
        )  # fmt: skip
        if at < 0:
            raise ValueError(f"{words.size} words of symbols that ask for more")
        return symbols, at

    def quantize(self, values: Float64, step: float, dead_zone: float) -> tuple[Plane, Sums, Sums]:
        """See `plain`."""
        values, levels = np.ascontiguousarray(values), np.empty(values.shape, np.int16)
        sums, counts = np.zeros((2, CENTRED_LEVELS), np.int64)
        how = ctypes.c_double(step), ctypes.c_double(1.0 - dead_zone)
        self._built.ckzd_quantize(_at(values), _int(values.size), *how, _at(levels), _at(sums), _at(counts))
        return levels, sums, counts

    def dequantize(self, levels: Plane, restored: Float64, step: float) -> Float64:
        """See `plain`."""
        levels, values = np.ascontiguousarray(levels), np.empty(levels.shape)
        self._built.ckzd_dequantize(_at(levels), _int(levels.size), _at(restored), ctypes.c_double(step), _at(values))
        return values

    def near_sums(self, levels: Plane) -> Lines:
        """See `plain`."""
        levels, (rows, columns) = np.ascontiguousarray(levels), levels.shape
        sums = Lines.zeros((rows, columns))
        self._built.ckzd_near_sums(_at(levels), _int(rows), _int(columns), _at(sums.rows), _at(sums.columns))
        return sums

    def class_counts(self, levels: Plane, row_logs: Float64, column_logs: Float64) -> Sums:
        """See `plain`."""
        levels, counts = np.ascontiguousarray(levels), np.zeros((CLASSES, NEAREST + 1), np.int64)
        shape = map(_int, levels.shape)
        self._built.ckzd_class_counts(_at(levels), *shape, _at(row_logs), _at(column_logs), _at(counts))
        return counts

    def orthonormal(self, rows: Float64) -> Float64:
        """See `plain`."""
        rows = np.ascontiguousarray(rows).copy()
        across, done = np.zeros((2, MAX_DIRECTIONS, MAX_DIRECTIONS))
        for each in rows:
            self._built.ckzd_orthonormal(_at(each), _int(len(each)), _at(across), _at(done))
        return rows


def _at(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous, "kernels know no strides"
    return ctypes.c_void_p(array.ctypes.data)


def _int(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)
