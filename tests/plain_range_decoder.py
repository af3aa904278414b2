"""A range decoder in plain Python: reads the words of an archive without constriction, so that the format outlives it.

FORMAT.md, "Range coder", describes what it does. State of 64 bits, words of 32, cumulative tables of 24 bits.
"""

from collections.abc import Sequence

import numpy as np

WORD_BITS, STATE_BITS, PRECISION = 32, 64, 24
_MASK = (1 << STATE_BITS) - 1


class PlainRangeDecoder:
    """Decodes symbols one by one; float64 arithmetic is that of IEEE 754, in the order written here."""

    def __init__(self, data: bytes) -> None:
        self._words = iter(np.frombuffer(data, "<u4").tolist())
        self._range = _MASK
        self._offset = self._next_word() << WORD_BITS | self._next_word()  # point less lower end of the range

    def _next_word(self) -> int:
        return next(self._words, 0)  # the encoder leaves out what need not be said

    def symbol(self, frequencies: Sequence[float]) -> int:
        """The next symbol, coded with these frequencies (integer-valued floats)."""
        left = cumulative(frequencies)
        scale = self._range >> PRECISION
        quantile = self._offset // scale
        if quantile >= 1 << PRECISION:
            raise ValueError("words that no encoder writes")
        symbol = max(k for k in range(len(frequencies)) if left[k] <= quantile)
        self._offset -= scale * left[symbol]
        self._range = scale * (left[symbol + 1] - left[symbol])
        if self._range < 1 << (STATE_BITS - WORD_BITS):
            self._range <<= WORD_BITS
            self._offset = (self._offset << WORD_BITS | self._next_word()) & _MASK
        return symbol

    def begin_pass(self) -> None:
        """All passes are one stream."""

    def finish(self) -> None:
        """It tells nobody where it ends."""

    def decode(self, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The same for many symbols, each with the row that its id names: like `SymbolDecoder.decode`."""
        table = {int(number): rows[number].tolist() for number in np.unique(ids)}
        return np.array([self.symbol(table[int(number)]) for number in ids], np.int32)


def cumulative(frequencies: Sequence[float]) -> list[int]:
    """Left ends of the symbols' intervals in 0..2**24, and 2**24: one unit for each symbol, the rest by frequency."""
    total = 0.0
    for frequency in frequencies:
        total += frequency
    scale = ((1 << PRECISION) - len(frequencies)) / total
    left, before = [], 0.0
    for symbol, frequency in enumerate(frequencies):
        left.append(int(before * scale) + symbol)
        before += frequency
    return [*left, 1 << PRECISION]
