"""One state as a file of torch.save, and as directories of torch.distributed.checkpoint cut between ranks: their bytes.

usage: sharded.py [--ranks 2 8 64] [--width 256] [--layers 4] [--checkpoints 4] [--steps 5] [--preset resume]
A small transformer on text with AdamW, a checkpoint after every few steps, each written as one file and as the
directories that so many ranks would write (FSDP2: rows). A JSON line for each way of writing gives the bytes of its
archives, the last one's parts, and the last archive over that of the one file. Bar: 1.05. Exits with 1 if it is missed.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from command import ckzd
from dcp_directories import state_of, write_dcp
from machine import machine
from torch.nn import functional

from ckzd.demo_training import ByteModel, Size, batch_of, stdlib_text

MOST = 1.05


def states(width: int, layers: int, checkpoints: int, steps: int) -> Iterator[tuple[int, ByteModel, torch.optim.AdamW]]:
    """Model and optimizer at each checkpoint, and its step."""
    torch.manual_seed(0)
    size = Size(width, layers, heads=width // 64, batch=8, context=64, peak_learning_rate=3e-4, warmup_steps=1)
    model, (text, _) = ByteModel(size), stdlib_text()
    optimizer = torch.optim.AdamW(model.parameters(), size.peak_learning_rate, betas=(0.9, 0.95))
    for step in range(1, checkpoints * steps + 1):
        inputs, targets = batch_of(text, size, step)
        functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % steps == 0:
            yield step, model, optimizer


def archived(path: Path, store: Path, preset: str) -> dict[str, Any]:
    """What it takes, and where."""
    (report,) = ckzd("compress", str(path), "--store", str(store), "--preset", preset)
    (seen,) = ckzd("inspect", report["archive"])
    return {"bytes": report["archive_bytes"], "parts": seen["parts"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 8, 64])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="between two checkpoints")
    parser.add_argument("--preset", default="resume")
    options = parser.parse_args()
    ways: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in (0, *options.ranks)}  # 0: a file
    with tempfile.TemporaryDirectory() as work:
        for step, model, optimizer in states(options.width, options.layers, options.checkpoints, options.steps):
            for ranks, found in ways.items():
                run = Path(work, str(ranks))
                if ranks:
                    path = write_dcp(run / f"step-{step}", ranks, state_of(model, optimizer))
                else:
                    run.mkdir(exist_ok=True)
                    path = run / f"step-{step}.pt"
                    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)
                found.append(archived(path, run / "store", options.preset))
        parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({**machine(), "preset": options.preset, "parameters": parameters, "width": options.width}))
    last = ways[0][-1]["bytes"]
    for ranks, found in ways.items():
        line = {"ranks": ranks or "one file", "bytes": [one["bytes"] for one in found], "parts": found[-1]["parts"]}
        print(json.dumps(line | {"over one file": round(found[-1]["bytes"] / last, 4)}))
    sys.exit(any(found[-1]["bytes"] > MOST * last for found in ways.values()))


if __name__ == "__main__":
    main()
