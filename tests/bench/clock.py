"""Seconds of work, and what of it was the processors': the figure that a busy machine does not spoil."""

import os
import time
from dataclasses import dataclass, field


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


@dataclass(frozen=True)
class Clock:
    """Runs from when it is made."""

    started: float = field(default_factory=time.perf_counter)
    cpu_started: float = field(default_factory=_cpu_seconds)

    def seconds(self) -> dict[str, float]:
        """By the wall and of the processors, of this process and its ended children: the entries of a row."""
        return {"seconds": time.perf_counter() - self.started, "cpu_seconds": _cpu_seconds() - self.cpu_started}
