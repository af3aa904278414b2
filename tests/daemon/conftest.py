"""Time for the daemon's tests."""

import time

import pytest

GRACE_SECONDS = 5.0


def _wait_until(condition, seconds: float = GRACE_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def wait_until():
    return _wait_until


class FakeClock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0
        self._began = time.time() - self.seconds  # files are written by the real clock

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return self.seconds + self._began

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
