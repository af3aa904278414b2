"""The ruler's folder, used as it is: its training loop as a job, its quality measure and its baseline as commands.

The folder holds `train.py` (SIZES, corpus, make, train_step, log_probabilities), `quality.py` (SIZE ORIGINAL RESTORED:
prints kl, resume_gap, heldout_gap and these of its control) and `excp_baseline.py` (REFERENCE CURRENT RESTORED_OUT
[--threshold-scale X] [--fill]: prints coded_bytes).
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def script(tools: Path, name: str, *arguments: object) -> dict[str, Any]:
    """Run one of the folder's scripts; the JSON object that it prints."""
    command = [sys.executable, name, *map(str, arguments)]
    done = subprocess.run(command, cwd=tools, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def _module(path: Path, name: str) -> ModuleType:
    """The module at `path` under a name that nothing else has."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class RulerJob:
    """One size of the ruler; a training.Job."""

    def __init__(self, tools: Path, size: str) -> None:
        self._train = _module(tools / "train.py", "ruler_train")
        self._size = self._train.SIZES[size]
        self._text, self._heldout_text = self._train.corpus()
        self.steps: int = self._size.steps
        self.every: int = self._size.every

    def make(self) -> tuple[nn.Module, Optimizer]:
        """As before the first step."""
        return self._train.make(self._size)

    def train_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> float:
        """One step; the loss before it."""
        return self._train.train_step(model, optimizer, self._text, self._size, step)

    def heldout(self, model: nn.Module) -> Iterator[tuple[Tensor, float]]:
        """The ruler's validation batches: log-probabilities of each, and the mean loss over all."""
        outputs, loss = self._train.log_probabilities(model, self._heldout_text, self._size)
        yield from ((log_probabilities, loss) for log_probabilities in outputs)
