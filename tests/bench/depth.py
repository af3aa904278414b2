"""What a bound on the depth of chains costs in bytes, and what it saves at a restore: a run of many checkpoints.

usage: depth.py WORK [--run DIR] [--count 300] [--every 50] [--depths 100000 64 32 20] [--preset resume]
A small GPT is trained (`small.py`), and every checkpoint, or those of the run that is named, are archived under each
bound, in closed loop. A line a bound gives bytes, their excess over the first bound's, the depth of the chains and the
number of bases; then the seconds of a restore of the deepest archive without the cache.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from machine import machine
from small import YOUNG
from training import run_series

from ckzd.chains import records_in
from ckzd.operations.compress import compress
from ckzd.operations.restore import restore
from ckzd.store import Store


def archived(checkpoints: list[Path], store: Path, preset: str, max_depth: int) -> dict[str, int]:
    """Archive a run; bytes, depth and bases of it."""
    for path in checkpoints:
        compress(path, store=store, preset=preset, device="cpu", max_depth=max_depth)
    records = records_in(Store.open(store).run_directory(checkpoints[0].parent))
    return {
        "max_depth": max_depth,
        "bytes": sum(record.path.stat().st_size for record in records),
        "original_bytes": sum(path.stat().st_size for path in checkpoints),
        "depth": max(record.manifest.depth for record in records),
        "bases": sum(record.manifest.reference is None for record in records),
    }


def restored(store: Path, run: Path, work: Path) -> dict[str, float]:
    """Seconds of a restore of the deepest archive, every link of it decoded."""
    for cached in (store / "cache").glob("*.rec"):
        cached.unlink()
    deepest = max(records_in(Store.open(store).run_directory(run)), key=lambda record: record.manifest.depth)
    started = time.perf_counter()
    restore(deepest.path, output=work / f"restored_{store.name}.pt")
    return {"links": deepest.manifest.depth + 1, "restore_seconds": round(time.perf_counter() - started, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--depths", type=int, nargs="+", default=[100_000, 64, 32, 20])
    parser.add_argument("--preset", default="resume")
    options = parser.parse_args()
    print(
        json.dumps({**machine(), "preset": options.preset, "count": options.count, "every": options.every}), flush=True
    )
    run = options.run or options.work / "run"
    job = replace(YOUNG["gpt"], steps=options.count * options.every, every=options.every)
    for step, loss in run_series(job, run) if options.run is None else ():
        if step % (50 * options.every) == 0:
            print(json.dumps({"step": step, "loss": round(loss, 4)}), flush=True)
    checkpoints = sorted(run.glob("step_*.pt"))[: options.count]
    first = None
    for max_depth in options.depths:
        store = options.work / f"store_{max_depth}"
        row = archived(checkpoints, store, options.preset, max_depth)
        first = first or row["bytes"]
        more = {"excess": round(row["bytes"] / first - 1, 4), "ratio": round(row["original_bytes"] / row["bytes"], 2)}
        print(json.dumps(row | more | restored(store, run, options.work)), flush=True)


if __name__ == "__main__":
    main()
