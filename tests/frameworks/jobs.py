"""Training jobs of real frameworks as processes of their own, and a daemon beside them.

A trainer is a script of its own: `X_trainer.py [...] RUN STEPS RESUME OUTPUT`. It saves into RUN each ten steps. It
resumes from RESUME unless that is "", and saves its last weights to OUTPUT; where that is "" it comes to a step that
never ends five steps before the last, to be killed there.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from ckzd.operations.pointer import pointer_for

REQUIRED = "CKZD_FRAMEWORKS_REQUIRED"  # in the environment: a framework that is not installed fails its tests
# DeepSpeed compiles what it needs at its first start. A build that was killed leaves a lock that all later ones wait
# for, for ever: not in the directory that everybody shares, then, but in that of the environment.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{sys.prefix}/torch_extensions")
WAIT_SECONDS = 300.0  # on a machine that does other things, too


def need(*packages: str) -> None:
    """Skip the module where a framework is not installed. It is not imported: trainers are processes of their own."""
    missing = [name for name in packages if not _is_installed(name)]
    if missing:
        reason = f"{', '.join(missing)} is not installed: `sh deploy/install.sh test test-frameworks`"
        if os.environ.get(REQUIRED):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # nor what it is a part of
        return False


class Job:
    """The processes of one training job, a rank each."""

    def __init__(self, script: Path, *arguments: object, ranks: int = 1) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(
                [sys.executable, script, *map(str, arguments)],
                env={**os.environ, **own, **offline, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
            )
            for rank in range(ranks)
        ]

    @property
    def is_running(self) -> bool:
        """Whether all ranks are."""
        return all(process.poll() is None for process in self._processes)

    def wait(self) -> list[int]:
        """Exit codes of the ranks."""
        return [process.wait(timeout=WAIT_SECONDS) for process in self._processes]

    def kill(self) -> None:
        """As the kernel does where memory runs out: nobody is asked."""
        for process in self._processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def job(script: Path, *arguments: object, ranks: int = 1) -> Iterator[Job]:
    """A job that is over at the end, one way or another."""
    running = Job(script, *arguments, ranks=ranks)
    try:
        yield running
    finally:
        running.kill()


def run_job(script: Path, *arguments: object, ranks: int = 1) -> list[int]:
    """Exit codes of the ranks."""
    with job(script, *arguments, ranks=ranks) as running:
        return running.wait()


@contextlib.contextmanager
def daemon(run: Path, store: Path | None = None) -> Iterator[None]:
    """`ckzd serve` beside a run, until it is told to end; what it has begun by then it brings to an end."""
    run.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(_serve(run, store), stdout=subprocess.DEVNULL) as serving:
        try:
            yield
        finally:
            serving.send_signal(signal.SIGTERM)
            serving.wait(timeout=WAIT_SECONDS)
    assert serving.returncode == 0


def serve(run: Path) -> None:
    """One pass over a run."""
    subprocess.run([*_serve(run), "--once"], check=True, capture_output=True, timeout=WAIT_SECONDS)


def _serve(run: Path, store: Path | None = None) -> list[str]:
    """All but the newest checkpoint are to be replaced."""
    config = run.parent / "ckzd.toml"
    config.write_text(
        f'[[watch]]\npath = "{run}"\nreplace = true\npreset = "lossless"\nkeep_raw = 1\n'
        "settle_seconds = 0.2\nscan_seconds = 1\n"
        + (f'store = "{store}"\n' if store else "")
        + f'[daemon]\nstate_dir = "{run.parent}/state"\nport = 0\nnice = 0\n'
    )
    return [sys.executable, "-m", "ckzd", "serve", "--config", str(config)]


def wait_until(is_true: Callable[[], bool], running: Job) -> None:
    """What a daemon does beside a job, or the job itself."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_true():
        assert running.is_running, "the job ended too early"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def are_replaced(*checkpoints: Path) -> bool:
    """Whether a pointer stands for each, and nothing else."""
    return all(pointer_for(path).exists() and (path.is_dir() or not path.exists()) for path in checkpoints)


def train_until_replaced(
    script: Path,
    *arguments: object,
    run: Path,
    steps: int = 40,
    replaced: Sequence[str],
    ranks: int = 1,
    store: Path | None = None,
) -> None:
    """Train beside a daemon until it has replaced these checkpoints of the run, then kill the job where it is."""
    with daemon(run, store), job(script, *arguments, run, steps, "", "", ranks=ranks) as running:
        wait_until(lambda: are_replaced(*(run / name for name in replaced)), running)
        running.kill()


def are_equal(one: Path, other: Path) -> bool:
    """Whether two files hold the same tensors under the same names, bit for bit."""
    left, right = torch.load(one), torch.load(other)
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())
