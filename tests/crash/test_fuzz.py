"""The short form of fuzz.py, and that it sees what is wrong."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BLIND = """
import sys, fuzz
fuzz.ArchiveReader.check = lambda _: None
sys.argv = ["fuzz.py", "--reader", "archive", "--count", "3000"]
sys.exit(fuzz.main())
"""


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], cwd=HERE, capture_output=True, text=True, check=False)


def test_changed_inputs_are_refused_or_read_in_time():
    finished = run("fuzz.py", "--count", "2400")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.count(" 0 wrong") == finished.stdout.count(" inputs ") == 12


def test_a_reader_that_checks_nothing_is_seen():
    finished = run("-c", BLIND)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "passes as whole" in finished.stdout
