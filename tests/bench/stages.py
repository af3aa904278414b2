"""Where the seconds of one archive go: by function, of encoding and of its proof, on one thread.

usage: stages.py REFERENCE.pt... CURRENT.pt --work DIR [--preset resume] [--effort best] [--threads 1] [--top 0]
Archives the references, then encodes the last and checks its archive in this process, while a thread looks a hundred
times a second which function of ckzd is at work: the innermost, with all that it calls of other packages.
The proof decodes the references too: only the newest reconstruction is cached. PYTHONPATH chooses whose code it is, so
that two trees can be compared.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

from clock import Clock
from machine import machine

from ckzd.archive import ArchiveReader
from ckzd.operations.compress import compress
from ckzd.operations.reconstruct import reconstruction_or_none, scratch_file, store_of
from ckzd.operations.verify import check_link

_EVERY = 0.01  # seconds
_SYMBOLS = ("gather", "scatter", "line_sums", "contexts", "count", "rans_")  # kernels
STAGES = {  # by what a function's place begins with, in trees of any age; the first that fits
    "the other process": ("operations/child.py",),
    "bases: learning": (
        "codec/orthogonal",
        "codec/transform/orthogonal",
        "codec/algebra",
        "codec/kernels/native.py:Native.orthonormal",
        "codec/kernels/plain.py:shifted",
        "codec/frames.py:_",
        "codec/transform/adaptive_basis.py:_",
        "codec/frames.py:learned",
        "codec/transform/adaptive_basis.py:tracked",
    ),
    "bases: coefficients": ("codec/frames", "codec/transform/adaptive_basis"),
    "factors": (
        *(f"codec/{name}" for name in ("lowrank", "factors", "wide", "methods/factored")),
        *(f"codec/transform/{name}" for name in ("lowrank", "factors", "wide")),
    ),
    "symbols": (
        *(f"codec/{name}" for name in ("entropy", "context", "planes", "models", "fitting", "escapes")),
        *(f"codec/kernels/native.py:Native.{name}" for name in _SYMBOLS),
    ),
    "reading, files, hashes": (
        *("formats", "checkpoint", "archive", "durable", "store", "chains", "operations"),
        *(f"codec/{name}" for name in ("analysis/contents", "survey.py:check", "reconstruction", "records")),
    ),
}
_ASLEEP = ("meanwhile.py:repeated.<locals>.repeat",)  # threads that wait for the next time
_REST = "choosing, quantizing, moments"


class Sampler:
    """Looks at all threads but its own."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY):
            for ident, frame in sys._current_frames().items():
                place = _place(frame)
                if ident != self._thread.ident and place is not None and place not in _ASLEEP:
                    self.seen[place] += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _place(frame: FrameType | None) -> str | None:
    """Module and function of the innermost frame that is ckzd's."""
    while frame is not None:
        name = frame.f_code.co_filename
        if "/ckzd/" in name and "/tests/" not in name:
            return f"{name.rsplit('/ckzd/', 1)[1]}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return None


def _by_stage(seen: Counter[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for place, count in seen.items():
        found[next((name for name, starts in STAGES.items() if place.startswith(starts)), _REST)] += count
    return found


@contextmanager
def sampled(name: str, top: int) -> Iterator[None]:
    """Print what the block took, in all and by function."""
    clock = Clock()
    with Sampler() as sampler:
        yield
    took, total = clock.seconds(), sum(sampler.seen.values()) or 1
    print(json.dumps({"stage": name, **{key: round(value, 2) for key, value in took.items()}}), flush=True)
    for stage, count in _by_stage(sampler.seen).most_common():
        print(f"  {count / total:6.1%}  {count * took['seconds'] / total:5.2f} s  {stage}", flush=True)
    for place, count in sampler.seen.most_common(top):
        print(f"  {count / total:6.1%}  {place}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--preset", default="resume")
    parser.add_argument("--effort", default="best")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--top", type=int, default=0, help="functions that are listed beside the stages")
    options = parser.parse_args()
    how = {"preset": options.preset, "effort": options.effort, "threads": options.threads}
    print(json.dumps({**machine(), **how}), flush=True)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(options.threads)))
    *references, current = options.checkpoints
    settings = {"store": options.work / "store", "preset": options.preset, "device": "cpu"}
    if options.effort != "best":  # which early trees do not know
        settings["effort"] = options.effort
    before = None
    for path in references:
        before = Path(compress(path, **settings).archive)
    with sampled("compress", options.top):
        archive = Path(compress(current, **settings).archive)
    started = time.perf_counter()
    with (
        sampled("proof", options.top),
        ArchiveReader(archive) as reader,
        reconstruction_or_none(before) as reference,
        scratch_file(store_of(archive)) as file,
    ):
        check_link(reader, reference, file, lambda _: None)
    print(json.dumps({"proof_seconds": round(time.perf_counter() - started, 2), "bytes": archive.stat().st_size}))


if __name__ == "__main__":
    main()
