"""The methods that compare.py holds against each other, each as a chain to which checkpoints are added in order."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from clock import Clock
from command import CKZD, ckzd
from lossless import DeltaPlanes, ZipnnCoder, xz, zstd
from ruler_job import script
from training import checkpoint_path

import ckzd as package

SCALES = (1.0, 1.5, 2.2, 3.0)  # of the threshold of the baseline without a fill
SCALED = str(Path(__file__).with_name("scaled.py"))
BETWEEN = (("resume", 0.6), ("archive", 1.4))  # ckzd's curve beside its presets: steps of these, scaled
Row = dict[str, Any]


class Chain(Protocol):
    """The archives of one run under one method."""

    def add(self, checkpoint: Path, previous: Path | None) -> Row:
        """Compress the next checkpoint: bytes, seconds, cpu_seconds and, where they are known, decode_...

        `previous` is the original before it; a lossy method does not look at it: its loop is closed.
        """


@runtime_checkable
class RestoringChain(Chain, Protocol):
    """One that keeps its archives and gives them back later."""

    def restore(self, step: int, target: Path) -> Row:
        """Write what a user would resume from to `target`; decode_seconds a checkpoint, where it is known."""

    def fork(self, step: int, work: Path) -> "RestoringChain":
        """A chain of its own in `work` that has this one's archives up to `step`."""


@dataclass(frozen=True)
class Method:
    """One method: `open` gives its chain in a directory, begun or new. Figures hold for one version of its code."""

    name: str
    lossy: bool
    open: Callable[[Path], Chain]
    version: str = ""


def methods(tools: Path, kept_step: int, presets: Sequence[str], fill_scales: Sequence[float]) -> list[Method]:
    """All of them, ckzd's by `presets`. The baseline keeps what it restores of `kept_step` and the newest step only."""
    code = _digest(sorted(Path(package.__file__).parent.rglob("*.py")))
    baseline = _digest([tools / "excp_baseline.py"])

    def of_ckzd(preset: str, scale: float = 1.0) -> Method:
        name = f"ckzd {preset}" + (f" x{scale:g}" if scale != 1 else "")
        return Method(name, preset != "lossless", lambda work: CkzdChain(work, preset, scale), code)

    def of_excp(scale: float, *, fill: bool) -> Method:
        def start(work: Path) -> Chain:
            return ExcpChain(work, tools, scale, kept_step, fill=fill)

        name = f"ExCP{' + fill' if fill else ''} x{scale:g}"
        return Method(name, True, start, baseline)

    return [
        *(of_ckzd(preset) for preset in presets),
        *(of_ckzd(preset, scale) for preset, scale in BETWEEN if preset in presets),
        *(of_excp(scale, fill=False) for scale in SCALES),
        *(of_excp(scale, fill=True) for scale in fill_scales),
        Method("delta planes zstd -19", False, lambda _: DeltaPlanes()),
        Method("zipnn", False, lambda _: ZipnnCoder()),
        Method("zstd -3", False, lambda _: zstd(3)),
        Method("zstd -19", False, lambda _: zstd(19)),
        Method("xz -9", False, lambda _: xz()),
    ]


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def step_of(checkpoint: Path) -> int:
    """step_000100.pt -> 100."""
    return int(checkpoint.stem.removeprefix("step_"))


def _link(source: Path, target: Path) -> None:
    """The same file at another path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class CkzdChain:
    """One preset, its steps scaled, through the command line, in a run and a store of its own."""

    work: Path
    preset: str
    scale: float = 1.0

    def add(self, checkpoint: Path, previous: Path | None) -> Row:
        """Seconds with the verification in another process; none where the archive was there already."""
        linked = self.work / "run" / checkpoint.name
        _link(checkpoint, linked)
        clock = Clock()
        program = CKZD if self.scale == 1 else (sys.executable, SCALED, self.preset, str(self.scale))
        options = ("--preset", self.preset, "--store", str(self.work / "store"))
        (report,) = ckzd("compress", str(linked), *options, program=program)
        row = {"bytes": report["archive_bytes"]}
        return row if report["already"] else row | clock.seconds() | {"seconds": report["seconds"]}

    def restore(self, step: int, target: Path) -> Row:
        """Without the cache, so that every link is decoded: seconds a link."""
        archive = self._archive(step)
        for reconstruction in (self.work / "store" / "cache").glob("*.rec"):
            reconstruction.unlink()
        target.unlink(missing_ok=True)
        (seen,) = ckzd("inspect", str(archive))
        clock = Clock()
        (report,) = ckzd("restore", str(archive), "-o", str(target))
        seconds = clock.seconds() | {"seconds": report["seconds"]}
        return {f"decode_{name}": value / (seen["depth"] + 1) for name, value in seconds.items()}

    def fork(self, step: int, work: Path) -> "CkzdChain":
        """Archives lie by the run's path relative to the store: the same in both."""
        for archive in (self.work / "store" / "archives").glob("*/*.ckz"):
            if step_of(Path(archive.name.split(".", 1)[0])) <= step:
                _link(archive, work / archive.relative_to(self.work))
        return CkzdChain(work, self.preset, self.scale)

    def _archive(self, step: int) -> Path:
        (archive,) = (self.work / "store" / "archives").glob(f"*/{checkpoint_path(Path(), step).name}.*.ckz")
        return archive


@dataclass(frozen=True)
class ExcpChain:
    """The ruler's baseline in closed loop: each delta against what it restored before. Its base is coded exactly."""

    work: Path
    tools: Path
    scale: float
    kept_step: int
    fill: bool = field(kw_only=True)

    def add(self, checkpoint: Path, previous: Path | None) -> Row:
        """The base as byte planes; a delta by the script, whose seconds hold both directions of everything but xz."""
        step, restored = step_of(checkpoint), self._restored(step_of(checkpoint))
        before = sorted(path for path in self.work.glob("step_*.pt") if step_of(path) < step)
        for stale in before[:-1]:
            if step_of(stale) != self.kept_step:
                stale.unlink()
        if not before:
            _link(checkpoint, restored)
            return DeltaPlanes().add(checkpoint, None)
        unfinished = restored.with_suffix(".unfinished")
        paths = (path.absolute() for path in (before[-1], checkpoint, unfinished))
        options = ["--threshold-scale", self.scale, *(["--fill"] if self.fill else [])]
        clock = Clock()
        report = script(self.tools, "excp_baseline.py", *paths, *options)
        seconds = clock.seconds()
        unfinished.replace(restored)
        return {"bytes": report["coded_bytes"], **seconds}

    def restore(self, step: int, target: Path) -> Row:
        """The script has restored it when it compressed it."""
        _link(self._restored(step), target)
        return {}

    def fork(self, step: int, work: Path) -> "ExcpChain":
        """The newest restored checkpoint is all that it goes on from."""
        forked = ExcpChain(work, self.tools, self.scale, step, fill=self.fill)
        _link(self._restored(step), forked._restored(step))
        return forked

    def _restored(self, step: int) -> Path:
        return checkpoint_path(self.work, step)
