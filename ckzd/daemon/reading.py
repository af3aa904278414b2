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
        return {"value": {"completeness": rule.completeness, "parse": rule.parse}[kind](checkpoint)}
    except CkzdError as error:
        return {"error": error_line(error)}
    except MemoryError:
        return {"error": error_line(BadCheckpoint(checkpoint, f"cannot be read within {MAX_BYTES} bytes"))}


def serve(pipe: Connection) -> None:
    """Answer until nobody asks any more."""
    while pipe.poll(IDLE_SECONDS):
        try:
            kind, checkpoint = json.loads(pipe.recv_bytes())
            pipe.send_bytes(json.dumps(answer(kind, Path(checkpoint))).encode())
        except (EOFError, OSError):
            return
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > GROWN_BYTES:
            return


def main(descriptor: int) -> None:
    """Set the limit, serve. A terminal's interrupt is for the service."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as pipe:
        serve(pipe)


if __name__ == "__main__":
    main(int(sys.argv[1]))
