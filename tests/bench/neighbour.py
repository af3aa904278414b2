"""What ckzd's workers take from the job beside them: the job's steps a second with the workers stopped and at work.

A job keeps every core busy (`--job matmul`: products on all of them; `--job train`: a small transformer), in a session
of its own, as a scheduler or a terminal starts it. Beside it `ckzd serve` archives checkpoints of 74 MB. In windows
that alternate, all its workers are stopped (SIGSTOP) and let go on. Printed are the medians of both, the loss as the
median of pairs, and how many cores the workers got. It ends when there is nothing left to archive.

    python tests/bench/neighbour.py [--job train] [--seconds 300] [--window 5] [--checkpoints 8]
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from processes import descendants

WIDTH, LAYERS = 784, 5  # of a checkpoint's matrices
REPORT_SECONDS = 0.1
WARM_UP_STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", choices=("matmul", "train"), default="matmul")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--window", type=float, default=5.0)
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--be-the-job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_the_job is not None:
        train(options.job, options.be_the_job)
        return
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "run").mkdir()
        save_checkpoints(Path(place) / "run", options.checkpoints)
        print(json.dumps(measure(Path(place), options.job, options.seconds, options.window)))


def measure(place: Path, job: str, seconds: float, window: float) -> dict[str, object]:
    """Run all of it for so long."""
    steps = place / "steps"
    with daemon(place) as serve, running_job(job, steps):
        pairs, got = [], []
        until = time.monotonic() + seconds
        while time.monotonic() < until and descendants(serve):
            switch(serve, signal.SIGSTOP)
            alone = rate(steps, window)
            switch(serve, signal.SIGCONT)
            began, before = time.monotonic(), cpu_seconds(serve)
            beside = rate(steps, window)
            got.append(max(0.0, cpu_seconds(serve) - before) / (time.monotonic() - began))
            pairs.append((alone, beside))
        archives = len(list(place.glob(".ckzd/archives/*/*.ckz")))
    return {
        "job": job,
        "cores": len(os.sched_getaffinity(0)),
        "pairs": len(pairs),
        "steps_a_second_alone": statistics.median(alone for alone, _ in pairs),
        "steps_a_second_beside": statistics.median(beside for _, beside in pairs),
        "lost_percent": 100 * (1 - statistics.median(beside / alone for alone, beside in pairs)),
        "cores_of_the_workers": statistics.mean(got),
        "archives": archives,
    }


@contextmanager
def daemon(place: Path) -> Iterator[int]:
    """`ckzd serve` on PLACE/run, once it is at work; its process."""
    config = place / "ckzd.toml"
    config.write_text(
        f'[[watch]]\npath = "{place}/run"\nreplace = true\nsettle_seconds = 1\nscan_seconds = 2\ntrash_seconds = 0\n'
        f'[daemon]\nstate_dir = "{place}/state"\nport = 0\ndevices = ["cpu"]\n'
    )
    log = (place / "log").open("wb")
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-m", "ckzd", "serve", "--config", str(config)], stdout=log, stderr=log
        ) as process,
    ):
        try:
            while len(descendants(process.pid)) < 2:  # a worker, and its verifier: a job is being encoded
                time.sleep(0.1)
            yield process.pid
        finally:
            switch(process.pid, signal.SIGCONT)
            process.send_signal(signal.SIGINT)


@contextmanager
def running_job(job: str, steps: Path) -> Iterator[None]:
    """This script as the job, in a session of its own."""
    with subprocess.Popen(
        [sys.executable, __file__, "--job", job, "--be-the-job", steps], start_new_session=True
    ) as process:
        try:
            yield
        finally:
            process.kill()


def switch(serve: int, number: signal.Signals) -> None:
    """Signal all workers and what they started; the daemon itself goes on, as it always does."""
    for pid in descendants(serve):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def cpu_seconds(serve: int) -> float:
    """Of all workers and their children so far; those that have ended count with their parents."""
    total = 0
    for pid in descendants(serve):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def rate(steps: Path, seconds: float) -> float:
    """Steps a second of the job, from now on for so long."""
    (first, began), _ = read(steps), time.sleep(seconds)
    last, ended = read(steps)
    return (last - first) / (ended - began)


def read(steps: Path) -> tuple[int, float]:
    """How many steps the job has done, and when it said so."""
    while not steps.exists():
        time.sleep(0.1)
    count, when = steps.read_text().split()
    return int(count), float(when)


def train(job: str, steps: Path) -> None:
    """Step for ever, on all cores; the number of the last step and its time are in the file `steps`."""
    step = matmul_step() if job == "matmul" else transformer_step()
    unfinished, said = steps.with_suffix(".unfinished"), 0.0
    for _ in range(WARM_UP_STEPS):
        next(step)
    for count in range(1 << 62):
        now = time.monotonic()
        if now - said >= REPORT_SECONDS:
            unfinished.write_text(f"{count} {now}")
            unfinished.replace(steps)
            said = now
        next(step)


def matmul_step() -> Iterator[None]:
    """A product of matrices that takes some ten milliseconds on two cores."""
    a, b = torch.randn(768, 768), torch.randn(768, 768)
    while True:
        torch.mm(a, b)
        yield


def transformer_step() -> Iterator[None]:
    """A step of Adam on a layer of attention."""
    model = torch.nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    optimizer = torch.optim.AdamW(model.parameters())
    while True:
        optimizer.zero_grad()
        model(torch.randn(16, 64, 128)).square().mean().backward()
        optimizer.step()
        yield


def save_checkpoints(run: Path, count: int) -> None:
    """What a job leaves: weights and Adam's moments after some steps, and some more."""
    layers = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, 2 * WIDTH) for _ in range(LAYERS)))
    optimizer = torch.optim.AdamW(layers.parameters())
    for step in range(1, count + 1):
        for parameter in layers.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        torch.save(
            {"model": layers.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, run / f"{step}.pt"
        )


if __name__ == "__main__":
    main()
