"""The `ckzd` command as the benchmarks run it: another process, one JSON object a line."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ckzd.operations.restore import restore

CKZD = (sys.executable, "-m", "ckzd")


def ckzd_lines(*arguments: str, program: Sequence[str] = CKZD) -> Iterator[dict[str, Any]]:
    """Run one command with --json; its lines as they come. CalledProcessError if it fails."""
    command = [*program, *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def ckzd(*arguments: str, program: Sequence[str] = CKZD) -> list[dict[str, Any]]:
    """All lines of one command."""
    return list(ckzd_lines(*arguments, program=program))


def compress(
    paths: list[Path], store: Path, preset: str, device: str = "auto", effort: str = "best"
) -> Iterator[dict[str, Any]]:
    """Archive checkpoints, or a run, in closed loop: each report with what `inspect` says of the archive."""
    options = ("--store", str(store), "--preset", preset, "--device", device, "--effort", effort)
    for report in ckzd_lines("compress", *map(str, paths), *options):
        (seen,) = ckzd("inspect", report["archive"])
        yield report | {"step": seen["step"], "bits": seen["bits_per_parameter"], "coders": seen["coders"]}


def round_trip(run: Path, work: Path, preset: str) -> Iterator[tuple[Path, Path, dict[str, Any]]]:
    """Archive a run in closed loop, then restore each of its checkpoints: original, restored, report, oldest first."""
    for report in ckzd("compress", str(run), "--store", str(work / "store"), "--preset", preset):
        original = Path(report["checkpoint"])
        restored = work / original.name
        restore(Path(report["archive"]), output=restored)
        yield original, restored, report


def loop_ratios(reports: list[dict[str, Any]], last: int = 4) -> dict[str, Any]:
    """The ratios of a run in closed loop, oldest report first: the mean of the last deltas, and all with the base."""
    ratios = [report["original_bytes"] / report["archive_bytes"] for report in reports]
    deltas = ratios[1:][-last:]
    return {
        "ratio_last": [round(ratio, 2) for ratio in deltas],
        "ratio_last_mean": round(sum(deltas) / len(deltas), 2) if deltas else None,
        "ratio_whole": round(
            sum(report["original_bytes"] for report in reports) / sum(report["archive_bytes"] for report in reports), 2
        ),
    }
