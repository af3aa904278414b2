"""Trains the LSTM at the encoder: float weights, rounded to their int8 grid in every forward pass.

What is made small is the bits of symbols and weights together. The data are the histograms of all contexts that
occur, so one step sees every symbol of the checkpoint and its cost depends on the number of distinct contexts only. The
decoder never comes here.

# B = nodes of one tree level, H = hidden, A = alphabet
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ckzd.codec.entropy.context import FIELDS, GRID, PASSES
from ckzd.codec.entropy.models import Histograms, Model
from ckzd.codec.paper.lstm import SHAPES, WEIGHT_BITS, LstmWeights, tokens_of
from ckzd.codec.parallel import one_blas_thread
from ckzd.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]  # of all parameters, by name
Parameters = dict[str, Tensor]

_SCALE = float(1 << WEIGHT_BITS)
_LIMIT = 127 / _SCALE
_MIN_SEEN = 16  # contexts seen less often are left to generalisation
_LEARNING_RATE = 0.03
_EMBEDDING = 0.5  # deviation at the start
_BETAS = (0.9, 0.98)
_LOOK_EVERY = 5
_PATIENCE = 6  # stop after so many looks with a gain of less than 0.002 %
_REST = 2e-5
_FIRST_VERDICT = 8  # looks: before, the hidden layers have hardly begun to do anything
_HOPE = 4.0  # what 40 steps have gained is a quarter, at least, of what all will
_COLD_PRICE_BITS = 4.0  # what a weight of int8 costs, about
_WARM_PRICE_BITS = 1.0  # what its difference to a reference's costs


@dataclass(frozen=True, slots=True)
class _Level:
    parent: Tensor  # (B,) node of the level above
    token: Tensor  # (B,)


def pick_device(name: str) -> str:
    """`auto` is the GPU where there is one, else the CPU; ConfigError for a device that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    cuda = re.fullmatch(r"cuda(?::(\d+))?", name)
    count = torch.cuda.device_count() if cuda else 0
    if name != "cpu" and not (cuda and int(cuda[1] or 0) < count):
        raise ConfigError("device", f"expected a device that is there, got {name!r}", hint="use cpu, or auto")
    return name


def fit(
    histograms: Histograms,
    tables: Model,
    start: LstmWeights | None,
    *,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
    shapes: Shapes = SHAPES,
) -> LstmWeights:
    """Weights that refine the tables so that the histograms cost few bits, from `start` (the reference's) if there.

    On one thread, whatever the caller's limit: it may be older than torch, which is loaded late.
    """
    with one_blas_thread():
        levels, counts, prior = _tree(histograms, tables, device)
        parameters = _parameters(shapes, start, seed, device)
        _train(parameters, start, partial(_bits, levels, counts, prior, parameters), float(counts.sum()), steps)
    return LstmWeights(**{name: _int8(parameters[name]) for name in shapes})


def _train(
    parameters: Parameters, start: LstmWeights | None, bits_of: Callable[[], Tensor], symbols: float, steps: int
) -> None:
    """Make what symbols and weights cost small, for so many steps or until that is at rest or hopeless."""
    adam, looks = _Adam(parameters), []
    price_bits = _COLD_PRICE_BITS if start is None else _WARM_PRICE_BITS
    price_bits *= sum(parameter.numel() for parameter in parameters.values())
    for step in range(steps):
        bits = bits_of()
        if step % _LOOK_EVERY == 0:
            looks.append(bits.item())
            if _is_done(looks, price_bits=price_bits):
                break
        ((bits + _price(parameters, start)) / symbols).backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        adam.step(_LEARNING_RATE * (1 - step / steps) + 1e-4)


def _price(parameters: Parameters, start: LstmWeights | None) -> Tensor:
    """About how many bits the weights themselves take, as differences to the reference's: what they must earn."""
    price = torch.zeros(())
    for name, parameter in parameters.items():
        units = parameter * _SCALE
        if start is not None:
            units = units - torch.from_numpy(getattr(start, name).astype(np.float32)).to(units.device)
        price = price.to(units.device) + 0.5 * torch.log2(1 + units**2).sum()
    return price


