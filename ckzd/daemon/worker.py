"""The worker process: takes jobs from a pipe, does them one at a time, tells of them, ends with the pipe.

It is polite (takes what CPU and disk are left over, first to be killed when memory runs out) and cannot outlive its
parent: the kernel kills it when the parent dies, and the end of the pipe ends it.
"""

import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ckzd.codec.parallel import set_threads, threads
from ckzd.cores import idle_cores
from ckzd.daemon.jobs import Done, Failed, Job, Progress
from ckzd.daemon.logs import configure
from ckzd.errors import CkzdError
from ckzd.operations.child import die_with_parent
from ckzd.priority import stand_back

READY = "ready"  # first message of a worker: it has loaded everything, from here on a death is the job's
_OOM_SCORE = "500"  # out of 1000: before the training job, whose memory is worth more

Tell = Callable[[str, float], None]  # the stage of `Progress`, and how much of it is done
Operation = Callable[[Job, str, Tell], dict[str, Any]]


def begin(parent: int, nice: int, *, as_json: bool) -> None:
    """First thing in a new process, before anything heavy is loaded: tie it to its parent and make it polite."""
    die_with_parent(parent)
    configure(as_json=as_json)
    stand_back(nice)
    with suppress(OSError):  # some containers forbid it
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")


def main(descriptor: int, device: str, perform: Operation) -> None:
    """Serve jobs from the pipe at `descriptor` until it closes."""
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as pipe:
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
