"""Write the golden archives of the current format version. Refuses to overwrite: a golden is for ever.

usage: make_golden.py    writes tests/golden/format_N/: two chains and `expected.json`, hashes of what they restore
Run it once for a new format version, in the commit that changes FORMAT.md.
"""

import json
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import torch

import ckzd
from ckzd.archive.manifest import FORMAT_VERSION
from ckzd.codec import fitting
from ckzd.store import read_manifest

HERE = Path(__file__).parent / f"format_{FORMAT_VERSION}"
STEPS = (20, 40, 60)


def write_run(run: Path) -> None:
    """A small real run: two matrices with structured gradients, biases, bf16 and fp16 weights, an integer, a NaN."""
    torch.manual_seed(7)
    inputs, outputs = torch.randn(512, 48) @ torch.diag(torch.logspace(-1, 1, 48)), torch.randn(512, 160)
    model = torch.nn.Sequential(torch.nn.Linear(48, 144), torch.nn.Tanh(), torch.nn.Linear(144, 160))
    half, brain = torch.randn(16, 16).half(), torch.randn(16, 16).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, max(STEPS) + 1):
        rows = torch.randint(512, (32,))
        optimizer.zero_grad()
        (model(inputs[rows]) - outputs[rows]).pow(2).mean().backward()
        optimizer.step()
        if step in STEPS:
            odd = torch.full((300,), float("nan")) if step == STEPS[1] else torch.linspace(0, 1, 300)
            extra = {"half": half, "brain": brain, "count": torch.arange(100) * step, "odd": odd, "tied": half.clone()}
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "extra": extra}
            torch.save(state, run / f"step_{step}.pt")


def main() -> None:
    if HERE.exists():
        raise SystemExit(f"{HERE} exists: goldens are never regenerated")
    with tempfile.TemporaryDirectory() as work, mock.patch.object(fitting, "encode_lstm", return_value=b""):
        expected = {}
        for preset in ("resume", "paper"):  # with an LSTM that seems free, so that small planes use it
            run = Path(work) / preset / "run"
            run.mkdir(parents=True)
            write_run(run)
            for step in STEPS:
                report = ckzd.compress(run / f"step_{step}.pt", preset=preset)
                target = HERE / preset / Path(report.archive).name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(report.archive, target)
                manifest = read_manifest(target)
                expected[f"{preset}/{target.name}"] = {"restored": manifest.restored, "coders": manifest.coders}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
