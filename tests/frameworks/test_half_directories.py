"""The real frameworks refuse a directory whose files are coming back one by one, at every instant but the last."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from frameworks.jobs import need

from ckzd.formats import read_checkpoint
from ckzd.formats.names import order_of_leaving

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def coming_back(whole: Path, work: Path):
    """Directories with ever more of the files that are replaced; the last one is the whole."""
    tensors = {tensor.path[0] for tensor in read_checkpoint(whole).tensors}
    names = sorted(tensors, key=order_of_leaving, reverse=True)
    assert len(names) > 2
    for count in range(len(names) + 1):
        half = work / str(count) / whole.name
        shutil.copytree(whole, half)
        for name in names[count:]:
            (half / name).unlink()
        yield half, count == len(names)


def test_the_trainer(tmp_path, monkeypatch):
    need("transformers", "accelerate")
    import transformers

    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread of its own
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_DISABLED="true", TOKENIZERS_PARALLELISM="false")
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (8, 8))]

    def trainer(output: Path):
        torch.manual_seed(0)
        arguments = transformers.TrainingArguments(
            str(output), max_steps=4, save_steps=2, use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=100
        )
        model = transformers.LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3))  # the scheduler keeps tensors, then
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
        return transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, schedule))

    first = trainer(tmp_path / "run")
    first.train()
    for half, is_whole in coming_back(tmp_path / "run" / "checkpoint-2", tmp_path / "half"):
        again = trainer(half.parent)
        if not is_whole:
            with pytest.raises(ValueError, match="Can't find a valid checkpoint"):
                again.train(resume_from_checkpoint=str(half))
            continue
        again.train(resume_from_checkpoint=str(half))
        resumed = again.model.state_dict()
        assert all(torch.equal(value, resumed[name]) for name, value in first.model.state_dict().items())


def test_accelerate(tmp_path):
    need("accelerate")
    import accelerate

    def prepared():
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=True)
        model = torch.nn.Linear(8, 8)
        optimizer = torch.optim.AdamW(model.parameters())
        return accelerator, *accelerator.prepare(model, optimizer)

    accelerator, model, optimizer = prepared()
    accelerator.backward(model(torch.ones(2, 8)).sum())
    optimizer.step()
    accelerator.save_state(tmp_path / "checkpoint_0")
    for half, is_whole in coming_back(tmp_path / "checkpoint_0", tmp_path / "half"):
        accelerator, model, optimizer = prepared()
        if is_whole:
            accelerator.load_state(half)
        else:
            with pytest.raises(FileNotFoundError):
                accelerator.load_state(half)
