"""What `ckzd list` takes for a run of many archives: it reads what each says of itself, and no streams.

usage: listing.py WORK [--count 3000]
Archives are hand-made: a chain of `--count`, each with the manifest of a small checkpoint. A line gives the seconds of
the command, its own start included, and those of CPU.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from machine import machine

from ckzd.archive import ArchiveWriter, FileModel, Manifest
from ckzd.archive.manifest import original_digest, restored_digest
from ckzd.store import Store


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def put(store: Store, run: Path, step: int) -> None:
    """An archive with the entries that each has, a delta against the one of the step before."""
    name = f"step_{step}.pt"
    plain = {"mode": 0o100644, "uid": 0, "gid": 0, "mtime_ns": step * 10**9}
    file = FileModel(name=name, size=3, original_sha256=sha256(name), sha256=sha256(name), tensors=1, **plain)
    manifest = Manifest(
        preset="resume", name=name, kind="file", directory=None, step=step,
        checkpoint=original_digest([file]), restored=restored_digest([file]), reconstruction=sha256(f"after {step}"),
        reference=sha256(f"after {step - 1}") if step else None, depth=step, original_bytes=3, parameters=0,
        parts={"weights": 10, "index": 2}, coders={"tables": 3}, quality={}, tools={"ckzd": "0"}, files=[file],
    )  # fmt: skip
    with store.archive_path(run, name, manifest.checkpoint).open("wb") as out:
        writer = ArchiveWriter(out)
        writer.put("weights", b"a stream")
        writer.add("index", b"the index")
        writer.add("skeleton", b"the skeleton")
        writer.finish(manifest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=3000)
    options = parser.parse_args()
    run = options.work / "run"
    run.mkdir(parents=True)
    store = Store.open_or_create(options.work / ".ckzd")
    for step in range(options.count):
        put(store, run, step)
    print(json.dumps({**machine(), "count": options.count}), flush=True)
    before, started = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "ckzd", "list", "--json", str(run)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    seconds, after = time.perf_counter() - started, os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    print(json.dumps({"listed": len(listed), "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}))


if __name__ == "__main__":
    main()
