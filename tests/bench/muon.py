"""Muon with an Adam inside for what is no hidden matrix, as it is published: one optimizer, one state dict.

Two published settings: Keller Jordan's (updates of spectral norm 1, at a rate of 0.02), and Moonlight's (updates of the
root mean square of AdamW's, at AdamW's rate).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

ITERATIONS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic whose slope at 0 is largest
Spread = Callable[[int, int], float]  # rows and columns -> times an orthogonal matrix


def of_spectral_norm(rows: int, columns: int) -> float:
    """Keller Jordan's."""
    return math.sqrt(max(1.0, rows / columns))


def of_adams_rms(rows: int, columns: int) -> float:
    """Moonlight's (Liu et al. 2025)."""
    return 0.2 * math.sqrt(max(rows, columns))


class MuonWithAdam(Optimizer):
    """Hidden matrices keep `momentum_buffer`, all else `exp_avg`, `exp_avg_sq` and `step`."""

    def __init__(
        self,
        hidden: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        lr: float,
        *,
        share: float,
        weight_decay: float,
        spread: Spread,
    ) -> None:
        """`share` of the rate is that of all others."""
        self._spread = spread
        groups = [
            {"params": hidden, "use_muon": True, "momentum": 0.95, "weight_decay": weight_decay},
            {"params": others, "use_muon": False, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": weight_decay},
        ]
        super().__init__([groups[0] | {"share": 1.0}, groups[1] | {"share": share}], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step."""
        for group in self.param_groups:
            update_of = self._muon if group["use_muon"] else self._adam
            for parameter in (p for p in group["params"] if p.grad is not None):
                update = update_of(self.state[parameter], parameter.grad, group)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])

    def _muon(self, state: dict[str, Tensor], gradient: Tensor, group: dict[str, float]) -> Tensor:
        momentum = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - group["momentum"])
        return orthogonal(gradient.lerp(momentum, group["momentum"])) * self._spread(*gradient.shape)

    @staticmethod
    def _adam(state: dict[str, Tensor | int], gradient: Tensor, group: dict[str, tuple[float, float]]) -> Tensor:
        state["step"] = state.get("step", 0) + 1
        (beta1, beta2), filled = group["betas"], [1 - beta ** state["step"] for beta in group["betas"]]
        first = state.setdefault("exp_avg", torch.zeros_like(gradient)).lerp_(gradient, 1 - beta1)
        second = state.setdefault("exp_avg_sq", torch.zeros_like(gradient)).lerp_(gradient.square(), 1 - beta2)
        return first / filled[0] / ((second / filled[1]).sqrt() + group["eps"])


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest orthogonal one, by Newton and Schulz."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
