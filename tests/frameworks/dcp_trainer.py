"""One rank of a trainer with FSDP2 that saves by torch.distributed.checkpoint.

    dcp_trainer.py LAYOUT RUN STEPS RESUME OUTPUT

LAYOUT is "plain" (every other one by `async_save`), "titan" (weights at the top, all by `async_save`, the newest three
kept; it resumes from the newest step that has `.metadata`, whatever RESUME says) or "safetensors" (weights alone).
"""

import re
import shutil
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hold import hold, last_step
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def sharded_model(ranks: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 66))
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


class Plain:
    """Weights and moments under names of their own."""

    def __init__(self, run: Path, model: torch.nn.Module) -> None:
        self.run, self.model = run, model
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def state(self, step: int) -> dict[str, object]:
        weights, moments = get_state_dict(self.model, self.optimizer, options=FLAT)
        return {"model": weights, "optimizer": moments, "step": step}

    def load(self, resume: str) -> int:
        state = self.state(0)
        dcp.load(state, checkpoint_id=resume)
        self.take(state["model"], state["optimizer"])
        return state["step"]

    def take(self, weights: object, moments: object) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=weights, optim_state_dict=moments, options=FLAT)

    def save(self, step: int) -> None:
        if step % 20:
            dcp.save(self.state(step), checkpoint_id=f"{self.run}/step-{step}")
        else:
            dcp.async_save(self.state(step), checkpoint_id=f"{self.run}/step-{step}").result()


class Titan(Plain):
    """As torchtitan's CheckpointManager."""

    def state(self, step: int) -> dict[str, object]:
        weights, moments = get_state_dict(self.model, self.optimizer, options=FLAT)
        train_state = {"step": torch.tensor(step, dtype=torch.int32), "ntokens_seen": torch.tensor(64 * step)}
        return {**weights, "optimizer": moments, "train_state": train_state, "lr_scheduler": {"last_epoch": step}}

    def load(self, resume: str) -> int:
        steps = [int(re.search(r"step-(\d+)", path.parent.name)[1]) for path in self.run.glob("step-*/.metadata")]
        state = self.state(0)
        dcp.load(state, checkpoint_id=f"{self.run}/step-{max(steps)}")
        self.take({name: state[name] for name in get_model_state_dict(self.model)}, state["optimizer"])
        return int(state["train_state"]["step"])

    def save(self, step: int) -> None:
        dcp.async_save(self.state(step), checkpoint_id=f"{self.run}/step-{step}").result()
        if dist.get_rank() == 0:
            shutil.rmtree(self.run / f"step-{step - 30}", ignore_errors=True)
        dist.barrier()


class Safetensors(Plain):
    """Weights alone: the optimizer keeps nothing."""

    def __init__(self, run: Path, model: torch.nn.Module) -> None:
        super().__init__(run, model)
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-6)

    def load(self, resume: str) -> int:
        weights = get_model_state_dict(self.model)
        dcp.load(weights, storage_reader=HuggingFaceStorageReader(resume))
        set_model_state_dict(self.model, weights)
        return int(Path(resume).name.removeprefix("step-"))

    def save(self, step: int) -> None:
        path = f"{self.run}/step-{step}"
        writer = HuggingFaceStorageWriter(path, save_distributed=True, enable_consolidation=True)
        dcp.save(get_model_state_dict(self.model), storage_writer=writer)


LAYOUTS = {"plain": Plain, "titan": Titan, "safetensors": Safetensors}


def work(layout: str, run: str, steps: int, resume: str, output: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = sharded_model(dist.get_world_size())
    own = LAYOUTS[layout](Path(run), model)
    begin = own.load(resume) if resume else 0
    for step in range(begin + 1, steps + 1):
        hold(run, step)
        last_step(step, steps, output)
        batch = torch.randn(16, 64, generator=torch.Generator().manual_seed(100 * step + rank))
        (model(batch) - batch.sum()).pow(2).mean().backward()
        own.optimizer.step()
        own.optimizer.zero_grad()
        if step % 10 == 0:
            own.save(step)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(whole, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    which, place, last, *others = sys.argv[1:]
    work(which, place, int(last), *others)
