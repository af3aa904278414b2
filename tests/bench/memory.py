"""Peak memory of every process of ckzd on a checkpoint of any size, made here: no training, no large memory.

usage: memory.py WORK [--bytes 2e9] [--ranks 64] [--embedding-rows 16] [--preset resume] [--device auto]
WORK gets two checkpoints of a transformer with Adam moments: the second some training-like noise later. Both are
archived by the command line, base and delta, and the second is restored without the cache. Tensors are drawn into files
that are mapped, one at a time, so that making a checkpoint takes the memory of a few of the largest tensor. With ranks
checkpoints are directories of torch.distributed.checkpoint that so many would write, else files of torch.save. A line
says how long it takes to look through each. A line a command gives its seconds and, by process, the kernel's
high-water mark and the largest anonymous memory (without mapped files) that was seen.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from command import ckzd
from dcp_directories import Writer
from machine import machine
from processes import Watch
from torch import Tensor

from ckzd.formats import read_checkpoint

# R = rows, C = columns of a matrix; a vector is one row
LAYERS = 12  # about: as many as the size asks for
LEARNING_RATE, STEPS = 3e-4, 100  # between the checkpoints
UPDATE_RANK = 16  # of the part of the update that all steps agree on
BYTES_A_PARAMETER = 12  # weight, exp_avg, exp_avg_sq in float32

Shapes = dict[str, tuple[int, ...]]


def transformer_shapes(parameters: float, embedding_rows: int = 16) -> Shapes:
    """Parameters of a transformer with about this many; its width is a multiple of 64."""
    width = max(64, 64 * round(math.sqrt(parameters / (12 * LAYERS + embedding_rows)) / 64))
    layers = max(1, round((parameters - embedding_rows * width**2) / (12 * width**2)))
    shapes: Shapes = {"embedding.weight": (embedding_rows * width, width)}
    for layer in range(layers):
        block = {"norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,)}
        block |= {"qkv.weight": (3 * width, width), "qkv.bias": (3 * width,)}
        block |= {"proj.weight": (width, width), "proj.bias": (width,)}
        block |= {"fc1.weight": (4 * width, width), "fc1.bias": (4 * width,)}
        block |= {"fc2.weight": (width, 4 * width), "fc2.bias": (width,)}
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(shape: tuple[int, ...], seed: int, updates: int) -> Tensor:
    """A parameter, float32, after this many updates: of low rank and noise, as training's are."""
    values_RC = 0.02 * torch.randn(shape, generator=_random(seed)).reshape(-1, shape[-1])
    rows, columns = values_RC.shape
    for update in range(updates):
        random = _random(seed + 1_000_003 * (update + 1))
        narrow_RK = torch.randn(rows, UPDATE_RANK, generator=random)
        wide_KC = torch.randn(UPDATE_RANK, columns, generator=random)
        reach = LEARNING_RATE * math.sqrt(STEPS)
        values_RC.addmm_(narrow_RK, wide_KC, alpha=reach / math.sqrt(UPDATE_RANK))
        values_RC.add_(torch.randn(rows, columns, generator=random), alpha=reach)
    return values_RC.reshape(shape)


