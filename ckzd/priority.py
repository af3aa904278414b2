"""Stand back: the least that a process may take of CPU and disk beside others.

A nice value ranks a process inside its scheduling group only, and where the kernel groups by session (autogroup) every
new session is a group of its own, as large as the training job's: so the value is given to the group as well. Groups
of systemd and of containers (cgroups) have weights of their own, which are for their makers to set.

Who stands back may wait for long, so time limits go by a `FairClock`.
"""

import ctypes
import os
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MOST_NICE = 19  # stands back for everybody: no share of the CPU beside those who want it, and idle I/O
_AUTOGROUP = Path("/proc/self/autogroup")
_TRIES, _TRY_AGAIN_SECONDS = 30, 0.05  # the kernel takes ten changes a second of a whole machine's users
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273}  # the C library has no function for it
_THIS_PROCESS, _IDLE_IO = 1, 3 << 13


def stand_back(nice: int) -> None:
    """Make this process, and all that it starts, as nice as that; the most nice are scheduled as idle, disk too.

    To be called before there are threads: each has its own priorities, inherited from the one that started it.
    """
    with suppress(OSError):  # it may be nicer already
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    if nice == MOST_NICE:
        with suppress(OSError):  # some containers forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        if number := _IOPRIO_SET.get(platform.machine()):
            ctypes.CDLL(None).syscall(number, _THIS_PROCESS, 0, _IDLE_IO)
    carry_into_session()


def carry_into_session() -> None:
    """Give this process's nice value to its session's group: a new session has none of its parent's."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    for _ in range(_TRIES if nice else 0):
        try:
            with _AUTOGROUP.open("wb", buffering=0) as file:
                file.write(str(nice).encode())
        except BlockingIOError:
            time.sleep(_TRY_AGAIN_SECONDS)
        except OSError:  # a kernel without autogroups, or a container that shows none
            return
        else:
            return


@dataclass
class FairClock:
    """Seconds since it was made, less those in which a process, or one below it, waited for a core.

    The time of a process that hangs passes as everybody's; that of one that gets 3 % of a core, thirty times as slowly.
    Where the kernel does not tell who waits (CONFIG_SCHED_INFO), it is everybody's time.
    """

    pid: int
    _spent: float = 0.0
    _looked: float = field(default_factory=time.monotonic)
    _waited_ns: dict[int, int] = field(init=False)  # of each thread, in all its life

    def __post_init__(self) -> None:
        self._waited_ns = _waited_ns(self.pid)

    def seconds(self) -> float:
        """To be called every few seconds: what a thread has waited goes when it ends."""
        now, waited_ns = time.monotonic(), _waited_ns(self.pid)
        longest_ns = max((ns - self._waited_ns.get(thread, 0) for thread, ns in waited_ns.items()), default=0)
        self._spent += max(0.0, now - self._looked - longest_ns / 1e9)
        self._looked, self._waited_ns = now, waited_ns
        return self._spent


def _waited_ns(pid: int) -> dict[int, int]:
    """How long each thread of a process and of all below it has waited for a core, by the thread's number."""
    found = {}
    for task in _tasks(pid):
        with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            found[int(task.name)] = int((task / "schedstat").read_text().split()[1])
    return found


def _tasks(pid: int) -> Iterator[Path]:
    """Their directories in /proc."""
    pending = [str(pid)]
    while pending:
        with suppress(OSError):
            for task in Path("/proc", pending.pop(), "task").iterdir():
                yield task
                with suppress(OSError):
                    pending += (task / "children").read_text().split()
