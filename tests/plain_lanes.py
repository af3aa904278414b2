"""A decoder of symbols in lanes in plain Python, from FORMAT.md, "Lanes", alone: states of 32 bits, words of 16."""

from collections.abc import Sequence

import numpy as np

TOTAL, LEAST = 1 << 15, 1 << 16


class PlainLanes:
    """Decodes symbols one by one."""

    def __init__(self, data: bytes, elements: int) -> None:
        count = min(2 ** (max(elements // 16384, 1).bit_length() - 1), 64)
        self._states = np.frombuffer(data, "<u4", count).tolist()
        self._words = iter(np.frombuffer(data, "<u2", offset=4 * count).tolist())
        self._place = 0

    def begin_pass(self) -> None:
        self._place = 0

    def symbol(self, frequencies: Sequence[float]) -> int:
        """The next symbol, coded with these frequencies (integer-valued)."""
        lane = self._place % len(self._states)
        self._place += 1
        shares = shares_of([int(f) for f in frequencies])
        state = self._states[lane]
        symbol, low = 0, 0
        while state % TOTAL >= low + shares[symbol]:
            low += shares[symbol]
            symbol += 1
        state = shares[symbol] * (state // TOTAL) + state % TOTAL - low
        if state < LEAST:
            state = state << 16 | next(self._words)
        self._states[lane] = state
        return symbol

    def finish(self) -> None:
        assert set(self._states) == {LEAST}
        assert not list(self._words)


def shares_of(frequencies: list[int]) -> list[int]:
    """Of 2**15, at least 1 each."""
    shares = [max(f * (TOTAL - 18) // sum(frequencies), 1) for f in frequencies]
    shares[shares.index(max(shares))] += TOTAL - sum(shares)
    return shares
