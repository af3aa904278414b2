"""What gives a context its symbol frequencies: tables, and a plane's own correction.

All frequencies are integer-valued float64, at least 1; products of them stay far below 2**53, so that they are exact.

# G = contexts of the grid, A = alphabet
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ckzd.codec import zstd
from ckzd.codec.arrays import Codes, Float64
from ckzd.codec.entropy import context
from ckzd.codec.entropy.context import GRID
from ckzd.codec.entropy.range_coder import Ids, Rows
from ckzd.codec.entropy.tables import FREQUENCY
from ckzd.codec.kernels.plain import ALPHABET

Counts = npt.NDArray[np.int64]

_FREQUENCIES = np.array(FREQUENCY, np.float64)
_NEUTRAL_CODE = 128
COARSE = 5 * 24  # guide x energy: the first two classes of a context
_COARSE_OF = np.arange(GRID) // (GRID // COARSE)
_NEUTRAL_FACTOR = 256.0
_BIAS_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often each symbol follows each context that occurs."""

    used: npt.NDArray[np.int64]  # (U,): grid ids, ascending
    counts: Counts  # (U, A)

    @classmethod
    def of(cls, ids: Ids, symbols: npt.NDArray[np.uint8]) -> "Histogram":
        """Count symbols (N,) by the context of each (N,)."""
        used = np.flatnonzero(np.bincount(ids, minlength=GRID))
        place = np.zeros(GRID, np.int64)
        place[used] = np.arange(used.size)
        cells = np.bincount(place[ids] * ALPHABET + symbols, minlength=used.size * ALPHABET)
        return cls(used, cells.reshape(-1, ALPHABET))

    @classmethod
    def of_grid(cls, counts: Counts) -> "Histogram":
        """From counts of the whole grid, (GRID, A)."""
        used = np.flatnonzero(counts.any(1))
        return cls(used, counts[used])

    def coarse(self) -> Counts:
        """Summed over what the tables do not tell apart, (120, A)."""
        place = self.used // (GRID // COARSE)
        cells = place[:, None] * ALPHABET + np.arange(ALPHABET)
        summed = np.bincount(cells.ravel(), self.counts.ravel(), COARSE * ALPHABET)  # float64 holds counts exactly
        return summed.reshape(COARSE, ALPHABET).astype(np.int64)


Histograms = dict[tuple[int, int, int], Histogram]  # by kind, pass and density


class Model(Protocol):
    """Gives each context's symbol frequencies."""

    def rows(self, kind: int, number: int, density: int) -> Rows:
        """Frequencies (GRID, A), integer-valued, of all contexts of a plane kind, pass and density."""
        ...


