"""A run of another kind, trained here and archived in closed loop: ratio, and what a restore costs.

usage: others.py RUNS WORK --kind vit|convnet|experts [--preset resume] [--step 800]
RUNS/KIND/step_000100.pt, ... is the run: trained on one thread if it is not there, gone on with if it is not whole.
WORK/KIND is new and gets the store and the restored checkpoint. The last line holds the ratio of the last four deltas
against its bar. The tiny kinds are for tests.
"""

import argparse
import json
import time
from pathlib import Path

import experts
import torch
import vision
from command import ckzd, compress, loop_ratios
from machine import machine
from training import checkpoint_path, quality, run_series

JOBS = vision.JOBS | experts.JOBS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kind", choices=sorted(JOBS), required=True)
    parser.add_argument("--preset", default="resume")
    parser.add_argument("--step", type=int, help="the checkpoint to restore; the third from the end if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads changes sums, and a run is to repeat bit for bit
    job, run, work = JOBS[options.kind], options.runs / options.kind, options.work / options.kind
    step = options.step or job.steps - 2 * job.every
    work.mkdir(parents=True)
    parameters = sum(parameter.numel() for parameter in job.make()[0].parameters())
    print(json.dumps({**machine(), "run": options.kind, "parameters": parameters, "preset": options.preset}))
    started = time.perf_counter()
    for done, loss in run_series(job, run):
        elapsed = round(time.perf_counter() - started, 1)
        print(json.dumps({"trained_step": done, "training_loss": round(loss, 4), "seconds": elapsed}), flush=True)
    reports = []
    for report in compress([run], work / "store", options.preset):
        reports.append(report)
        kept = {name: report[name] for name in ("step", "archive_bytes", "bits", "coders")}
        print(json.dumps(kept | {name: round(report[name], 2) for name in ("ratio", "seconds")}), flush=True)
    restored = work / f"restored_{step}.pt"
    (archive,) = (report["archive"] for report in reports if report["step"] == step)
    ckzd("restore", archive, "-o", str(restored))
    print(json.dumps({"restored_step": step, **quality(job, checkpoint_path(run, step), restored)}), flush=True)
    ratios = loop_ratios(reports)
    bits = 8 * sum(report["archive_bytes"] for report in reports[-4:]) / len(reports[-4:]) / parameters
    met = ratios["ratio_last_mean"] >= job.least_ratio
    print(json.dumps({**ratios, "bits_a_parameter": round(bits, 3), "bar": job.least_ratio, "bar_met": met}))


if __name__ == "__main__":
    main()
