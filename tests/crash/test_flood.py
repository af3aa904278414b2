"""The short form of flood.py."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("scene", "files"), [("at once", 500), ("silence", 200), ("full queue", 200)])
def test_nothing_is_missed(scene, files):
    command = [sys.executable, "flood.py", "--scene", scene, "--files", str(files)]
    finished = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert finished.stdout.startswith(f"0 of {files} missed"), finished.stdout + finished.stderr
    assert ("0 overflows" in finished.stdout) is (scene != "full queue")
