"""What the kernel says of a process's priorities."""

import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path

IOPRIO_GET = {"x86_64": 252, "aarch64": 31, "riscv64": 31, "ppc64le": 274}


@dataclass(frozen=True)
class Priorities:
    """Of one process."""

    nice: int
    policy: int
    group_nice: int | None  # of its session's autogroup; None where the kernel has none
    idle_io: bool


def priorities_of(pid: int) -> Priorities:
    """As /proc and ioprio_get tell it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    group = Path(f"/proc/{pid}/autogroup")
    group_nice = int(group.read_text().split()[-1]) if group.exists() else None
    ioprio = ctypes.CDLL(None).syscall(IOPRIO_GET[platform.machine()], 1, pid)
    return Priorities(int(fields[16]), int(fields[38]), group_nice, ioprio >> 13 == 3)
