"""What `ckzd list` takes for a run of many archives: it reads what each says of itself, and no streams.

usage: listing.py WORK [--count 3000]
Archives are hand-made: a chain of `--count`, each with the manifest of a small checkpoint. A line gives the seconds of
the command, its own start included, and those of CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from machine import machine

from ckzd.store import Store

sys.path.insert(0, str(Path(__file__).parent.parent))
from making import put_chain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=3000)
    options = parser.parse_args()
    run = options.work / "run"
    run.mkdir(parents=True)
    put_chain(Store.open_or_create(options.work / ".ckzd"), run, options.count)
    print(json.dumps({**machine(), "count": options.count}), flush=True)
    before, started = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "ckzd", "list", "--json", str(run)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    seconds, after = time.perf_counter() - started, os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    print(json.dumps({"listed": len(listed), "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}))


if __name__ == "__main__":
    main()
