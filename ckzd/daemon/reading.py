"""The process that reads checkpoints for the service (see `reader`), within a limit of memory.

Questions and answers are JSON. It ends when it was asked nothing for a while, and when it has grown: its memory is
training's.
"""

import json
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ckzd.daemon.settle import FormatsRule
from ckzd.errors import BadCheckpoint, CkzdError
from ckzd.operations.child import error_line

MAX_BYTES = 1 << 30  # beside what it has loaded; pickles of real checkpoints take tenths of it
NICE = 10  # not idle as workers are: it takes thousandths of a second, and all else waits for it
IDLE_SECONDS = 60.0
GROWN_BYTES = 300 << 20


def answer(kind: str, checkpoint: Path) -> dict[str, Any]:
    """What the frameworks' rule says of a checkpoint, or the error that it raised."""
    rule = FormatsRule()
    try:
        if kind == "rankings":
            return {"value": [(ranking.saver, dict(ranking.scores)) for ranking in rule.rankings(checkpoint)]}
        ask = {"completeness": rule.completeness, "parse": rule.parse, "best_models": rule.best_models}[kind]
        return {"value": ask(checkpoint)}
    except CkzdError as error:
        return {"error": error_line(error)}
    except MemoryError:
        return {"error": error_line(BadCheckpoint(checkpoint, f"cannot be read within {MAX_BYTES} bytes"))}


def serve(pipe: Connection) -> None:
    """Answer until nobody asks any more."""
    last = False
    while not last and pipe.poll(IDLE_SECONDS):
        try:
            kind, checkpoint = json.loads(pipe.recv_bytes())
            said = answer(kind, Path(checkpoint))
            last = _pages()[1] * resource.getpagesize() > GROWN_BYTES
            pipe.send_bytes(json.dumps({**said, "last": last}).encode())
        except (EOFError, OSError):
            return


def _pages() -> tuple[int, int]:
    """Of address space and of memory, now; `ru_maxrss` would begin with what the service had when it forked."""
    size, resident, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(size), int(resident)


def main(descriptor: int) -> None:
    """Set the limit, serve. A terminal's interrupt is for the service."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    limit = _pages()[0] * resource.getpagesize() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as pipe:
        serve(pipe)


if __name__ == "__main__":
    main(int(sys.argv[1]))
