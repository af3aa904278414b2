"""The short form of campaign.py, and that it sees what is lost."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EVERY = 30  # twenty-four scenarios, a minute of CPU

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

LOSSES = """
import tempfile
from pathlib import Path
from scenes import SCENARIOS, Stage, train

def unlink(pattern):
    return lambda place: [path.unlink() for path in place.glob(pattern)]

def truncate(pattern):
    return lambda place: [path.write_bytes(path.read_bytes()[:-9]) for path in place.glob(pattern)]

HARM = {
    "file": [
        unlink("no harm"), unlink("run/*.ckz"), unlink("store/archives/*/step_10*"),
        truncate("store/archives/*/step_10*"), truncate("run/step_20.pt"),
    ],
    "restore, directory": [
        unlink("run/checkpoint-20/inner/optimizer.pt"), unlink("run/checkpoint-20/notes.txt"),
        lambda place: (place / "store/tmp/left").touch(),
    ],
}
with tempfile.TemporaryDirectory() as place:
    train(Path(place))
    for name, harms in HARM.items():
        scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
        stage = Stage(scenario, Path(place))
        stage.build()
        for harm in harms:
            stage.reset()
            stage.run(scenario.command)
            harm(stage.place)
            print(stage.states(), stage.leftovers())
"""


def run(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    finished = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_some_blows_of_every_scenario_lose_nothing_and_leave_nothing_half_done():
    said = [line for line in run("campaign.py", "--every", EVERY).splitlines() if " blows, " in line]
    assert said
    assert all("lost 0, half-done 0" in line for line in said)


def test_what_is_lost_is_seen():
    whole, *lost, left = run("-c", LOSSES).splitlines()
    assert whole == "['replaced', 'original'] []"
    assert len(lost) == 6
    assert all("LOST" in line for line in lost)
    assert left == "['replaced', 'original'] ['store/tmp/left']"
