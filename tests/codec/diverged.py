"""A small run that diverges: what its numbers become, in each of the ways that happen, and what it goes on with."""

import copy
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

State = dict
STEPS = (200, 400, 600)  # of the checkpoints of a sound run
DIVERGED = 550  # between the last two: it is rolled back to the second, and goes on
_LAYER, _LAST = 2, (4, 5)  # parameters: one in the middle, and those of the last layer


def network() -> torch.nn.Module:
    layers = [torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 128), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(128, 32))


@cache
def _trained() -> dict[int, State]:
    torch.manual_seed(0)
    teacher, model = network(), network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    states = {}
    for step in range(1, STEPS[-1] + 1):
        inputs = torch.randn(64, 64)
        with torch.no_grad():
            targets = 3 * teacher(inputs) + 0.1 * torch.randn(64, 32)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        if step in STEPS:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            states[step] = copy.deepcopy(state)
    return states


def sound(step: int) -> State:
    """A checkpoint of the run as it should be."""
    return copy.deepcopy(_trained()[step])


def diverged(kind: str) -> State:
    """What the run saves when it has diverged in that way."""
    state = sound(STEPS[1])
    KINDS[kind](state)
    return state | {"step": DIVERGED}


def saved(state: State, run: Path) -> Path:
    run.mkdir(exist_ok=True)
    path = run / f"step_{state['step']}.pt"
    torch.save(state, path)
    return path


def _weights(state: State) -> list[torch.Tensor]:
    return list(state["model"].values())


def _moments(state: State) -> list[torch.Tensor]:
    return [own[name] for own in state["optimizer"]["state"].values() for name in ("exp_avg", "exp_avg_sq")]


def _all_nan(state: State) -> None:
    for tensor in (*_weights(state), *_moments(state)):
        tensor.fill_(math.nan)


def _half_nan(state: State) -> None:
    for tensor in _weights(state):
        tensor.view(-1)[::2] = math.nan


def _last_layer_nan(state: State) -> None:
    moments = _moments(state)
    for number in _LAST:
        for tensor in (_weights(state)[number], *moments[2 * number : 2 * number + 2]):
            tensor.fill_(math.nan)


def _one_infinity(state: State) -> None:
    _weights(state)[_LAYER][3, 4] = math.inf


def _moments_nan(state: State) -> None:
    for tensor in _moments(state):
        tensor.fill_(math.nan)


def _one_infinite_square(state: State) -> None:
    _moments(state)[2 * _LAYER + 1][3, 4] = math.inf


def _blown_up(state: State) -> None:
    for tensor in _weights(state):
        tensor.mul_(3000)


def _another_initialization(state: State) -> None:
    torch.manual_seed(1)
    for tensor, other in zip(_weights(state), network().state_dict().values(), strict=True):
        tensor.copy_(other)


KINDS: dict[str, Callable[[State], None]] = {
    "all nan": _all_nan,
    "half nan": _half_nan,
    "last layer nan": _last_layer_nan,
    "one infinity": _one_infinity,
    "moments nan": _moments_nan,
    "one infinite square": _one_infinite_square,
    "blown up": _blown_up,
    "another initialization": _another_initialization,
}
