"""Training jobs of real frameworks as processes of their own, and a daemon beside them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_job(script: Path, *arguments: object, ranks: int = 1) -> list[int]:
    """Exit codes of the ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            env={**os.environ, **own, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.DEVNULL,
        )
        for rank in range(ranks)
    ]
    return [process.wait(timeout=120) for process in processes]


def serve(run: Path, *, store: Path | None = None) -> None:
    """One pass over a run whose every checkpoint but the newest is to be replaced."""
    config = run.parent / "ckzd.toml"
    where = f'store = "{store}"\n' if store is not None else ""
    config.write_text(
        f'[[watch]]\npath = "{run}"\nreplace = true\npreset = "lossless"\nkeep_raw = 1\nsettle_seconds = 0.05\n{where}'
        f'[daemon]\nstate_dir = "{run.parent}/state"\nport = 0\nnice = 0\n'
    )
    command = [sys.executable, "-m", "ckzd", "serve", "--once", "--config", config]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
