"""A year of a daemon in minutes: only the clock and the processes are not real (forks that take no time to start).

    python tests/crash/year.py [--checkpoints N]

A trainer saves N checkpoints over the year and keeps the newest ten itself; the daemon is killed and started anew forty
times, retention keeps ten checkpoints of a run, and archives are read back at idle. In the first two months the run
goes on under another name: what its pointers name of the time before stays, so that is no way to be level. Printed each
month: what the store takes on the disk, the journal, this process's memory and descriptors, and how long the daemon
took to start. Exit status 1 if one of them grows, if a chain is deeper than its bound, or if a checkpoint that was kept
does not come back bit for bit.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import forks
from clocks import Clock

sys.path.append(str(Path(__file__).parent.parent))

from serving import Daemon, FakeExecutor, crash, write_checkpoint
from serving import perform as by_hand

import ckzd
from ckzd.chains import ArchiveRecord
from ckzd.daemon.perform import perform
from ckzd.store import Store

YEAR_SECONDS = 365 * 24 * 3600.0
MONTHS, RESTARTS, RENAMED_AFTER = 12, 40, (1, 2)
KEPT_BY_TRAINER, MAX_DEPTH = 10, 5
ROUNDS = 24  # of the daemon after each checkpoint: it settles, is archived, replaced, and what is old goes
LEVEL = 1.6  # times what it was after a quarter, and so much beside it: more has grown
SLACK = {"archives": 5, "disk": 1e6, "journal": 4e6, "memory": 1e7, "descriptors": 2, "start_seconds": 0.1}


class RealWork(FakeExecutor):
    """Does the jobs themselves; what cleans goes by the real clock, so that is told it is late."""

    def _perform(self, job, told):
        if job.kind in {"clean", "check"}:
            return super()._perform(job, told) if job.kind == "check" else by_hand(job, "cpu", lambda *_: None)
        return perform(job, "cpu", lambda *_: None)


class Year:
    """A run, its trainer and its daemon."""

    def __init__(self, place: Path, checkpoints: int) -> None:
        self.place, self.checkpoints, self.clock = place, checkpoints, Clock()
        self.run = place / "runs" / "gpt-0"
        self.saved: dict[str, str] = {}  # name -> sha256
        self.start_seconds = 0.0
        self.daemon = self.start()

    def start(self) -> Daemon:
        began = time.process_time()
        keep = {"newest": 10}
        options = {"keep_raw": 2, "max_depth": MAX_DEPTH, "preset": "lossless", "trash_seconds": 60, "keep": keep}
        daemon = Daemon(self.place, self.clock, **options)
        daemon.service._executor = daemon.executor = RealWork(self.clock)
        daemon.service.start()
        self.start_seconds = time.process_time() - began
        return daemon

    def live(self) -> list["Facts"]:
        found = []
        for number in range(1, self.checkpoints + 1):
            self.save(number)
            if number % max(1, self.checkpoints // RESTARTS) == 0:
                self.daemon.go(number % 13)  # in the middle of something
                crash(self.daemon)
                self.daemon = self.start()
            self.daemon.go(ROUNDS)
            self.clock.sleep(max(0.0, YEAR_SECONDS * number / self.checkpoints - self.clock.seconds))
            if number % max(1, self.checkpoints // MONTHS) == 0:
                found.append(self.facts(number))
                print(found[-1], flush=True)
                if len(found) in RENAMED_AFTER:
                    self.run = self.run.rename(self.run.with_name(f"gpt-{number}"))
        return found

    def save(self, number: int) -> None:
        path = write_checkpoint(self.run / f"step_{100 * number}.safetensors", f"checkpoint {number} " * 20)
        self.saved[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        raw = sorted(self.run.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        for old in raw[:-KEPT_BY_TRAINER]:
            old.unlink()

    def facts(self, number: int) -> "Facts":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        disk = sum(path.stat().st_blocks * 512 for path in self.place.rglob("*") if path.is_file())
        journal = sum(path.stat().st_size for path in (self.place / "state").glob("journal*"))
        descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
        return Facts(number, len(self.archives()), disk, journal, pages * 4096, descriptors, self.start_seconds)

    def archives(self) -> list[Path]:
        return sorted(self.place.glob("runs/.ckzd/archives/*/*.ckz"))

    def what_is_wrong(self) -> list[str]:
        """Of what was kept."""
        wrong = []
        for archive in self.archives():
            manifest = ArchiveRecord.read(archive).manifest
            if manifest.depth > MAX_DEPTH:
                wrong.append(f"{archive.name} is {manifest.depth} deep")
            out = self.place / "out"
            ckzd.restore(archive, output=out)
            if hashlib.sha256(out.read_bytes()).hexdigest() != self.saved[manifest.name]:
                wrong.append(f"{archive.name} is restored to something else")
            out.unlink()
        for cached in Store.open(self.place / "runs" / ".ckzd").cache.iterdir():
            cached.unlink()
        return wrong


@dataclass(frozen=True)
class Facts:
    """What should be level."""

    checkpoints: int
    archives: int
    disk: int
    journal: int
    memory: int
    descriptors: int
    start_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.checkpoints:5} checkpoints: {self.archives} archives, {self.disk / 1e6:.2f} MB on disk, journal"
            f" {self.journal / 1e6:.2f} MB, {self.memory / 1e6:.0f} MB of memory, {self.descriptors} descriptors,"
            f" started in {self.start_seconds:.2f} s"
        )


def what_has_grown(facts: list[Facts]) -> list[str]:
    """From the end of the first quarter to that of the year."""
    first, last = facts[len(facts) // 4], facts[-1]
    both = ((name, getattr(first, name), getattr(last, name)) for name in SLACK)
    return [f"{name} has grown from {was} to {now}" for name, was, now in both if now > LEVEL * was + SLACK[name]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoints", type=int, default=3000)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    forks._pipes = (os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_RDONLY))
    subprocess.Popen = forks._Forked
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=memory, prefix="ckzd-year-") as place:
        year = Year(Path(place), parser.parse_args().checkpoints)
        facts = year.live()
        wrong = what_has_grown(facts) + year.what_is_wrong()
        year.daemon.service.__exit__(None, None, None)
    print("".join(f"  {one}\n" for one in wrong), end="")
    print(f"a year of {year.checkpoints} checkpoints: {len(wrong)} things wrong; {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
