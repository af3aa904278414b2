"""What a trainer of these tests does at steps where the test wants to look."""

import time
from pathlib import Path


def hold(run: str, step: int) -> None:
    """Wait as long as the file `hold_STEP` is there beside the run: a step that takes long."""
    while (Path(run).parent / f"hold_{step}").exists():
        time.sleep(0.02)


def last_step(step: int, steps: int, output: str) -> None:
    """Come to a step that never ends, five before the last, where there is no output to be written."""
    while not output and step == steps - 5:
        time.sleep(1)
