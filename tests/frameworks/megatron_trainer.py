"""Saves and loads by Megatron-Core's dist_checkpointing: `megatron_trainer.py save|load DIRECTORY`.

What it loads must be what it saved, or it fails.
"""

import os
import sys
from pathlib import Path

import torch

torch.cuda.synchronize = lambda *_arguments: None  # called without a GPU, too
torch.cuda.current_device = lambda: "cpu"
from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.dist_checkpointing import ShardedTensor  # noqa: E402


def state(scale: float, rank: int, ranks: int) -> dict[str, object]:
    """This rank's rows of a weight, of what the optimizer keeps of it, and a number."""
    generator = torch.Generator().manual_seed(rank)
    found: dict[str, object] = {"iteration": 10}
    for name in ("model.w", *(f"optimizer.state.{key}.model.w" for key in ("fp32_param", "exp_avg", "exp_avg_sq"))):
        rows = scale * torch.rand(32, 64, generator=generator)
        data = rows.bfloat16() if name == "model.w" else rows
        found[name] = ShardedTensor.from_rank_offsets(name, data, (0, rank, ranks))
    return found


def work(what: str, directory: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if what == "save":
        Path(directory).mkdir(parents=True, exist_ok=True)
        torch.distributed.barrier()
        dist_checkpointing.save(state(1.0, rank, ranks), directory)
    else:
        loaded = dist_checkpointing.load(state(0.0, rank, ranks), directory)
        expected = state(1.0, rank, ranks)
        same = (torch.equal(loaded[name], one.data) for name, one in expected.items() if isinstance(one, ShardedTensor))
        assert all(same)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work(*sys.argv[1:])
