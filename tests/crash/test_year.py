"""The short form of year.py."""

import subprocess
import sys
from pathlib import Path


def test_a_year_is_level_and_what_was_kept_comes_back():
    command = [sys.executable, "year.py", "--checkpoints", "36"]
    finished = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "a year of 36 checkpoints: 0 things wrong" in finished.stdout
