"""A clock for scripts that have no time."""

import time


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = time.time()

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return self._began + self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
