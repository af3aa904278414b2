"""One rank of a trainer that saves by DeepSpeed's save_checkpoint.

    deepspeed_trainer.py STAGE RUN STEPS RESUME OUTPUT

A checkpoint each ten steps. It resumes from the tag RESUME unless that is "", and saves its fp32 weights to OUTPUT;
where that is "", it comes to a step that never ends five steps before the last.
"""

import os
import sys

import torch

os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": os.environ["WORLD_SIZE"], "MAX_JOBS": "1"}
import deepspeed  # it looks for its accelerator at once
from hold import hold, last_step


def work(stage: int, run: str, steps: int, resume: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 66))
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], 1e-3)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=True)
    if resume:
        path, _ = engine.load_checkpoint(run, tag=resume)
        assert path is not None, "it would go on with a fresh optimizer"
    rank = int(os.environ["RANK"])
    while engine.global_steps < steps:
        hold(run, engine.global_steps)
        last_step(engine.global_steps, steps, output)
        seed = 100 * (engine.global_steps + 1) + rank
        batch = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.bfloat16)
        engine.backward((engine(batch) - batch.sum()).float().pow(2).mean())
        engine.step()
        if engine.global_steps % 10 == 0 and not resume:
            engine.save_checkpoint(run)
    own = engine.optimizer
    kept = own.fp32_partitioned_groups_flat if stage == 3 else own.single_partition_of_fp32_groups
    torch.save([flat.detach().clone() for flat in kept], f"{output}.{rank}")


if __name__ == "__main__":
    zero, place, last, *others = sys.argv[1:]
    work(int(zero), place, int(last), *others)
