"""Seconds of one archive by two trees of ckzd, in turns: what this one wins over an earlier one.

usage: paired.py OLD_TREE REFERENCE.pt... CURRENT.pt --work DIR [--rounds 3] [--efforts best fast] [--threads 2 1]
OLD_TREE is a checkout of the earlier commit (git worktree add). Each tree archives the references into a store of its
own; then every round archives the last checkpoint once by each, into a copy of that store, as a whole command with its
proof, and restores it twice, with the cache and link by link without. A line a way gives medians of seconds and CPU
seconds, MB of the original a second, and the old tree's seconds over its own; an old tree knows no efforts. Seconds
hold what it takes to start Python twice; `stages.py` tells what is in them.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clock import Clock
from machine import machine

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
HERE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Way:
    """A tree, and how it is asked."""

    tree: Path
    effort: str | None
    threads: int

    @property
    def name(self) -> str:
        """For a row."""
        which = "this" if self.tree == HERE else "old"
        return f"{which}{f' {self.effort}' if self.effort else ''}, {self.threads} threads"

    def run(self, *arguments: str) -> dict[str, float]:
        """One command of ckzd; its seconds."""
        environment = {**os.environ, **dict.fromkeys(THREADS, str(self.threads)), "PYTHONPATH": str(self.tree)}
        clock = Clock()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ckzd", *arguments, "--json"],
            env=environment,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr.decode())
        return clock.seconds()

    def compress(self, checkpoint: Path, store: Path) -> dict[str, float]:
        """Archive one checkpoint."""
        effort = ("--effort", self.effort) if self.effort else ()
        return self.run("compress", str(checkpoint), "--store", str(store), *effort)


def ways(old: Path, efforts: list[str], threads: list[int]) -> Iterator[Way]:
    for count in threads:
        yield Way(old, None, count)
        yield from (Way(HERE, effort, count) for effort in efforts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--efforts", nargs="+", default=["best", "fast"])
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    options = parser.parse_args()
    *references, current = options.checkpoints
    size = current.stat().st_size
    print(json.dumps({**machine(), "original_bytes": size, "references": len(references)}), flush=True)
    asked = list(ways(options.old.resolve(), options.efforts, options.threads))
    prepared = {}
    for number, way in enumerate(asked):
        prepared[way] = options.work / f"prepared_{number}"
        for path in references:
            way.compress(path, prepared[way])
    taken: dict[tuple[str, Way], list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.rounds):
        for way in asked:
            store, restored = options.work / "store", options.work / "restored.pt"
            shutil.copytree(prepared[way], store)
            taken["compress", way].append(way.compress(current, store))
            (archive,) = store.glob(f"archives/*/{current.name}.*.ckz")
            taken["restore, cached", way].append(way.run("restore", str(archive), "-o", str(restored)))
            restored.unlink()
            for cached in (store / "cache").iterdir():
                cached.unlink()
            taken[f"restore, {len(references) + 1} links", way].append(
                way.run("restore", str(archive), "-o", str(restored))
            )
            sizes = {"archive_bytes": archive.stat().st_size}
            taken["compress", way][-1] |= sizes
            restored.unlink()
            shutil.rmtree(store)
    for (command, way), runs in sorted(taken.items(), key=lambda item: (item[0][0], asked.index(item[0][1]))):
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        old = next(each for each in asked if each.effort is None and each.threads == way.threads)
        before = {name: statistics.median(run[name] for run in taken[command, old]) for name in runs[0]}
        row = {"command": command, "way": way.name, **{name: round(value, 2) for name, value in middle.items()}}
        row |= {"mb_s": round(size / 1e6 / middle["seconds"], 1)}
        row |= {f"old_over_{name}": round(before[name] / middle[name], 2) for name in ("seconds", "cpu_seconds")}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
