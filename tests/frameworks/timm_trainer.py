"""A trainer that saves by timm's CheckpointSaver: timm_trainer.py RUN STEPS RESUME OUTPUT.

The best three of its checkpoints are kept, each a hard link to `last.pth.tar` while it is the newest.
"""

import argparse
import importlib.abc
import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import torch
from hold import hold, last_step


class NoVision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """torchvision is not needed to save, and does not import beside every build of torch."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        is_it = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_it else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return MagicMock(__spec__=spec, __path__=[], __name__=spec.name, __all__=[], __version__="0.99.0")

    def exec_module(self, module: ModuleType) -> None: ...


sys.meta_path.insert(0, NoVision())
from timm.models import resume_checkpoint  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.utils.checkpoint_saver import CheckpointSaver  # noqa: E402


def work(run: str, steps: int, resume: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    Path(run).mkdir(parents=True, exist_ok=True)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32))
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05)
    saver = CheckpointSaver(
        model, optimizer, args=argparse.Namespace(model="mlp"), checkpoint_dir=run, recovery_dir=run, max_history=3
    )
    begin = 0
    if resume:
        begin = 10 * resume_checkpoint(model, resume, optimizer)  # the epoch after the saved one
        saver.load_state_dict_from_checkpoint(resume)
    for step in range(begin + 1, steps + 1):
        hold(run, step)
        last_step(step, steps, output)
        batch = torch.randn(16, 32, generator=torch.Generator().manual_seed(step))
        (model(batch) - batch.roll(1)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:  # the second is the best, the first the worst
            saver.save_checkpoint(step // 10 - 1, metric={10: 0.0, 20: 9.0}.get(step, step / 10))
    torch.save(model.state_dict(), output)


if __name__ == "__main__":
    place, last, *others = sys.argv[1:]
    work(place, int(last), *others)
