"""What every test must leave behind: no process, no thread, no temporary file."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ckzd.store import Store, default_store

settings.register_profile("busy", deadline=None)  # an example's time is the machine's business
settings.load_profile("busy")

GRACE_SECONDS = 5.0  # a child that was told to end may take a moment
OURS_TO_KEEP = ("resource_tracker", "forkserver")  # helpers that multiprocessing keeps for the life of the process


def child_processes() -> dict[int, str]:
    """Living children of this process: pid -> command line."""
    children: dict[int, str] = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:  # the thread has ended meanwhile
            continue
        for pid in pids:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if not any(helper in command for helper in OURS_TO_KEEP):
                children[int(pid)] = command or "a zombie: nobody waited for it"
    return children


def wait_for_none(look, before) -> list[object]:
    """What `look` finds beyond `before`, after giving it a moment to go away."""
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        leaked = [found for key, found in look().items() if key not in before]
        if not leaked or time.monotonic() > deadline:
            return leaked
        time.sleep(0.02)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not Path("/dev/nvidiactl").exists():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A stand-in for nvidia-smi on the PATH."""

    def _write(cards: str, processes: str) -> None:
        file = tmp_path / "nvidia-smi"
        file.write_text(f'#!/bin/sh\ncase "$1" in *gpu=*) printf "{cards}";; *) printf "{processes}";; esac\n')
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return _write


@pytest.fixture(autouse=True)
def _state_of_its_own(tmp_path_factory, monkeypatch) -> None:
    """What stores note for each other is not of this machine's user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)


@pytest.fixture(autouse=True)
def _no_leaked_processes() -> Iterator[None]:
    before = child_processes()
    yield
    assert wait_for_none(child_processes, before) == []


@pytest.fixture(autouse=True)
def _no_leaked_threads() -> Iterator[None]:
    def look() -> dict[int | None, threading.Thread]:
        return {thread.ident: thread for thread in threading.enumerate()}

    before = look()
    yield
    assert wait_for_none(look, before) == []


@pytest.fixture(autouse=True)
def _no_leftover_temporaries(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that crashes a writer on purpose is marked `leaves_temporaries`."""
    uses_files = "tmp_path" in request.fixturenames
    place = request.getfixturevalue("tmp_path") if uses_files else None
    yield
    if place is not None and request.node.get_closest_marker("leaves_temporaries") is None:
        leftover = [Path(where, name) for where, _, names in os.walk(place) for name in names if name.endswith(".tmp")]
        assert leftover == []


@pytest.fixture
def run(tmp_path) -> Path:
    """A run without checkpoints, in a directory of its own."""
    run = tmp_path / "runs" / "gpt"
    run.mkdir(parents=True)
    return run


@pytest.fixture
def store(run) -> Store:
    """The store beside it, empty."""
    return Store.open_or_create(default_store(run))
