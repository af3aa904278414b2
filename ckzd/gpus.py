"""Which GPUs this machine has and whether somebody computes on them.

Asked through `nvidia-smi`, which costs a process without a GPU nothing: neither torch nor CUDA is loaded.
"""

import subprocess
from dataclasses import dataclass

IDLE_GPU_BYTES = 1 << 30  # a GPU that holds more than this is somebody's, though no process may be visible to us
_SMI_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One line of `nvidia-smi`."""

    uuid: str
    busy: bool


def gpus() -> list[Gpu]:
    """The GPUs of this machine and whether somebody computes on them; [] when that cannot be told."""
    cards = _smi("gpu=uuid,memory.used,utilization.gpu")
    processes = _smi("compute-apps=gpu_uuid")
    if cards is None or processes is None:
        return []
    computing = {line[0] for line in processes}
    found = []
    for line in cards:
        if len(line) == 3 and line[1].isdecimal():
            used = int(line[1]) << 20
            busy = line[0] in computing or used > IDLE_GPU_BYTES or line[2] != "0"
            found.append(Gpu(line[0], busy))
    return found


def _smi(query: str) -> list[list[str]] | None:
    command = ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
