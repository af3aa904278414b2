"""The ruler's checkpoints in other forms: what the same run costs where a checkpoint holds less, or more.

usage: stripped.py RUN_DIR WORK_DIR --tools DIR --form weights|masters [--size dev] [--first 100] [--step 1200]
RUN_DIR and DIR are as `ruler.py` has them. `weights` keeps the model alone; `masters` has it in bfloat16, with fp32
masters beside it, which the optimizer's states are of. Every step up to 100 after STEP is archived in closed loop, and
STEP restored: its weights take the place of the original's, so that `quality.py` can say what they lost.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command import ckzd, compress, loop_ratios
from machine import machine
from ruler_job import script

Contents = dict[str, Any]


def weights(whole: Contents) -> Contents:
    """The model alone."""
    return {"model": whole["model"], "step": whole["step"]}


def masters(whole: Contents) -> Contents:
    """The model rounded to bfloat16, and the values that were rounded."""
    rounded = {name: tensor.bfloat16() for name, tensor in whole["model"].items()}
    return {"model": rounded, "master": whole["model"]} | {name: whole[name] for name in ("optimizer", "step")}


FORMS: dict[str, Callable[[Contents], Contents]] = {"weights": weights, "masters": masters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--form", choices=sorted(FORMS), required=True)
    parser.add_argument("--size", default="dev")
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--step", type=int, default=1200)
    parser.add_argument("--preset", default="resume")
    options = parser.parse_args()
    run = options.work / "run"
    run.mkdir(parents=True)
    for step in range(options.first, options.step + 200, 100):
        whole = torch.load(options.run / f"step_{step:06d}.pt", weights_only=True)
        torch.save(FORMS[options.form](whole), run / f"step_{step:06d}.pt")
    print(json.dumps({**machine(), "preset": options.preset, "run": options.run.name, "form": options.form}))
    reports = []
    for report in compress([run], options.work / "store", options.preset):
        reports.append(report)
        bits = {part: round(value, 4) for part, value in report["bits"].items()}
        row = {"step": report["step"], "bytes": report["archive_bytes"], "ratio": round(report["ratio"], 2)}
        print(json.dumps(row | {"bits": bits, "coders": report["coders"]}), flush=True)
    print(json.dumps(loop_ratios(reports)))
    restored, composed = options.work / "restored.pt", options.work / "composed.pt"
    (archive,) = (report["archive"] for report in reports if report["step"] == options.step)
    ckzd("restore", archive, "-o", str(restored))
    original = options.run / f"step_{options.step:06d}.pt"
    whole, found = (torch.load(path, weights_only=True) for path in (original, restored))
    torch.save(whole | {"model": found.get("master", found["model"])}, composed)
    quality = script(options.tools, "quality.py", options.size, original.absolute(), composed.absolute())
    print(json.dumps({name: quality[name] for name in ("kl", "val_gap", "resume_gap", "heldout_gap")}))


if __name__ == "__main__":
    main()
