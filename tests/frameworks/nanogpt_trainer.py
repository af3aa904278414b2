"""A trainer that writes one file over and over, as nanoGPT does: nanogpt_trainer.py RUN STEPS RESUME OUTPUT."""

import sys
from pathlib import Path

import torch
from hold import hold, last_step


def work(run: str, steps: int, resume: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    Path(run).mkdir(parents=True, exist_ok=True)
    arguments = {"n_layer": 1, "n_embd": 64}
    layers = torch.nn.Embedding(96, 64), torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 96)
    model = torch.nn.Sequential(*layers)
    groups = [
        {"params": [weight for weight in model.parameters() if weight.dim() >= 2], "weight_decay": 0.1},
        {"params": [weight for weight in model.parameters() if weight.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    begin = 0
    if resume:
        checkpoint = torch.load(resume, map_location="cpu", weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        begin = checkpoint["iter_num"]
    for step in range(begin + 1, steps + 1):
        hold(run, step)
        last_step(step, steps, output)
        batch = torch.randint(0, 96, (64,), generator=torch.Generator().manual_seed(step))
        torch.nn.functional.cross_entropy(model(batch), batch.roll(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            checkpoint = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "model_args": arguments,
                "iter_num": step,
                "best_val_loss": 1e9,
                "config": {"out_dir": run},
            }
            torch.save(checkpoint, Path(run) / "ckpt.pt")
    torch.save(model.state_dict(), output)


if __name__ == "__main__":
    place, last, *others = sys.argv[1:]
    work(place, int(last), *others)
