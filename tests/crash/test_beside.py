"""The short form of beside.py."""

import subprocess
import sys
from pathlib import Path


def test_a_daemon_that_is_killed_beside_a_writer_loses_nothing():
    command = [sys.executable, "beside.py", "--kills", "6"]
    finished = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "0 lost or half-done, all work is done" in finished.stdout
