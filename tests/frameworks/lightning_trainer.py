"""A trainer that is Lightning's.

    lightning_trainer.py LAST RUN STEPS RESUME OUTPUT

LAST is what `save_last` writes: "copy", a second file, or "link". The best three of its checkpoints are kept. Lightning
keeps neither random states nor the place in a plain DataLoader: each step has data of its own, and there is no dropout.
"""

import sys
from types import SimpleNamespace

import lightning
import torch
from hold import hold, last_step
from lightning.pytorch.callbacks import Callback, ModelCheckpoint


class Model(lightning.LightningModule):
    def __init__(self, taste: SimpleNamespace) -> None:
        super().__init__()
        self.save_hyperparameters()
        layers = torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32)
        self.layers = torch.nn.Sequential(*layers)

    def training_step(self, _batch: list[torch.Tensor], _number: int) -> torch.Tensor:
        # step 20 is the best until step 40, for which step 10 makes way
        self.log("score", {10: 1.0, 20: 3.0, 30: 2.0, 40: 4.0}.get(self.global_step + 1, 0.0))
        batch = torch.randn(4, 32, generator=torch.Generator().manual_seed(self.global_step))
        return (self.layers(batch) - batch.roll(1)).pow(2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Holds(Callback):
    """Steps that take long."""

    def __init__(self, run: str, output: str) -> None:
        self.run, self.output = run, output

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        hold(self.run, trainer.global_step)
        last_step(trainer.global_step, trainer.max_steps, self.output)


def work(last: str, run: str, steps: int, resume: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.zeros(400, 1))
    saver = ModelCheckpoint(
        dirpath=run, every_n_train_steps=10, save_top_k=3, monitor="score", mode="max",
        save_last="link" if last == "link" else True,
    )  # fmt: skip
    trainer = lightning.Trainer(
        max_steps=steps, callbacks=[saver, Holds(run, output)], logger=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=run,
    )  # fmt: skip
    model = Model(SimpleNamespace(of="the user's"))
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=resume or None, weights_only=False)
    torch.save(model.state_dict(), output)


if __name__ == "__main__":
    which, place, end, *others = sys.argv[1:]
    work(which, place, int(end), *others)
