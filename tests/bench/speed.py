"""Seconds and peak memory of compress, verify and restore on one checkpoint of a run, by the command line.

usage: speed.py REFERENCE.pt... CURRENT.pt --work DIR [--preset resume]
Archives the references first, then times: `compress` of the last (its own verification included), `verify`,
`restore` with the cache, and `restore` without it (the whole chain is decoded). Peak memory is the largest of any
child process.
"""

import argparse
import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

from command import ckzd
from machine import machine


def timed(name: str, *arguments: str) -> dict[str, Any]:
    """Run one command, print its seconds, return what it said."""
    started = time.perf_counter()
    (report,) = ckzd(*arguments)
    print(json.dumps({"command": name, "seconds": round(time.perf_counter() - started, 2)}), flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--preset", default="resume")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    print(json.dumps({**machine(), "preset": options.preset}))
    *references, current = options.checkpoints
    store = ("--store", str(options.work / "store"), "--preset", options.preset)
    for path in references:
        timed(f"compress {path.name} (to build the chain)", "compress", str(path), *store)
    archive = timed("compress + verify", "compress", str(current), *store)["archive"]
    timed("verify", "verify", archive)
    timed("restore, cached", "restore", archive, "-o", str(options.work / "cached.pt"))
    shutil.rmtree(options.work / "store" / "cache")
    (options.work / "store" / "cache").mkdir()
    timed(
        f"restore, chain of {len(options.checkpoints)} links", "restore", archive, "-o", str(options.work / "chain.pt")
    )
    if (options.work / "cached.pt").read_bytes() != (options.work / "chain.pt").read_bytes():
        raise SystemExit("the two restores differ")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"original_bytes": current.stat().st_size, "peak_memory_bytes_of_a_process": peak}))


if __name__ == "__main__":
    main()
