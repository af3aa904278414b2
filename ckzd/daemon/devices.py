"""Where workers may run: how many on the CPU, and which GPUs are left over by training."""

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from ckzd.config import DaemonSettings
from ckzd.cores import cores
from ckzd.gpus import Gpu, gpus
from ckzd.operations.child import thread_limits

MAX_CPU_WORKERS = 4
MAX_THREADS = 8  # of one worker, each with a tensor of its own: a job runs beside it
MEMORY_PER_WORKER = 16 << 30  # bytes; what its threads have in work, and rows that are very long
_WAIT_SECONDS = 2.0  # what the service waits for an answer; it takes tenths


@dataclass(frozen=True, slots=True)
class Placement:
    """What one worker process runs on: the device of its jobs, and the environment that makes it true."""

    device: str
    environment: dict[str, str] = field(default_factory=dict)


def slots(settings: DaemonSettings) -> tuple[str, ...]:
    """One configured device for every worker that may run at a time; "cpu" as often as the machine allows."""
    found: list[str] = []
    for device in settings.devices:
        found += [device] * (cpu_workers(settings) if device == "cpu" else 1)
        if device == "auto":  # one that may get a GPU, the others on the CPU
            found += ["cpu"] * (cpu_workers(settings) - 1)
    return tuple(found)


class GpuWatch:
    """What `nvidia-smi` says, asked in a thread: with a sick driver it hangs, and the service has one thread."""

    def __init__(self) -> None:
        self._gpus: list[Gpu] = []  # owner: the asking thread, while it runs
        self._asking: threading.Thread | None = None
        self._asked = 0.0  # monotonic

    def gpus(self) -> list[Gpu]:
        """What it says now; [] when that takes too long. No question makes us wait twice."""
        now = time.monotonic()
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._ask, name="ckzd-gpus", daemon=True)
            self._asking.start()
            self._asked = now
        self._asking.join(max(0.0, self._asked + _WAIT_SECONDS - now))
        return [] if self._asking.is_alive() else self._gpus

    def _ask(self) -> None:
        self._gpus = gpus()


def place(device: str, settings: DaemonSettings, watch: GpuWatch, taken: frozenset[str] = frozenset()) -> Placement:
    """Turn a configured device into a placement, now: `auto` takes an idle GPU (not `taken`), else the CPU.

    A worker that sees that GPU alone is told `auto`, too: it may have a torch without CUDA.
    """
    limits = thread_limits(threads(settings))
    if device == "auto":
        idle = [gpu.uuid for gpu in watch.gpus() if not gpu.busy and gpu.uuid not in taken]
        if idle:
            return Placement("auto", {**limits, "CUDA_VISIBLE_DEVICES": idle[0]})
        return place("cpu", settings, watch)
    if device == "cpu":
        return Placement("cpu", {**limits, "CUDA_VISIBLE_DEVICES": ""})
    if device == "cuda":
        return Placement("cuda:0", limits)
    number = device.removeprefix("cuda:")
    return Placement("cuda:0", {**limits, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": number})


def cpu_workers(settings: DaemonSettings) -> int:
    """As many as half of the cores and a quarter of what memory allows can feed, unless configured."""
    if settings.workers is not None:
        return settings.workers
    by_cores = max(1, cores() // 2) // threads(settings)
    by_memory = memory_bytes() // MEMORY_PER_WORKER
    return max(1, min(MAX_CPU_WORKERS, by_cores, by_memory))


def threads(settings: DaemonSettings) -> int:
    """Threads of one worker."""
    return settings.threads if settings.threads is not None else max(1, min(MAX_THREADS, cores() // 2))


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or its cgroup's limit."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdecimal() else machine
