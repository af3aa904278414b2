"""Time for the daemon's tests, and services with what is around them."""

import time

import pytest
from serving import Daemon, Gone, crash

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


@pytest.fixture
def make_daemon(tmp_path, clock):
    made = []

    def _make(**options) -> Daemon:
        made.append(Daemon(tmp_path, clock, **options))
        return made[-1]

    yield _make
    for daemon in made:
        daemon.service.__exit__()


@pytest.fixture
def daemon(make_daemon) -> Daemon:
    made = make_daemon()
    made.service.start()
    return made


@pytest.fixture
def revive(make_daemon, monkeypatch):
    def _revive(daemon, **options) -> Daemon:
        monkeypatch.setattr(daemon.service.__class__, "__exit__", daemon.service.__class__.__exit__)
        crash(daemon)
        daemon.service = Gone()
        made = make_daemon(**options)
        made.service.start()
        return made

    return _revive
