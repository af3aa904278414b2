"""One rank of a trainer whose checkpoints have directories in them, of FSDP or DeepSpeed under Hugging Face's wings.

    nested_trainer.py KIND RUN STEPS RESUME OUTPUT

KIND is "trainer" (Trainer with DeepSpeed), "accelerate" (`save_state` with DeepSpeed) or "fsdp" (what `save_state`
calls under FSDP2, since Accelerate itself takes FSDP for GPUs alone).
"""

import os
import sys
from pathlib import Path

import torch

os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": os.environ["WORLD_SIZE"], "MAX_JOBS": "1"}
from accelerate import Accelerator
from accelerate.checkpointing import save_accelerator_state
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, fsdp_utils
from hold import hold, last_step
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

ZERO = {
    "train_micro_batch_size_per_gpu": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
}


class WithDeepSpeed:
    """Accelerate's own way."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=ZERO))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def load(self, path: str) -> None:
        self.accelerator.load_state(path)

    def save(self, path: str) -> None:
        self.accelerator.save_state(path)

    def weights(self) -> dict[str, torch.Tensor]:
        return self.accelerator.unwrap_model(self.model).state_dict()


class WithFsdp:
    """Accelerate's functions, in the order of `save_state`."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.accelerator = Accelerator(cpu=True)
        self.plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
        self.model = fully_shard(model)
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def load(self, path: str) -> None:
        fsdp_utils.load_fsdp_model(self.plugin, self.accelerator, self.model, path)
        fsdp_utils.load_fsdp_optimizer(self.plugin, self.accelerator, self.optimizer, self.model, path)

    def save(self, path: str) -> None:
        fsdp_utils.save_fsdp_model(self.plugin, self.accelerator, self.model, path)
        fsdp_utils.save_fsdp_optimizer(self.plugin, self.accelerator, self.optimizer, self.model, path)
        save_accelerator_state(path, [], [], [], [], self.accelerator.process_index, 0)

    def weights(self) -> dict[str, torch.Tensor]:
        return get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def with_accelerate(kind: str, run: str, steps: int, resume: str, output: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 66))
    own = (WithFsdp if kind == "fsdp" else WithDeepSpeed)(model)
    begin = 0
    if resume:
        own.load(resume)
        begin = int(Path(resume).name.rpartition("_")[2])
    dtype = next(own.model.parameters()).dtype
    for step in range(begin + 1, steps + 1):
        hold(run, step)
        last_step(step, steps, output)
        generator = torch.Generator().manual_seed(100 * step + own.accelerator.process_index)
        batch = torch.randn(1, 64, generator=generator, dtype=dtype)
        own.accelerator.backward((own.model(batch) - batch.sum()).float().pow(2).mean())
        own.optimizer.step()
        own.optimizer.zero_grad()
        if step % 10 == 0 and not resume:
            own.save(f"{run}/checkpoint_{step}")
    weights = own.weights()
    if own.accelerator.is_main_process:
        torch.save(weights, output)


def with_trainer(run: str, steps: int, resume: str, output: str) -> None:
    from hf_trainer import Holds, model_of
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    arguments = TrainingArguments(
        run, max_steps=steps, save_steps=10, per_device_train_batch_size=1, use_cpu=True, report_to=[], seed=0,
        bf16=True, logging_steps=1000, disable_tqdm=True, learning_rate=1e-3, deepspeed=ZERO,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 128, (16,), generator=generator) for _ in range(64)]
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model=model_of("plain"), args=arguments, train_dataset=data, callbacks=[Holds(run, output)])
    trainer.train(resume_from_checkpoint=resume or None)
    if trainer.is_world_process_zero():
        torch.save(trainer.model.state_dict(), output)


def work(kind: str, run: str, steps: int, resume: str, output: str) -> None:
    torch.set_num_threads(1)
    if kind == "trainer":
        with_trainer(run, steps, resume, output)
    else:
        with_accelerate(kind, run, steps, resume, output)


if __name__ == "__main__":
    which, place, last, *others = sys.argv[1:]
    work(which, place, int(last), *others)
