"""Time as the daemon sees it; tests bring their own."""

import time
from typing import Protocol


class Clock(Protocol):
    """`monotonic` for intervals inside one process, `time` for what is written down and compared with files."""

    def monotonic(self) -> float:
        """Seconds, never stepping back."""
        ...

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Seconds, never stepping back."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        time.sleep(seconds)
