"""Probabilities -> words and back: the only place that knows constriction.

The coder gets integer-valued float64 rows, C-contiguous, with `perfect=False`: constriction then derives its 24-bit
cumulative table by sequential IEEE additions, one division and one multiplication a symbol, so equal rows give equal
words on every machine. It detects no corruption: the container's hashes do.
"""

from collections.abc import Iterator

import constriction
import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]  # (D, A): frequencies of A symbols in D contexts, integer-valued, >= 1
Ids = npt.NDArray[np.int16]  # (N,): which row each symbol is coded with
Symbols = npt.NDArray[np.int32]  # (N,)

_CHUNK = 1 << 15  # symbols coded a call: 32 Ki rows of 18 float64 are 4.7 MB
_FAMILY = constriction.stream.model.Categorical(perfect=False)


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, _CHUNK):
        yield slice(start, min(start + _CHUNK, count))


class SymbolEncoder:
    """Codes symbols first in, first out."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, symbols: npt.NDArray[np.uint8], ids: Ids, rows: Rows) -> None:
        """Append `symbols`, each with the row that its id names."""
        for part in _chunks(symbols.size):
            self._coder.encode(symbols[part].astype(np.int32), _FAMILY, np.ascontiguousarray(rows[ids[part]]))

    def finish(self) -> bytes:
        """The coded bytes (little-endian 32-bit words)."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class SymbolDecoder:
    """Reads what a SymbolEncoder wrote, call by call with the same ids and rows."""

    def __init__(self, data: bytes) -> None:
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def decode(self, ids: Ids, rows: Rows) -> Symbols:
        """The next `ids.size` symbols."""
        symbols = np.empty(ids.size, np.int32)
        for part in _chunks(ids.size):
            try:
                symbols[part] = self._coder.decode(_FAMILY, np.ascontiguousarray(rows[ids[part]]))
            except AssertionError as error:  # constriction finds some of the words that no encoder writes
                raise ValueError("range-coded words that no encoder writes") from error
        return symbols
