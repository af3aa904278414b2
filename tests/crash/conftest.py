"""A process that forks victims, and a place that is fast to write to."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def victim():
    """Send an order to a process of its own; see victim.py."""
    command = [sys.executable, str(Path(__file__).with_name("victim.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def order(**fields) -> dict:
            process.stdin.write(json.dumps(fields, default=str) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield order
        process.stdin.close()


@pytest.fixture
def place(tmp_path):
    """In memory, if there is such a place: hundreds of crashes, and each fsync of a disk takes milliseconds."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        yield Path(place)
