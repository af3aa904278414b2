"""One run, the same checkpoints, all methods: ckzd's presets, the published baseline's curve, lossless compressors.

usage: compare.py RUN WORK --tools DIR [--size dev] [--step 1200] [--from-step 100] [--presets resume archive]
                  [--fill-scales 1 1.5 2.2 3 4] [--only 'ckzd *'] [--without cycles]
(wants pip install -e '.[bench]')
RUN holds step_000100.pt, ... of the ruler's run of that size (trained if it is not there); DIR is the ruler's folder
(ruler_job.py). WORK/log.jsonl gets a row as soon as it is known, and a row that is in it is not computed again unless
the code that it was computed with has changed. At the end WORK gets comparison.md and two pictures of all rows so far,
and both tables are printed: all methods, and how many bytes the filled baseline needs for the error of ckzd's settings.
Every method is measured for
  delta    each checkpoint's bytes and seconds, in closed loop, from --from-step on: the first is the base
  quality  of --step, restored: the ruler's quality.py
  cycles   restore --step, train on to the next checkpoint, compress it against the chain, restore, three times
`dev` whole: about two hours on two idle cores, most of it the baseline's nine settings, 5 minutes each. --only takes
several patterns of methods' names; with --from-step 800 everything is half.
"""

import argparse
import filecmp
import fnmatch
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison_report import write_report
from machine import machine
from methods import Method, RestoringChain, methods, step_of
from ruler_job import RulerJob, script
from training import checkpoint_path, heldout_loss, load, nudge, run_series, save

CYCLES = 3
UNINTERRUPTED, CONTROL = Method("uninterrupted", True, None), Method("control", True, None)


