"""A disk that holds the originals and little more: does the trainer get its room, and what is the peak?

usage: near_full.py [--disk 190] [--checkpoints 10] [--every 45] (as root: it mounts a file system in memory, in MB)
A small network trains and saves checkpoints of 17 MB there, one every so many seconds, beside `ckzd serve` with its
defaults. Printed are the saves that found no room, the largest number of bytes on that disk at any time, both for all
of it and over the originals' own size, and what is there in the end. Exits with 1 if a save failed, or the peak is
above what the originals alone would take.
"""

import argparse
import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from machine import machine
from processes import Looking
from torch import nn
from torch.nn import functional

STEPS = 20  # between two checkpoints
MEGABYTE = 10**6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disk", type=int, default=190)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--every", type=float, default=45.0)
    options = parser.parse_args()
    print(*(f"{name} {value}" for name, value in machine().items()), sep=", ", flush=True)
    with tempfile.TemporaryDirectory() as scratch, disk(Path(scratch, "disk"), options.disk * MEGABYTE) as place:
        run = place / "run"
        run.mkdir()
        with daemon(Path(scratch), run), Peak(place) as peak:
            sizes, refused = train(run, options.checkpoints, options.every)
            wait_for(run, len(sizes))
        left = used(place)
    print(json.dumps({
        "checkpoints": len(sizes), "refused": refused, "original_bytes": sum(sizes), "peak_bytes": peak.nbytes,
        "peak_over_originals": peak.nbytes / sum(sizes), "left_bytes": left,
    }))  # fmt: skip
    return int(refused > 0 or peak.nbytes > sum(sizes))


@contextmanager
def disk(place: Path, nbytes: int) -> Iterator[Path]:
    """A file system of that size."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def daemon(scratch: Path, run: Path) -> Iterator[None]:
    """`ckzd serve` on the run, as it is by default."""
    config, log = scratch / "ckzd.toml", scratch / "log"
    config.write_text(f'[[watch]]\npath = "{run}"\nreplace = true\n[daemon]\nstate_dir = "{scratch}/state"\nport = 0\n')
    command = [sys.executable, "-m", "ckzd", "serve", "--config", str(config)]
    with log.open("wb") as written, subprocess.Popen(command, stdout=written, stderr=written) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait()
            sys.stderr.write(log.read_text())


class Peak(Looking):
    """The most bytes that were on a disk."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.nbytes = 0
        self._place = place

    def look(self) -> None:
        """At the disk."""
        self.nbytes = max(self.nbytes, used(self._place))


def used(place: Path) -> int:
    """Bytes of a file system that are taken."""
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def train(run: Path, count: int, every: float) -> tuple[list[int], int]:
    """Sizes of the checkpoints that were saved, and how many were not for want of room."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    teacher = nn.Linear(512, 512)
    model = nn.Sequential(nn.Linear(512, 1000), nn.Tanh(), nn.Linear(1000, 600), nn.Tanh(), nn.Linear(600, 512))
    optimizer = torch.optim.AdamW(model.parameters())
    sizes, refused = [], 0
    for number in range(1, count + 1):
        began = time.monotonic()
        for _ in range(STEPS):
            inputs = torch.randn(32, 512)
            optimizer.zero_grad()
            functional.mse_loss(model(inputs), teacher(inputs).detach()).backward()
            optimizer.step()
        path = run / f"step_{number * STEPS}.pt"
        unfinished = run / f".{path.name}.tmp"
        try:
            with unfinished.open("wb") as file:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            unfinished.rename(path)
            sizes.append(path.stat().st_size)
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOSPC:
                raise
            unfinished.unlink()
            refused += 1
        time.sleep(max(0.0, every - (time.monotonic() - began)))
    return sizes, refused


def wait_for(run: Path, count: int, seconds: float = 300.0) -> None:
    """Until all but the newest are replaced, or for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and len(list(run.glob("*.pt.ckz"))) < count - 2:
        time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
