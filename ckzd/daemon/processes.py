"""A process and the pipe to it, seen from the parent: a worker is one, and so is the reader."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Self

from ckzd.daemon.devices import Placement
from ckzd.operations.child import start_module


def start_with_pipe(
    module: str, arguments: Sequence[str], variables: Mapping[str, str], *, start_new_session: bool = False
) -> tuple["subprocess.Popen[bytes]", Connection]:
    """Start `python -m MODULE DESCRIPTOR ARGUMENTS`; the process and our end of the pipe whose other end that names.

    OSError if the system has no room for another process.
    """
    ours, theirs = Pipe()
    try:
        process = start_module(
            module,
            [str(theirs.fileno()), *arguments],
            variables,
            stdout=2,  # our standard output belongs to our own results
            pass_fds=[theirs.fileno()],
            start_new_session=start_new_session,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


@dataclass(frozen=True, slots=True)
class Boot:
    """What a worker process is told when it starts."""

    operation: str  # "module:function"
    nice: int
    places: tuple[str, ...]  # further directories on its module path
    log_as_json: bool = False
    disk_bytes_per_second: float | None = None  # see `pace`

    def arguments(self, device: str) -> list[str]:
        """Behind the descriptor of its pipe: see `worker.main`."""
        log_as, pace = "json" if self.log_as_json else "text", str(self.disk_bytes_per_second or "")
        return [device, self.operation, str(self.nice), log_as, pace, *self.places]


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A fresh interpreter in a session of its own: the terminal's signals do not reach it, ours reach all its children.

    It must be started by the main thread: the kernel kills it when the thread that started it ends.
    """

    process: subprocess.Popen[bytes]
    pipe: Connection
    placement: Placement

    @classmethod
    def start(cls, placement: Placement, boot: Boot) -> Self:
        """Start it; OSError if the system has no room for another process."""
        process, pipe = start_with_pipe(
            "ckzd.daemon.worker", boot.arguments(placement.device), placement.environment, start_new_session=True
        )
        return cls(process, pipe, placement)

    def messages(self) -> list[Any]:
        """What it has sent and we have not read."""
        found: list[Any] = []
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                found.append(self.pipe.recv())
        return found

    def send(self, message: object) -> None:
        """Send it a job. A dead one is noticed by `has_ended`, not here."""
        with contextlib.suppress(OSError):
            self.pipe.send(message)

    def has_ended(self) -> bool:
        """Whether it is dead, without reaping it: its process group stays ours until `bury`."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return self.process.returncode is not None or os.waitid(os.P_PID, self.process.pid, flags) is not None

    def signal(self, number: int) -> None:
        """Signal it and everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def bury(self) -> int:
        """End what is left of it and reap it: the exit status as `subprocess` gives it."""
        self.signal(signal.SIGKILL)
        status = self.process.wait()
        self.pipe.close()
        return status
