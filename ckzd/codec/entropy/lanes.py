"""Symbols <-> 16-bit words by rANS in lanes (Duda 2013; interleaved as by Giesen 2014): integers alone.

Contexts of a whole pass are known before it is decoded, so lanes cost no compression: symbol n of a pass belongs to
lane n mod L, each lane has a state of 32 bits, and all take their words from one stream in the order of the symbols.

Layout: u32[L] the lanes' states before the first symbol; u16 words, to the end. L follows from the number of elements.
After the last symbol every state is 2**16 and no word is left: what is damaged is not likely to end so.

# D = contexts, A = alphabet
"""

import numpy as np

from ckzd.codec.entropy.range_coder import Rows
from ckzd.codec.kernels import kernels
from ckzd.codec.kernels.plain import ALPHABET, LEAST, TOTAL_BITS, Cumulative, Ids, Symbols

_ROW = 32  # numbers of a context: a power of two, for vector registers
_ELEMENTS_A_LANE = 1 << 14  # a lane costs about two bytes
_MOST = 64  # more win nothing even where all lanes advance by one call of NumPy


def lanes_of(elements: int) -> int:
    """How many lanes a plane of so many elements has: a power of two."""
    return int(min(1 << max(elements // _ELEMENTS_A_LANE, 1).bit_length() - 1, _MOST))


def cumulative_of(rows: Rows) -> Cumulative:
    """Frequencies (D, A), integer-valued, at least 1 -> cumulative ones (D, 32) of 2**15 in all, each at least 1.

    Shares are rounded down; what that leaves over goes to the likeliest symbol, the first of several.
    """
    whole, total = rows.astype(np.int64), 1 << TOTAL_BITS
    shares = np.maximum(whole * (total - ALPHABET) // whole.sum(1, keepdims=True), 1)
    shares[np.arange(len(shares)), shares.argmax(1)] += total - shares.sum(1)
    cumulative = np.full((len(rows), _ROW), total, np.uint16)
    cumulative[:, 0] = 0
    cumulative[:, 1:ALPHABET] = shares.cumsum(1)[:, :-1]
    return cumulative


def encode(symbols: Symbols, ids: Ids, passes: list[int], rows: Rows) -> bytes:
    """Symbols of all passes, one pass after the other, `passes` of each, with the row that each one's id names."""
    lanes = lanes_of(symbols.size)
    states, words = kernels.rans_encode(symbols, ids, passes, cumulative_of(rows), lanes)
    return bytes(states.astype("<u4").tobytes() + words.astype("<u2").tobytes())


class LaneDecoder:
    """Reads what `encode` wrote, pass by pass with the same ids and rows; ValueError for what it does not write."""

    def __init__(self, data: bytes, elements: int, rows: Rows) -> None:
        lanes = lanes_of(elements)
        if len(data) < 4 * lanes or len(data) % 2:
            raise ValueError(f"{len(data)} bytes of symbols in {lanes} lanes")
        self._cumulative = cumulative_of(rows)
        self._states = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
        self._words = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.uint16)
        self._at = 0
        if self._states.min() < LEAST:
            raise ValueError("a lane's state that no encoder writes")

    def decode(self, ids: Ids) -> Symbols:
        """The symbols of the next pass."""
        symbols, self._at = kernels.rans_decode(ids, self._cumulative, self._states, self._words, self._at)
        return symbols

    def finish(self) -> None:
        """ValueError unless all that was encoded is decoded."""
        if self._at != self._words.size or np.any(self._states != LEAST):
            raise ValueError("symbols that do not end where their words do")
