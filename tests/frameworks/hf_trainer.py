"""A trainer that is Hugging Face's.

    hf_trainer.py KIND RUN STEPS RESUME OUTPUT

KIND is "sharded" (tied weights, in several safetensors files, the newest three checkpoints kept), "adapters" (PEFT's,
of a frozen model) or "best" (evaluated at each checkpoint, the newest two and the best kept, that one loaded last).
"""

import sys
from functools import partial

import torch
from hold import hold, last_step
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

SETTINGS = {
    "sharded": {"save_total_limit": 3},
    "adapters": {},
    "best": {"save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 10, "load_best_model_at_end": True},
}


class Holds(TrainerCallback):
    """Steps that take long."""

    def __init__(self, run: str, output: str) -> None:
        self.run, self.output = run, output

    def on_step_begin(self, args: TrainingArguments, state: object, control: object, **_: object) -> None:
        hold(self.run, state.global_step)
        last_step(state.global_step, args.max_steps, self.output)


def model_of(kind: str) -> torch.nn.Module:
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=kind == "sharded", attention_dropout=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if kind == "adapters":
        return get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    if kind == "sharded":
        model.save_pretrained = partial(model.save_pretrained, max_shard_size="100KB")
    return model


def work(kind: str, run: str, steps: int, resume: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arguments = TrainingArguments(
        run, max_steps=steps, save_steps=10, per_device_train_batch_size=2, use_cpu=True, report_to=[], seed=0,
        logging_steps=1000, disable_tqdm=True, learning_rate=1e-2, **SETTINGS[kind],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 128, (16,), generator=generator) for _ in range(64)]
    data = [{"input_ids": row, "labels": row} for row in rows]
    model = model_of(kind)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data[:48],
        eval_dataset=data[48:] if kind == "best" else None,  # noise: the more is learned, the worse it gets
        callbacks=[Holds(run, output)],
    )
    trainer.train(resume_from_checkpoint=resume or None)
    torch.save(model.state_dict(), output)


if __name__ == "__main__":
    which, place, last, *others = sys.argv[1:]
    work(which, place, int(last), *others)
