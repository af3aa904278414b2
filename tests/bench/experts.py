"""A language model whose feed-forward layers are mixtures of experts, all experts of a layer fused into one tensor."""

# B = sequences in a batch, T = tokens, C = width of the model, H = width inside an expert, E = experts

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from pythia import BYTE_VALUES, Attention, library_text
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from training import HELDOUT_SEED, warm_cosine

CHOSEN = 2  # experts a token
HELDOUT_SHARE = 0.05
BALANCE = 0.01  # weight of the loss that keeps experts equally busy


class Mixture(nn.Module):
    """Two experts for every token, each two matrices: `up` is (E, C, H), `down` (E, H, C)."""

    def __init__(self, width: int, experts: int, inside: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(width**-0.5 * torch.randn(experts, width, inside))
        self.down = nn.Parameter(inside**-0.5 * torch.randn(experts, inside, width))
        self.unbalanced = torch.zeros(())  # of the last batch

    def forward(self, stream_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        tokens_NC = stream_BTC.flatten(0, 1)
        shares_NE = self.router(tokens_NC).softmax(-1)
        weights, chosen = shares_NE.topk(CHOSEN, -1)
        mixed_NC = torch.zeros_like(tokens_NC)
        for expert, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            token, place = torch.nonzero(chosen == expert, as_tuple=True)
            found = functional.gelu(tokens_NC[token] @ up) @ down
            mixed_NC = mixed_NC.index_add(0, token, found * weights[token, place, None])
        busy = functional.one_hot(chosen, len(self.up)).float().mean((0, 1))
        self.unbalanced = len(self.up) * (busy * shares_NE.mean(0)).sum()
        return mixed_NC.view_as(stream_BTC)


class MixtureModel(nn.Module):
    """Attention and experts in turns, behind a layer norm and beside a residual stream."""

    def __init__(self, width: int, layers: int, experts: int, inside: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTE_VALUES, width)
        self.attention = nn.ModuleList(Attention(width) for _ in range(layers))
        self.experts = nn.ModuleList(Mixture(width, experts, inside) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers + 1))
        self.head = nn.Linear(width, BYTE_VALUES, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """int64 (B, T) -> logits (B, T, 256)."""
        stream_BTC, norms = self.embed(tokens_BT), iter(self.norms)
        for attention, experts in zip(self.attention, self.experts, strict=True):
            stream_BTC = stream_BTC + attention(next(norms)(stream_BTC))
            stream_BTC = stream_BTC + experts(next(norms)(stream_BTC))
        return self.head(next(norms)(stream_BTC))


@dataclass(frozen=True)
class MixtureJob:
    """A training.Job on Python's own library, byte by byte."""

    width: int
    layers: int
    experts: int
    inside: int
    steps: int
    every: int
    batch: int
    context: int
    peak_learning_rate: float
    least_ratio: float  # the bar for the last deltas
    heldout_batches: int = 16

    @cached_property
    def _texts(self) -> tuple[Tensor, Tensor]:
        """To train on, and held out."""
        text = library_text()
        cut = int(len(text) * (1 - HELDOUT_SHARE))
        return text[:cut], text[cut:]

    def make(self) -> tuple[nn.Module, Optimizer]:
        """As before the first step."""
        torch.manual_seed(0)
        model = MixtureModel(self.width, self.layers, self.experts, self.inside)
        return model, torch.optim.AdamW(model.parameters(), lr=self.peak_learning_rate, weight_decay=0.1)

    def train_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> float:
        """One step; the loss before it."""
        for group in optimizer.param_groups:
            group["lr"] = self.peak_learning_rate * warm_cosine(step, self.steps, max(1, self.steps // 20))
        inputs_BT, targets_BT = self._batch(self._texts[0], seed=step)
        loss = functional.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        (loss + BALANCE * sum(mixture.unbalanced for mixture in model.experts)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    @torch.no_grad()  # as a decorator: a `with` around `yield` would reach into whoever takes the batches
    def heldout(self, model: nn.Module) -> Iterator[tuple[Tensor, float]]:
        """Log-probabilities, float32 (B, T, 256), and loss of text that training never sees."""
        for index in range(self.heldout_batches):
            inputs_BT, targets_BT = self._batch(self._texts[1], seed=HELDOUT_SEED + index)
            log_probabilities = functional.log_softmax(model(inputs_BT), -1)
            yield log_probabilities, functional.nll_loss(log_probabilities.flatten(0, 1), targets_BT.flatten()).item()

    def _batch(self, text: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Tokens and the tokens that follow them, int64 (B, T)."""
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(text) - self.context, (self.batch, 1), generator=generator)
        rows = text[starts + torch.arange(self.context + 1)].long()
        return rows[:, :-1], rows[:, 1:]


_EXPERTS = MixtureJob(
    width=128,
    layers=2,
    experts=8,
    inside=256,
    steps=1000,
    every=100,
    batch=8,
    context=128,
    peak_learning_rate=1e-3,
    least_ratio=80,
)

JOBS = {
    "experts": _EXPERTS,  # 1.2 M parameters, 2 minutes on one core
    "experts-tiny": replace(
        _EXPERTS, width=64, layers=1, experts=4, inside=32, steps=20, every=5, batch=4, context=32, heldout_batches=2
    ),  # for tests
}
