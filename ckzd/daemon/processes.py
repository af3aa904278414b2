"""One worker process and its pipe, seen from the parent."""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import ckzd
from ckzd.config import child_environment
from ckzd.daemon.devices import Placement

# -P keeps the working directory off the path: a `random.py` beside somebody's checkpoints must not be ours
_BOOT = """
import sys
sys.path.extend(place for place in {places!r} if place not in sys.path)
from ckzd.daemon import worker
worker.begin({parent}, {nice}, as_json={as_json})
from {module} import {function}
worker.main({descriptor}, {device!r}, {function})
"""


@dataclass(frozen=True, slots=True)
class Boot:
    """What a worker process is told when it starts."""

    operation: str  # "module:function"
    nice: int
    places: list[str]  # further directories on its module path
    log_as_json: bool = False

    def script(self, descriptor: int, device: str) -> str:
        """The program that it runs."""
        module, function = self.operation.split(":")
        return _BOOT.format(
            places=[str(Path(ckzd.__file__).parent.parent), *self.places],
            parent=os.getpid(),
            nice=self.nice,
            as_json=self.log_as_json,
            module=module,
            function=function,
            descriptor=descriptor,
            device=device,
        )


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
        ours, theirs = Pipe()
        try:
            process = subprocess.Popen(  # noqa: S603  # our own text, no shell
                [sys.executable, "-P", "-c", boot.script(theirs.fileno(), placement.device)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # our standard output belongs to our own results
                env=child_environment(placement.environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, ours, placement)

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
