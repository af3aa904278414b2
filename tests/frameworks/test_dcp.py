"""torch.distributed.checkpoint under FSDP2: replaced beside the job, which dies, restored, and resumed unmodified."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckzd import ensure_restored
from ckzd.formats import list_checkpoints

pytestmark = pytest.mark.slow

TRAINER = Path(__file__).parent / "dcp_trainer.py"


def train(ranks: int, run: Path, steps: int, resume: str = "", output: str = "") -> list[int]:
    """Exit codes of the ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            [sys.executable, TRAINER, run, str(steps), resume, output],
            env={**os.environ, **own, "RANK": str(rank)},
            stderr=subprocess.DEVNULL,
        )
        for rank in range(ranks)
    ]
    return [process.wait(timeout=120) for process in processes]


def serve(run: Path) -> None:
    """One pass over a run whose every checkpoint but the newest is to be replaced."""
    config = run.parent / "ckzd.toml"
    config.write_text(
        f'[[watch]]\npath = "{run}"\nreplace = true\npreset = "lossless"\nkeep_raw = 1\nsettle_seconds = 0.05\n'
        f'[daemon]\nstate_dir = "{run.parent}/state"\nport = 0\nnice = 0\n'
    )
    command = [sys.executable, "-m", "ckzd", "serve", "--once", "--config", config]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path, ranks):
    twin, run = tmp_path / "twin" / "run", tmp_path / "own" / "run"
    assert train(ranks, twin, 40, output=str(tmp_path / "expected.pt")) == [0] * ranks
    assert all(train(ranks, run, 35)), "killed after step 30"
    assert [path.name for path in list_checkpoints(run)] == ["step-10", "step-20", "step-30"]
    serve(run)
    for name in ("step-10", "step-20"):
        assert {entry.name for entry in (run / name).iterdir()} == {".metadata", "ckzd.json"}
    assert all(train(ranks, run, 40, str(run / "step-20"), str(tmp_path / "not.pt"))), "it fails loudly, not fresh"
    resume = ensure_restored(run / "step-20")
    assert train(ranks, run, 40, str(resume), str(tmp_path / "resumed.pt")) == [0] * ranks
    expected, resumed = torch.load(tmp_path / "expected.pt"), torch.load(tmp_path / "resumed.pt")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())
