"""Checkpoints that the real frameworks write, when they are installed: read, rebuilt, resumed from."""

import contextlib
import os
import shutil
import warnings

import pytest
import torch
from formats.helpers import assert_lossless, rebuilt
from frameworks.jobs import need

from ckzd.checkpoint import STORED_AS
from ckzd.formats import completeness, is_run, list_checkpoints, read_checkpoint

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def nudged(checkpoint):
    """Payloads whose weights are all one step of the last bit away, so that a reader can tell them."""

    def payload_of(tensor):
        data = bytearray(checkpoint.payload(tensor))
        if checkpoint.tensors[tensor].dtype in STORED_AS:
            data[0] ^= 1
        return bytes(data)

    return payload_of


def fill(directory, checkpoint, payload_of=None):
    """Write the rebuilt files where the originals were."""
    for layout, data in zip(checkpoint.files, rebuilt(checkpoint, payload_of), strict=True):
        (directory / layout.name).write_bytes(data)


@pytest.fixture(scope="module")
def trainer_run(tmp_path_factory):
    """A run of transformers' Trainer with three checkpoints, and how to start another one."""
    need("transformers", "accelerate")
    import transformers

    os.environ.update(HF_HUB_OFFLINE="1", WANDB_DISABLED="true", TOKENIZERS_PARALLELISM="false")
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 128, (16,), generator=generator) for _ in range(16)]

    def trainer(output):
        torch.manual_seed(0)
        arguments = transformers.TrainingArguments(
            str(output), max_steps=6, save_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to=[], seed=0,
            logging_steps=100, disable_tqdm=True,
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in rows]
        return transformers.Trainer(model=transformers.LlamaForCausalLM(config), args=arguments, train_dataset=data)

    run = tmp_path_factory.mktemp("hf") / "run"
    first = trainer(run)
    first.train()
    return run, trainer, {name: value.clone() for name, value in first.model.state_dict().items()}


def test_trainer_checkpoints_are_listed_complete_and_rebuilt_exactly(trainer_run):
    run, _, _ = trainer_run
    assert is_run(run)
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    for path in list_checkpoints(run):
        assert completeness(path) is None
        checkpoint = read_checkpoint(path)
        assert checkpoint.step == int(path.name.removeprefix("checkpoint-"))
        assert_lossless(checkpoint, path)
    (optimizer,) = checkpoint.optimizers
    paths = {t.path: t.shape for t in checkpoint.tensors}
    assert [len(group.ids) for group in optimizer.groups] == [16, 5]
    assert optimizer.groups[0].betas == (0.9, 0.999)
    assert paths["model.safetensors", "model.embed_tokens.weight"] == (128, 32)
    assert paths[*optimizer.path, "state", "0", "exp_avg_sq"] == (128, 32)
    print(len(checkpoint.files), "files,", len(checkpoint.tensors), "tensors,", checkpoint.nbytes, "bytes")


def test_the_trainer_resumes_from_rebuilt_files(trainer_run, tmp_path):
    run, trainer, expected = trainer_run
    again = tmp_path / "run"
    shutil.copytree(run / "checkpoint-4", again / "checkpoint-4")
    checkpoint = read_checkpoint(run / "checkpoint-4")
    fill(again / "checkpoint-4", checkpoint)
    resumed = trainer(again)
    resumed.train(resume_from_checkpoint=str(again / "checkpoint-4"))
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())

    shutil.rmtree(again)
    shutil.copytree(run / "checkpoint-4", again / "checkpoint-4")
    fill(again / "checkpoint-4", checkpoint, nudged(checkpoint))
    resumed = trainer(again)
    resumed.train(resume_from_checkpoint=str(again / "checkpoint-4"))
    assert resumed.state.global_step == 6


class Taste:
    """An object of the user's in hyper_parameters."""


@pytest.fixture(scope="module")
def lightning_run(tmp_path_factory):
    """A run of Lightning with two checkpoints and a `last.ckpt` link."""
    need("lightning")
    import lightning
    from lightning.pytorch import callbacks

    class Model(lightning.LightningModule):
        def __init__(self, taste=None):
            super().__init__()
            self.save_hyperparameters()
            self.layers = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))

        def training_step(self, batch, _):
            return self.layers(batch[0]).pow(2).mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-3)

    run = tmp_path_factory.mktemp("pl") / "run"

    def fit(output, resume=None):
        torch.manual_seed(0)
        data = torch.utils.data.TensorDataset(torch.randn(32, 16, generator=torch.Generator().manual_seed(1)))
        saver = callbacks.ModelCheckpoint(
            dirpath=output, every_n_train_steps=2, save_top_k=2, monitor="step", mode="max", save_last="link"
        )
        trainer = lightning.Trainer(
            max_steps=6, callbacks=[saver], logger=False, enable_progress_bar=False, enable_model_summary=False,
            accelerator="cpu", default_root_dir=output,
        )  # fmt: skip
        model = Model(Taste())
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(None):
            trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=resume, weights_only=False)
        return model

    fit(run)
    return run, fit


def test_lightning_checkpoints_are_listed_complete_and_rebuilt_exactly(lightning_run):
    run, _ = lightning_run
    found = list_checkpoints(run)
    assert len(found) == 2
    assert "last.ckpt" not in [path.name for path in found]
    for path, step in zip(found, [4, 6], strict=True):
        assert completeness(path) is None
        checkpoint = read_checkpoint(path)
        assert checkpoint.step == step
        assert_lossless(checkpoint, path)
    (optimizer,) = checkpoint.optimizers
    assert optimizer.path == ("optimizer_states", "0")
    paths = {t.path: t.shape for t in checkpoint.tensors}
    assert paths["state_dict", "layers.0.weight"] == paths["optimizer_states", "0", "state", "0", "exp_avg"] == (64, 16)
    print(sorted(paths))


def test_lightning_resumes_from_rebuilt_files(lightning_run, tmp_path):
    run, fit = lightning_run
    path = list_checkpoints(run)[0]
    checkpoint = read_checkpoint(path)
    again = tmp_path / path.name
    fill(tmp_path, checkpoint)
    expected = fit(tmp_path / "out", resume=str(path)).state_dict()
    resumed = fit(tmp_path / "out", resume=str(again)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.items())
    fill(tmp_path, checkpoint, nudged(checkpoint))
    loaded = torch.load(again, weights_only=False)
    original = torch.load(path, weights_only=False)
    assert not torch.equal(loaded["state_dict"]["layers.0.weight"], original["state_dict"]["layers.0.weight"])
    fit(tmp_path / "out2", resume=str(again))


def test_accelerate_directories_are_read(tmp_path):
    need("accelerate")
    import accelerate

    model = torch.nn.Linear(32, 32)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.backward(model(torch.ones(1, 32)).sum())
    optimizer.step()
    path = tmp_path / "checkpoint_3"
    accelerator.save_state(str(path))
    checkpoint = read_checkpoint(path)
    assert checkpoint.step == 3
    assert ("optimizer.bin",) in [optimizer.path for optimizer in checkpoint.optimizers]
    assert_lossless(checkpoint, path)
    print([layout.name for layout in checkpoint.files])
