"""What people do to runs loses nothing, ends, and is told: see wild.py."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCENARIOS = {  # archives, and bases among them
    "resumed": (3, 1),
    "written_twice": (5, 2),
    "renamed": (5, 3),
    "copied": (6, 3),
    "moved": (4, 1),
    "moved_alone": (3, 1),
    "branched": (6, 1),
    "two_jobs": (6, 1),
    "overwritten": (4, 4),
    "overwritten_unseen": (2, 2),
    "world_size": (4, 1),
}


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """All of them in one process: forks of it take no time to start."""
    finished = subprocess.run([sys.executable, "wild.py"], cwd=HERE, capture_output=True, text=True, check=False)
    assert finished.returncode in (0, 1), finished.stdout + finished.stderr
    return dict(line.split(": ", 1) for line in finished.stdout.replace("\n  ", "; ").splitlines())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_is_lost(said, scenario):
    archives, bases = SCENARIOS[scenario]
    assert said[scenario] == f"{archives} archives, {bases} of them bases; 0 problems"


def test_all_of_them_were_run(said):
    assert said.keys() == SCENARIOS.keys()
