"""What one rank's files cost to restore beside all of a sharded checkpoint, decoded down the whole chain.

usage: parts.py WORK [--ranks 4] [--width 512] [--layers 8] [--steps 3] [--preset resume]
Synthetic weights and moments of Adam, drifting from step to step, in torch.distributed.checkpoint's layout. A line for
all files and one for the first rank's: seconds, and seconds of CPU (of all threads), without the cache.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from dcp_directories import write_dcp
from machine import machine

import ckzd


def state(step: int, layers: int, width: int) -> dict[str, object]:
    """Weights after so many steps, each a little on, and what Adam keeps of them."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, object] = {"step": 100 * step}
    for layer in range(layers):
        name = f"layers.{layer}.weight"
        weight, drift = (torch.randn(width, width, generator=generator) for _ in range(2))
        moment = 1e-3 * torch.randn(width, width, generator=generator.manual_seed(1000 * step + layer))
        variance = (1 + torch.rand(width, 1, generator=generator)) * (1 + torch.rand(1, width, generator=generator))
        found[f"model.{name}"] = 0.02 * weight + 1e-4 * step * drift + 0.01 * moment
        found[f"optimizer.state.{name}.exp_avg"] = moment
        found[f"optimizer.state.{name}.exp_avg_sq"] = 1e-6 * variance
        generator.manual_seed(layer + 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--preset", default="resume")
    options = parser.parse_args()
    print(json.dumps({**machine(), **vars(options), "work": None}), flush=True)
    for step in range(1, options.steps + 1):
        path = write_dcp(
            options.work / "run" / f"step-{step}", options.ranks, state(step, options.layers, options.width)
        )
        ckzd.compress(path, preset=options.preset, device="cpu", replace=True)
    for only in ((), ("__0_*",)):
        for cached in (options.work / ".ckzd" / "cache").glob("*.rec"):
            cached.unlink()
        started, used = time.perf_counter(), time.process_time()
        report = ckzd.restore(path, output=options.work / f"restored-{len(only)}", only=only)
        seconds, cpu = time.perf_counter() - started, time.process_time() - used
        line = {"files": report.files, "bytes": report.restored_bytes, "seconds": seconds, "cpu_seconds": cpu}
        print(json.dumps({name: round(value, 2) for name, value in line.items()}), flush=True)


if __name__ == "__main__":
    main()