class Log:
    """Rows on disk, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            text = path.read_text()
            whole = text[: text.rfind("\n") + 1]  # a line that a crash cut off is computed again
            path.write_text(whole)
            self.rows = [json.loads(line) for line in whole.splitlines()]

    def add(self, **row: Any) -> None:
        """Keep a row and show it."""
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def has(self, method: Method, part: str, step: int) -> bool:
        """Whether the row is there, computed with the method's code as it is now."""
        key = {"method": method.name, "version": method.version, "part": part, "step": step}
        return any(key.items() <= row.items() for row in self.rows)


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where it is written."""

    log: Log
    job: RulerJob
    tools: Path
    size: str
    checkpoints: list[Path]
    step: int
    work: Path

    def measure(self, method: Method, without: list[str]) -> None:
        """All parts of one method that are not in the log."""
        place = self._place(method)
        chain = method.open(place)
        for previous, checkpoint in zip([None, *self.checkpoints], self.checkpoints, strict=False):
            if not self.log.has(method, "delta", step_of(checkpoint)):
                row = {
                    "lossy": method.lossy,
                    "original_bytes": checkpoint.stat().st_size,
                    **chain.add(checkpoint, previous),
                }
                self._add(method, "delta", step_of(checkpoint), **row)
        restores = isinstance(chain, RestoringChain) and "quality" not in without
        if restores and not self.log.has(method, "quality", self.step):
            self._add(method, "quality", self.step, **self._quality(method, chain, place))
        if method.lossy and "cycles" not in without:
            self.cycles(UNINTERRUPTED, None)
            self.cycles(CONTROL, None)
            self.cycles(method, chain)

    def cycles(self, method: Method, chain: RestoringChain | None) -> None:
        """Restore and continue; without a chain the run goes on from the original, with or without its last bits."""
        if self.log.has(method, "cycles", self.step):
            return
        work = self.work / "cycles"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        each = list(self._cycles(method, chain.fork(self.step, work / "chain") if chain else None, work))
        shutil.rmtree(work)
        self._add(method, "cycles", self.step, training=[t for t, _ in each], heldout=[h for _, h in each])

    def _cycles(self, method: Method, chain: RestoringChain | None, work: Path) -> Iterator[tuple[float, float]]:
        """Mean training loss of each cycle and held-out loss after it."""
        start = self._original(self.step)
        for cycle in range(CYCLES):
            if chain is not None:
                start = work / "restored.pt"
                chain.restore(self.step + cycle * self.job.every, start)
            model, optimizer, step = load(self.job, start)
            if method is CONTROL:
                nudge(model)
            losses = [self.job.train_step(model, optimizer, step + i) for i in range(self.job.every)]
            yield sum(losses) / len(losses), heldout_loss(self.job, model)
            start = checkpoint_path(work, step + self.job.every)
            save(start, model, optimizer, step + self.job.every)
            if chain is not None and cycle < CYCLES - 1:
                chain.add(start, None)

    def _quality(self, method: Method, chain: RestoringChain, place: Path) -> dict[str, Any]:
        """By the ruler's measure; a lossless method has to give back the same bytes instead."""
        original, restored = self._original(self.step), place / "restored.pt"
        row = chain.restore(self.step, restored)
        if method.lossy:
            row |= script(self.tools, "quality.py", self.size, original.absolute(), restored.absolute())
        elif not filecmp.cmp(original, restored, shallow=False):
            raise SystemExit(f"{method.name} did not give back what it got")
        restored.unlink()
        return row

    def _original(self, step: int) -> Path:
        return next(path for path in self.checkpoints if step_of(path) == step)

    def _place(self, method: Method) -> Path:
        """The method's own directory; one that its code has outgrown goes."""
        name = "".join(c if c.isalnum() else "_" for c in method.name)
        place = self.work / f"{name}.{method.version}"
        for stale in self.work.glob(f"{name}.*"):
            if stale != place:
                shutil.rmtree(stale)
        place.mkdir(exist_ok=True)
        return place

    def _add(self, method: Method, part: str, step: int, **row: Any) -> None:
        self.log.add(method=method.name, version=method.version, part=part, step=step, **row)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--size", default="dev")
    parser.add_argument("--step", type=int, help="the checkpoint to restore; three quarters of the run if not given")
    parser.add_argument("--from-step", type=int, default=0, help="leave earlier checkpoints out")
    parser.add_argument("--presets", nargs="+", default=["resume", "archive", "paper", "lossless"], help="ckzd's")
    parser.add_argument(
        "--fill-scales",
        nargs="+",
        type=float,
        default=[1.0, 1.5, 2.2, 3.0, 4.0],  # up to a KL of 4e-3 on `dev`
        help="thresholds of the filled baseline: its curve is to reach the errors that it is compared at",
    )
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of method names")
    parser.add_argument("--without", nargs="+", default=[], choices=["quality", "cycles"])
    return parser.parse_args()


def main() -> None:
    options = arguments()
    job = RulerJob(options.tools, options.size)
    for done, loss in run_series(job, options.run):
        print(json.dumps({"trained_step": done, "training_loss": round(loss, 4)}), flush=True)
    checkpoints = [path for path in sorted(options.run.glob("step_*.pt")) if step_of(path) >= options.from_step]
    step = options.step or job.every * round(0.75 * job.steps / job.every)
    options.work.mkdir(parents=True, exist_ok=True)
    log = Log(options.work / "log.jsonl")
    subject = {"run": str(options.run.resolve()), "size": options.size, "step": step, "from_step": options.from_step}
    if log.rows and log.rows[0]["subject"] != subject:
        raise SystemExit(f"{options.work} holds the comparison of {log.rows[0]['subject']}, not of {subject}")
    parameters = sum(parameter.numel() for parameter in job.make()[0].parameters())
    log.add(subject=subject, parameters=parameters, **machine())
    comparison = Comparison(log, job, options.tools, options.size, checkpoints, step, options.work)
    started = time.perf_counter()
    for method in methods(options.tools, step, options.presets, options.fill_scales):
        if any(fnmatch.fnmatch(method.name, pattern) for pattern in options.only):
            comparison.measure(method, options.without)
    print(json.dumps({"seconds": round(time.perf_counter() - started, 1)}))
    write_report(log.rows, options.work)


if __name__ == "__main__":
    main()
