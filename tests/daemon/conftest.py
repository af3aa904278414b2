"""Nothing may be left behind by a test: no thread, no child process."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

GRACE_SECONDS = 5.0


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    _wait_until(lambda: not _new_threads(before))
    assert not _new_threads(before), "threads that outlived the test"


@pytest.fixture(autouse=True)
def no_leaked_children() -> Iterator[None]:
    before = children_of(os.getpid())
    yield
    _wait_until(lambda: children_of(os.getpid()) <= before)
    assert children_of(os.getpid()) <= before, "child processes that outlived the test"


def _new_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread not in before and thread.is_alive()}


def children_of(pid: int) -> set[int]:
    found: set[int] = set()
    for entry in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # the thread has ended meanwhile
            found |= {int(child) for child in (entry / "children").read_text().split()}
    return found


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

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return self.seconds + 1_700_000_000.0

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
