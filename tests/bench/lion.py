"""Lion, in the few lines that it takes: what the tests and benchmarks train with."""

from collections.abc import Callable

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    """Steps of the sign of a mix of momentum and gradient (Chen et al. 2023); its state is `exp_avg` alone."""

    def __init__(
        self, params, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; the loss, if there is a closure that gives it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            mixing, memory = group["betas"]
            for parameter in (p for p in group["params"] if p.grad is not None):
                state = self.state[parameter]
                momentum = state.setdefault("exp_avg", torch.zeros_like(parameter))
                update = momentum.lerp(parameter.grad, 1 - mixing).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
                momentum.lerp_(parameter.grad, 1 - memory)
        return loss