class _Adam:
    """Adam (Kingma & Ba, 2015) in the int8 range; torch.optim would load the compiler: two seconds of every command."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = list(parameters.values())
        self._first = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._second = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter once and forget its gradient."""
        self._steps += 1
        corrections = tuple(1 - beta**self._steps for beta in _BETAS)
        for parameter, first, second in zip(self._parameters, self._first, self._second, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            first.lerp_(gradient, 1 - _BETAS[0])
            second.lerp_(gradient**2, 1 - _BETAS[1])
            scale = (second / corrections[1]).sqrt() + 1e-8
            parameter.addcdiv_(first / corrections[0], scale, value=-learning_rate)
            parameter.clamp_(-_LIMIT, _LIMIT)
            parameter.grad = None


def _is_done(looks: list[float], *, price_bits: float) -> bool:
    """Whether training has come to rest, or will not earn the bytes of its own weights."""
    gained = looks[0] - looks[-1]
    hopeless = len(looks) > _FIRST_VERDICT and _HOPE * gained < price_bits
    at_rest = len(looks) > _PATIENCE and looks[-1 - _PATIENCE] - looks[-1] < _REST * looks[0]
    return hopeless or at_rest


def _int8(parameter: Tensor) -> npt.NDArray[np.int8]:
    rounded: npt.NDArray[np.int8] = torch.round(parameter.detach() * _SCALE).to(torch.int8).cpu().numpy()
    return rounded


def _parameters(shapes: Shapes, start: LstmWeights | None, seed: int, device: str) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name, shape in shapes.items():
        if start is not None:
            value = torch.from_numpy(getattr(start, name).astype(np.float32) / _SCALE)
        elif name.startswith("output") or name == "bias":  # begin by changing nothing
            value = torch.zeros(shape)
        else:
            value = torch.randn(shape, generator=generator) * (_EMBEDDING if name == "embedding" else shape[0] ** -0.5)
        parameters[name] = value.to(device).clamp(-_LIMIT, _LIMIT).requires_grad_()
    return parameters


def _tree(histograms: Histograms, tables: Model, device: str) -> tuple[list[_Level], Tensor, Tensor]:
    """The contexts that occur, as one tree: a level a class; counts (B, A) and log2 table rows (B, A) of its leaves."""
    sizes = [size for _, size in FIELDS]
    paths, counts, rows = [], [], []
    for (kind, number, density), histogram in sorted(histograms.items()):
        often = histogram.counts.sum(1) >= _MIN_SEEN
        used = histogram.used[often]
        classes = np.stack(np.unravel_index(used, sizes), 1) if used.size else np.empty((0, len(sizes)), np.int64)
        prefix = np.broadcast_to(np.array([kind * PASSES + number, density]), (used.size, 2))
        paths.append(np.concatenate([prefix, classes], 1))
        counts.append(histogram.counts[often])
        rows.append(np.log2(tables.rows(kind, number, density)[used]))
    path = np.concatenate(paths)
    levels, parent = [], np.zeros(len(path), np.int64)
    for field in range(path.shape[1]):
        key = parent * (GRID + 1) + path[:, field]
        nodes, parent_of_path = np.unique(key, return_inverse=True)
        token = nodes % (GRID + 1) + tokens_of(field).start
        levels.append(_Level(torch.from_numpy(nodes // (GRID + 1)).to(device), torch.from_numpy(token).to(device)))
        parent = parent_of_path
    order = np.argsort(parent)  # a path is a leaf
    leaves, prior = (torch.from_numpy(np.concatenate(x)[order]).to(device, torch.float32) for x in (counts, rows))
    return levels, leaves, prior


def _bits(levels: list[_Level], counts: Tensor, prior: Tensor, parameters: Parameters) -> Tensor:
    """Bits that the counts cost under the rounded parameters."""
    rounded = {name: p + (torch.round(p * _SCALE) / _SCALE - p).detach() for name, p in parameters.items()}
    inputs = rounded["embedding"] @ rounded["gates"] + rounded["bias"]
    hidden = cell = inputs.new_zeros(1, len(rounded["hidden"]))
    for level in levels:
        gates = (hidden @ rounded["hidden"])[level.parent] + inputs[level.token]
        enter, keep, show, candidate = gates.chunk(4, 1)
        enter, keep, show = enter.sigmoid(), keep.sigmoid(), show.sigmoid()
        cell = keep * cell[level.parent] + enter * candidate.tanh()
        hidden = show * torch.tanh(cell)
    logits = hidden @ rounded["output"] + rounded["output_bias"]
    natural = torch.log_softmax((logits + prior) * float(np.log(2.0)), 1)
    return -(counts * natural).sum() / float(np.log(2.0))
