"""What is counted of zeros: every kind has some where it says, and one that is gone is seen in its part."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import checkpoint_path, run_series
from zeros import DENSE, KINDS, PARTS, measure, zeros

SCRIPT = Path(__file__).with_name("zeros.py")


def short(kind):
    return dataclasses.replace(KINDS[kind], steps=4, every=4)


def test_the_script_prints_a_row_a_checkpoint_and_its_exit_code_is_its_bar():
    options = ["--kinds", "half", "--presets", "resume", "--steps", "20", "--every", "10"]
    done = subprocess.run([sys.executable, SCRIPT, *options], check=False, capture_output=True, text=True)
    _, _, *rows, verdict = done.stdout.splitlines()
    lost = sum(int(cell) for row in rows for cell in row.split()[5::2])
    assert len(rows) == 2
    assert verdict == f"zeros lost: {lost}; bar: 0"
    assert done.returncode == (lost > 0)


def test_an_exact_restore_loses_none():
    ((_, counts, _),) = measure(short("half"), "lossless")
    assert all(there >= 8000 and lost == 0 for there, lost in counts.values())


LEAST = {  # zeros in weights, and in each of both moments
    DENSE: (0, 0),
    "half": (8000, 8000),
    "2:4": (8192, 8192),
    "live moments": (8000, 0),
    "growing": (500, 0),
    "dead units": (0, 64 * (64 + 1 + 128)),  # what leads to them and away from them
    "padding rows": (64 * 64, 64 * 64),
    "unseen rows": (0, 64 * 64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_zeros_where_it_says(kind, tmp_path):
    list(run_series(short(kind), tmp_path))
    original = checkpoint_path(tmp_path, 4)
    counts = zeros(original, original)
    there = [counts[part][0] for part in PARTS]
    least = (LEAST[kind][0], LEAST[kind][1], LEAST[kind][1])
    assert all(bound <= count <= 5 * bound for count, bound in zip(there, least, strict=True))


def test_a_zero_that_is_gone_is_counted_in_its_part(tmp_path):
    list(run_series(short("half"), tmp_path))
    original = checkpoint_path(tmp_path, 4)
    state = torch.load(original, weights_only=True)
    first = state["optimizer"]["state"][2]["exp_avg"]
    first[first == 0] = torch.arange(int((first == 0).sum())).float()
    torch.save(state, restored := tmp_path / "restored.pt")
    lost = {part: gone for part, (_, gone) in zeros(original, restored).items()}
    assert lost == dict.fromkeys(PARTS, 0) | {"exp_avg": zeros(original, original)["exp_avg"][0] - 1}
