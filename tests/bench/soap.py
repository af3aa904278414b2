"""SOAP (Vyas et al. 2024), in the few lines that it takes: Adam in the eigenbasis of Shampoo's factors.

States are as published. Of a matrix `exp_avg` and `exp_avg_sq` are in that basis, `GG` are the factors' running means,
one a dimension, `Q` their eigenvectors, tracked by power iteration. A vector has Adam's moments and two empty lists.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Soap(Optimizer):
    """Of vectors and matrices."""

    def __init__(self, params: Any, lr: float = 3e-3, weight_decay: float = 0.01, every: int = 10) -> None:
        """The basis is tracked each `every` steps."""
        settings = {"betas": (0.95, 0.95), "eps": 1e-8, "weight_decay": weight_decay, "precondition_frequency": every}
        super().__init__(params, {"lr": lr} | settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step; the first one only looks."""
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                state, gradient = self.state[parameter], parameter.grad
                if state:
                    parameter.sub_(_update(state, gradient, group), alpha=group["lr"])
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                else:
                    state |= {"step": 0} | {name: torch.zeros_like(gradient) for name in ("exp_avg", "exp_avg_sq")}
                    sides = gradient.shape if gradient.ndim == 2 else ()
                    state["GG"] = [torch.zeros(side, side) for side in sides] or [[]]
                    state["Q"] = [[]]
                _track(state, gradient, group)


def _update(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
    state["step"] += 1
    turned = _into(gradient, state["Q"])
    beta1, beta2 = group["betas"]
    state["exp_avg"].lerp_(turned, 1 - beta1)
    state["exp_avg_sq"].lerp_(turned.square(), 1 - beta2)
    filled = (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
    return _out_of(filled * state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"]), state["Q"])


def _into(matrix: Tensor, basis: list[Any]) -> Tensor:
    return basis[0].T @ matrix @ basis[1] if len(basis) == 2 else matrix


def _out_of(matrix: Tensor, basis: list[Any]) -> Tensor:
    return basis[0] @ matrix @ basis[1].T if len(basis) == 2 else matrix


def _track(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> None:
    if gradient.ndim != 2:
        return
    state["exp_avg"] = _out_of(state["exp_avg"], state["Q"])
    for factor, outer in zip(state["GG"], (gradient @ gradient.T, gradient.T @ gradient), strict=True):
        factor.lerp_(outer, 1 - group["betas"][1])
    if len(state["Q"]) < 2:
        state["Q"] = [torch.linalg.eigh(factor)[1].flip(1) for factor in state["GG"]]
    elif state["step"] % group["precondition_frequency"] == 0:
        for axis, factor in enumerate(state["GG"]):
            order = (state["Q"][axis] * (factor @ state["Q"][axis])).sum(0).argsort(descending=True)
            state["exp_avg_sq"] = state["exp_avg_sq"].index_select(axis, order)
            state["Q"][axis] = torch.linalg.qr(factor @ state["Q"][axis][:, order])[0]
    state["exp_avg"] = _into(state["exp_avg"], state["Q"])