class TableModel:
    """Static tables over the first two classes of a context, guide and energy, for each kind and density."""

    def __init__(self, codes: Mapping[tuple[int, int], Codes]) -> None:
        self._codes = dict(codes)  # (kind, density) -> (120, A) frequency codes
        self._rows: dict[tuple[int, int], Rows] = {}

    def coarse_rows(self, kind: int, density: int) -> Rows:
        """Frequencies (120, A) of the contexts that the tables tell apart."""
        return self.rows(kind, 0, density)[:: GRID // COARSE]

    def rows(self, kind: int, number: int, density: int) -> Rows:  # noqa: ARG002  # one table for all passes
        """Frequencies of all contexts; even odds where no table was sent."""
        key = (kind, density)
        if key not in self._rows:
            codes = self._codes.get(key)
            self._rows[key] = np.ones((GRID, ALPHABET)) if codes is None else _FREQUENCIES[codes[_COARSE_OF]]
        return self._rows[key]

    def to_bytes(self) -> bytes:
        """Zstd of (kind, density, 120 x A codes) records in ascending order."""
        records = [bytes(key) + codes.tobytes() for key, codes in sorted(self._codes.items())]
        return zstd.compress(b"".join(records))

    @classmethod
    def from_bytes(cls, data: bytes) -> "TableModel":
        """The inverse of `to_bytes`; ValueError if it is malformed."""
        size = 2 + COARSE * ALPHABET
        limit = size * context.KINDS * context.DENSITIES
        plain = zstd.decompress(data, limit) if data else b""
        if len(plain) % size:
            raise ValueError(f"expected records of {size} bytes, got {len(plain)} bytes")
        records = [plain[start : start + size] for start in range(0, len(plain), size)]
        return cls({(r[0], r[1]): np.frombuffer(r[2:], np.uint8).reshape(-1, ALPHABET) for r in records})


def table_rows(codes: Codes) -> Rows:
    """Frequencies of codes, (..., A)."""
    rows: Rows = _FREQUENCIES[codes]
    return rows


def smoothed(table: Float64) -> Float64:
    """Each cell of a table of counts (120, A) pulled towards the average."""
    return table + 2 * _average(table)


def _average(table: Float64) -> Float64:
    return np.asarray((table.sum(0) + 1e-3) / (table.sum() + 1e-3 * ALPHABET), np.float64)


def frequency_codes(counts: Float64) -> Codes:
    """Counts (..., A) -> codes into FREQUENCY, the likeliest symbol of each row at 2**15."""
    relative = counts / counts.max(-1, keepdims=True)
    return _rounded_codes(16 * (15 + np.log2(np.maximum(relative, 2.0**-15))))


def product(frequencies: Rows, factors: Float64) -> Rows:
    """Frequencies times factors in 1/256, rounded down, at least 1."""
    return np.asarray(np.floor(frequencies * factors / _NEUTRAL_FACTOR) + 1, np.float64)


@dataclass(frozen=True, slots=True)
class Models:
    """What an archive carries to code its planes with."""

    tables: TableModel = field(default_factory=lambda: TableModel({}))
    lstm: Model | None = None  # the tables, refined: of the preset `paper`


Seen = list[tuple[Float64, Rows]]  # of each context that occurs: symbol counts and the model's frequencies, (U, A) each


def seen(histograms: Histograms, model: Model) -> Seen:
    """What occurs, and what the model makes of it."""
    found = []
    for (kind, number, density), histogram in histograms.items():
        rows = model.rows(kind, number, density)[histogram.used]
        found.append((histogram.counts.astype(np.float64), rows))
    return found


def cost_bits(what: Seen) -> float:
    """Ideal length of all these symbols; for choosing, never for decoding."""
    return -sum(float((counts * np.log2(rows / rows.sum(1, keepdims=True))).sum()) for counts, rows in what)


def biased(what: Seen, codes: Codes) -> Seen:
    """What occurs, as `BiasedModel(model, codes)` would predict it."""
    return [(counts, product(rows, _FREQUENCIES[codes])) for counts, rows in what]


class UniformModel:
    """The order-0 coder's model: one row for all contexts."""

    def __init__(self, codes: Codes) -> None:
        self._rows = np.broadcast_to(_FREQUENCIES[codes], (GRID, ALPHABET))

    def rows(self, kind: int, number: int, density: int) -> Rows:  # noqa: ARG002  # the same for all
        """The one row, GRID times."""
        return self._rows


class BiasedModel:
    """A model shared by all planes, its frequencies multiplied by this plane's own factor for each symbol."""

    def __init__(self, model: Model, codes: Codes) -> None:
        self._model = model
        self._factors = _FREQUENCIES[codes]

    def rows(self, kind: int, number: int, density: int) -> Rows:
        """Frequencies (GRID, A) with the plane's own correction."""
        return product(self._model.rows(kind, number, density), self._factors)


def fit_bias(what: Seen) -> Codes:
    """Factors that make the model's expected symbol counts meet the actual ones (iterative scaling)."""
    actual = np.zeros(ALPHABET) + sum(counts.sum(0) for counts, _ in what)
    factors = np.ones(ALPHABET)
    for _ in range(_BIAS_ROUNDS):
        expected = np.zeros(ALPHABET)
        for counts, rows in what:
            weighted = rows * factors
            expected += (counts.sum(1, keepdims=True) * weighted / weighted.sum(1, keepdims=True)).sum(0)
        factors *= (actual + 0.5) / (expected + 0.5)
    return _rounded_codes(16 * np.log2(factors) + _NEUTRAL_CODE)


def _rounded_codes(exact: Float64) -> Codes:
    nearest: Codes = np.clip(np.rint(exact), 0, 255).astype(np.uint8)
    return nearest
