"""Peak memory of every process that a benchmark starts, watched from outside: no process reports on itself."""

import os
import re
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Self

INTERVAL_SECONDS = 0.02
OUR_MODULE = re.compile(r"\bckzd(?:\.\w+)+")
FIELDS = {"VmHWM": "peak_bytes", "RssAnon": "anonymous_bytes"}  # of /proc/PID/status, in KiB there


@dataclass
class Peak:
    """One process."""

    command: str
    peak_bytes: int = 0  # the kernel's own high-water mark: files that it maps count
    anonymous_bytes: int = 0  # the largest that was seen: memory that only this process has


class Looking(ABC):
    """A `with` block during which another thread looks again and again."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            self.look()

    @abstractmethod
    def look(self) -> None:
        """Once."""


class Watch(Looking):
    """Afterwards `peaks` has every process that ran under this one meanwhile, by pid."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[int, Peak] = {}
        self.together_bytes = 0  # the most anonymous memory of all at one time

    def look(self) -> None:
        """At all of them."""
        seen = [self._look(pid) for pid in descendants(os.getpid())]
        self.together_bytes = max(self.together_bytes, sum(seen))

    def _look(self, pid: int) -> int:
        """Keep the largest figures of a process; its anonymous memory now."""
        command, now = command_of(pid), memory_of(pid)  # in this order: memory is never older than the command
        if not command or not now:  # ended meanwhile
            return 0
        if pid not in self.peaks or self.peaks[pid].command != command:  # until its exec a child is its parent's copy
            self.peaks[pid] = Peak(command)
        peak = self.peaks[pid]
        peak.peak_bytes = max(peak.peak_bytes, now["peak_bytes"])
        peak.anonymous_bytes = max(peak.anonymous_bytes, now["anonymous_bytes"])
        return now["anonymous_bytes"]


def descendants(pid: int) -> list[int]:
    """Children, their children and so on."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:  # ended meanwhile
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def memory_of(pid: int) -> dict[str, int]:
    """Bytes by the names of FIELDS; nothing of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {FIELDS[name]: 1024 * int(value.split()[0]) for name, value in pairs if name in FIELDS}


def command_of(pid: int) -> str:
    """What a process runs, in short: a module or program, and the words after it up to an option or a path."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    if "-c" in words:  # a child that runs one of our modules from a line of code
        modules = OUR_MODULE.findall(words[words.index("-c") + 1])
        return modules[-1] if modules else Path(words[0]).name
    words = words[words.index("-m") + 1 :] if "-m" in words else [Path(words[0]).name, *words[1:]]
    return " ".join(takewhile(lambda word: word and "/" not in word and not word.startswith("-"), words))
