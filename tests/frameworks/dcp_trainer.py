"""One rank of a trainer with FSDP2 that saves by torch.distributed.checkpoint.

    dcp_trainer.py RUN STEPS RESUME OUTPUT

A checkpoint each ten steps, every other one by `async_save`. It resumes from RESUME unless that is "", and saves the
model's whole state to OUTPUT; where that is "", it is killed five steps before the end.
"""

import os
import signal
import sys
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def sharded_model(ranks: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 66))
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def work(run: str, steps: int, resume: str, output: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = sharded_model(ranks)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    begin = 0
    if resume:
        weights, moments = get_state_dict(model, optimizer, options=options)
        state = {"model": weights, "optimizer": moments, "step": 0}
        dcp.load(state, checkpoint_id=resume)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=options)
        begin = state["step"]
    for step in range(begin + 1, steps + 1):
        batch = torch.randn(16, 64, generator=torch.Generator().manual_seed(100 * step + rank))
        (model(batch) - batch.sum()).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            weights, moments = get_state_dict(model, optimizer, options=options)
            state = {"model": weights, "optimizer": moments, "step": step}
            if step % 20:
                dcp.save(state, checkpoint_id=f"{run}/step-{step}")
            else:
                dcp.async_save(state, checkpoint_id=f"{run}/step-{step}").result()
        if not output and step == steps - 5:
            os.kill(os.getpid(), signal.SIGKILL)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(whole, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    place, last, *others = sys.argv[1:]
    work(place, int(last), *others)
