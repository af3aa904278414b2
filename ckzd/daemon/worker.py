"""The worker process: takes jobs from a pipe, does them one at a time, tells of them, ends with the pipe.

It is polite (takes what CPU and disk are left over, first to be killed when memory runs out) and cannot outlive its
parent: the kernel kills it when the parent dies, and the end of the pipe ends it.
`python -m ckzd.daemon.worker DESCRIPTOR DEVICE OPERATION NICE json|text PACE PLACE...` is such a process.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from ckzd.codec.parallel import set_threads, threads
from ckzd.cores import idle_cores
from ckzd.daemon.jobs import Done, Failed, Job, Progress, Tell
from ckzd.daemon.logs import configure
from ckzd.errors import CkzdError
from ckzd.pace import set_pace
from ckzd.priority import stand_back

READY = "ready"  # first message of a worker: it has loaded everything, from here on a death is the job's
_OOM_SCORE = "500"  # out of 1000: before the training job, whose memory is worth more

Operation = Callable[[Job, str, Tell], dict[str, Any]]


def main(arguments: Sequence[str]) -> None:
    """Serve jobs from the pipe until it closes.

    The operation ("module:function") may lie in one of the places. It is loaded when this process is polite already:
    that takes seconds.
    """
    descriptor, device, operation, nice, log_as, pace, *places = arguments
    configure(as_json=log_as == "json")
    stand_back(int(nice))
    set_pace(float(pace) if pace else None)
    with suppress(OSError):  # some containers forbid it
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    os.set_inheritable(int(descriptor), False)
    sys.path += places
    perform: Operation = resolve_name(operation)
    with Connection(int(descriptor)) as pipe:
        pipe.send(READY)
        serve(pipe, device, perform)


def serve(pipe: Connection, device: str, perform: Operation) -> None:
    """Do the jobs that come through the pipe, with as many threads as there are idle cores when one begins."""
    most = threads()  # what the daemon gave us
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        if job.kind == "compress" and most > 1:  # on a full machine they would only take turns
            set_threads(max(1, min(most, idle_cores())))
        pipe.send(_outcome(job, pipe, device, perform))


def _outcome(job: Job, pipe: Connection, device: str, perform: Operation) -> Done | Failed:
    def tell(stage: str, fraction: float) -> None:
        pipe.send(Progress(job, stage, fraction))

    try:
        return Done(job, perform(job, device, tell))
    except CkzdError as error:
        return Failed(job, error)
    except Exception as error:  # noqa: BLE001  # one bad checkpoint must not end the worker
        problem = f"unexpected {type(error).__name__}: {error}"
        wrapped = CkzdError(job.checkpoint, problem, hint="the traceback is in the daemon's log")
        return Failed(job, wrapped, traceback.format_exc())


if __name__ == "__main__":
    main(sys.argv[1:])
