"""Where the seconds of one archive go: by function, of encoding and of its proof, on one thread.

usage: stages.py REFERENCE.pt... CURRENT.pt --work DIR [--preset resume] [--threads 1] [--top 40]
Archives the references, then encodes the last and checks its archive in this process, while a thread looks a hundred
times a second which function of ckzd is at work: the innermost, with all that it calls of other packages.
PYTHONPATH chooses whose code it is, so that two trees can be compared.
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

from ckzd.operations.compress import compress
from ckzd.operations.verify import check_archive

_EVERY = 0.01  # seconds


class Sampler:
    """Looks at all threads but its own."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY):
            for ident, frame in sys._current_frames().items():
                if ident != self._thread.ident and (place := _place(frame)) is not None:
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


@contextmanager
def sampled(name: str, top: int) -> Iterator[None]:
    """Print what the block took, in all and by function."""
    clock = Clock()
    with Sampler() as sampler:
        yield
    total = sum(sampler.seen.values()) or 1
    print(json.dumps({"stage": name, **{key: round(value, 2) for key, value in clock.seconds().items()}}), flush=True)
    for place, count in sampler.seen.most_common(top):
        print(f"  {count / total:6.1%}  {place}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--preset", default="resume")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--top", type=int, default=40)
    options = parser.parse_args()
    print(json.dumps({**machine(), "preset": options.preset, "threads": options.threads}), flush=True)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(options.threads)))
    *references, current = options.checkpoints
    before = None
    for path in references:
        before = Path(compress(path, store=options.work / "store", preset=options.preset, device="cpu").archive)
    with sampled("compress", options.top):
        archive = Path(compress(current, store=options.work / "store", preset=options.preset, device="cpu").archive)
    started = time.perf_counter()
    with sampled("proof", options.top):
        check_archive(archive, before, lambda _: None)
    print(json.dumps({"proof_seconds": round(time.perf_counter() - started, 2), "bytes": archive.stat().st_size}))


if __name__ == "__main__":
    main()
