"""A whole run in closed loop: ratio of every archive, bits a parameter by part, and the quality of one restored step.

usage: ruler.py RUN_DIR WORK_DIR --tools DIR [--size dev] [--step 1200] [--preset resume] [--effort best]
RUN_DIR holds step_000100.pt, ... of one deterministic run; DIR holds `quality.py`, which takes SIZE ORIGINAL RESTORED
and prints a JSON object (kl, resume_gap, heldout_gap). Everything is done by the command line, as a user would.
"""

import argparse
import json
import time
from pathlib import Path

from command import ckzd, compress, loop_ratios
from machine import machine
from ruler_job import script

PARTS = ("weights", "first_moment", "second_moment", "scales", "lstm", "tables", "index", "skeleton", "container")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--size", default="dev")
    parser.add_argument("--step", type=int, default=1200)
    parser.add_argument("--preset", default="resume")
    parser.add_argument("--effort", default="best")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    print(json.dumps({**machine(), "preset": options.preset, "effort": options.effort, "run": options.run.name}))
    archives = {}
    for report in compress([options.run], options.work / "store", options.preset, effort=options.effort):
        archives[report["step"]] = report
        bits = {part: round(report["bits"].get(part, 0.0), 4) for part in PARTS}
        row = {"step": report["step"], "bytes": report["archive_bytes"], "ratio": round(report["ratio"], 2)}
        row |= {"seconds": round(report["seconds"], 1), "bits": bits, "coders": report["coders"]}
        print(json.dumps(row), flush=True)
    print(json.dumps(loop_ratios(list(archives.values()))))
    restored = options.work / f"restored_{options.step}.pt"
    started = time.perf_counter()
    ckzd("restore", archives[options.step]["archive"], "-o", str(restored))
    print(json.dumps({"restored_step": options.step, "seconds": round(time.perf_counter() - started, 2)}))
    original_path = Path(archives[options.step]["checkpoint"]).absolute()
    quality = script(options.tools, "quality.py", options.size, original_path, restored.absolute())
    print(json.dumps({name: quality[name] for name in ("kl", "val_gap", "resume_gap", "heldout_gap")}))


if __name__ == "__main__":
    main()
