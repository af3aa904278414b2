"""A trainer that saves by Accelerate's save_state.

    accelerate_trainer.py PROJECT STEPS RESUME OUTPUT

A checkpoint each ten steps, the newest three kept. It resumes from RESUME unless that is "", and saves the model to
OUTPUT; where that is "", it comes to a step that never ends five steps before the last.
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from hold import hold, last_step


class Progress:
    """What the trainer registers to be saved."""

    step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def work(project: str, steps: int, resume: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    naming = ProjectConfiguration(project_dir=project, automatic_checkpoint_naming=True, total_limit=3)
    accelerator = Accelerator(cpu=True, project_config=naming)
    layers = torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(128, 64)
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if resume:
        accelerator.load_state(resume)
    while progress.step < steps:
        progress.step += 1
        hold(project, progress.step)
        last_step(progress.step, steps, output)
        accelerator.backward(model(torch.randn(16, 64)).pow(2).mean())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if progress.step % 10 == 0 and not resume:  # it counts from 0 again, and finds its checkpoints there
            accelerator.save_state()
    torch.save(accelerator.unwrap_model(model).state_dict(), output)


if __name__ == "__main__":
    place, last, *others = sys.argv[1:]
    work(place, int(last), *others)