def moments(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """exp_avg and exp_avg_sq, float32: gradients whose sizes differ by row and column."""
    random = _random(seed)
    scale_RC = torch.randn(math.prod(shape[:-1]), 1, generator=random).exp()
    scale_RC = 1e-4 * scale_RC * torch.randn(1, shape[-1], generator=random).exp()
    first_RC = 0.2 * scale_RC * torch.randn(scale_RC.shape, generator=random)
    second_RC = scale_RC.square_().mul_(torch.randn(scale_RC.shape, generator=random).mul_(0.3).exp_())
    return first_RC.reshape(shape), second_RC.reshape(shape)


def make_checkpoint(target: Path, shapes: Shapes, updates: int) -> None:
    """Write one checkpoint; two of different `updates` are of one run."""
    model, states = {}, {}
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        files = (Path(folder, str(number)) for number in range(3 * len(shapes)))
        for index, (name, shape) in enumerate(shapes.items()):
            model[name] = _on_disk(weight(shape, index, updates), files)
            first, second = moments(shape, 10_007 * (updates + 1) + index)
            states[index] = {
                "step": torch.tensor(float(STEPS * (updates + 1))),
                "exp_avg": _on_disk(first, files),
                "exp_avg_sq": _on_disk(second, files),
            }
        group = {"lr": LEARNING_RATE, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False}
        optimizer = {"state": states, "param_groups": [group | {"params": list(states)}]}
        torch.save({"model": model, "optimizer": optimizer, "step": STEPS * (updates + 1)}, target)


def make_sharded(target: Path, shapes: Shapes, updates: int, ranks: int) -> None:
    """The same, cut by rows between ranks."""
    writer = Writer(target, ranks)
    for index, (name, shape) in enumerate(shapes.items()):
        writer.put(f"model.{name}", weight(shape, index, updates))
        first, second = moments(shape, 10_007 * (updates + 1) + index)
        state = {"step": torch.tensor(float(STEPS * (updates + 1))), "exp_avg": first, "exp_avg_sq": second}
        for key, value in state.items():
            writer.put(f"optimizer.state.{name}.{key}", value)
        for key, value in {"lr": LEARNING_RATE, "betas": (0.9, 0.999), "eps": 1e-8}.items():
            writer.put(f"optimizer.param_groups.{name}.{key}", value)
    writer.put("step", STEPS * (updates + 1))
    writer.finish()


def looked_through(checkpoint: Path) -> dict[str, Any]:
    """How long it takes this process to read what a checkpoint holds, without its tensors' bytes."""
    started, cpu = time.perf_counter(), time.process_time()
    found = read_checkpoint(checkpoint)
    holes = sum(len(layout.holes) for layout in found.files)
    seconds = {"seconds": round(time.perf_counter() - started, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
    return {"looked_through": checkpoint.name, "tensors": len(found.tensors), "holes": holes, **seconds}


def _on_disk(values: Tensor, files: Iterator[Path]) -> Tensor:
    """The same tensor in the next file, mapped: the kernel takes its memory back when it needs it."""
    mapped = torch.from_file(str(next(files)), shared=True, size=values.numel()).reshape(values.shape)
    return mapped.copy_(values)


def watched(name: str, *arguments: str) -> dict[str, Any]:
    """Run one command and print what it took; what it said."""
    started = time.perf_counter()
    with Watch() as watch:
        (report,) = ckzd(*arguments)
    seconds = time.perf_counter() - started
    processes = sorted(map(asdict, watch.peaks.values()), key=lambda peak: -peak["peak_bytes"])
    line = {"command": name, "seconds": round(seconds, 1), "anonymous_bytes_together": watch.together_bytes}
    print(json.dumps(line | {"processes": processes}), flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--bytes", type=float, default=2e9, help="of a checkpoint, about")
    parser.add_argument("--ranks", type=int, default=0, help="that each checkpoint is cut between; 0: a file")
    parser.add_argument("--embedding-rows", type=int, default=16, help="times the width: the largest tensor")
    parser.add_argument("--preset", default="resume")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    run, store = options.work / "run", options.work / "store"
    run.mkdir(parents=True)
    shapes = transformer_shapes(options.bytes / BYTES_A_PARAMETER, options.embedding_rows)
    parameters, largest = sum(map(math.prod, shapes.values())), max(shapes.values(), key=math.prod)
    header = {
        **machine(),
        "preset": options.preset,
        "ranks": options.ranks,
        "parameters": parameters,
        "largest_tensor": largest,
    }
    print(json.dumps(header), flush=True)
    for updates, name in enumerate(("base", "delta")):
        checkpoint = run / f"step_{STEPS * (updates + 1):06d}{'' if options.ranks else '.pt'}"
        if options.ranks:
            make_sharded(checkpoint, shapes, updates, options.ranks)
        else:
            make_checkpoint(checkpoint, shapes, updates)
        print(json.dumps(looked_through(checkpoint)), flush=True)
        chosen = ("--store", str(store), "--preset", options.preset, "--device", options.device)
        report = watched(f"compress {name}", "compress", str(checkpoint), *chosen)
        sizes = {"original_bytes": report["original_bytes"], "ratio": round(report["ratio"], 2)}
        print(json.dumps({"archived": name, **sizes}), flush=True)
    for reconstruction in (store / "cache").glob("*.rec"):
        reconstruction.unlink()
    watched("restore", "restore", report["archive"], "-o", str(options.work / "restored.pt"))


if __name__ == "__main__":
    main()
