"""Two training jobs of another kind than the ruler: a vision transformer with AdamW, a convnet with SGD and batch norm.

Both tell apart textures that are drawn as they are needed: each class is two gratings of its own direction, spacing and
colours; an image has them at random phases, bent, faded, under another class's and under noise. There is always a new
image, so a run neither ends at zero loss nor learns its data by heart.
"""

# B = images in a batch, P = pixels a side, T = patches, C = width of the model

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from training import HELDOUT_SEED, warm_cosine

CLASSES = 64
PIXELS = 32


class Textures:
    """Images by class, all from fixed seeds."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator)

        self._angle = uniform(0, math.pi, CLASSES, 2)
        self._cycles = uniform(2, 8, CLASSES, 2)  # an image width
        self._colour = torch.randn((CLASSES, 2, 3), generator=generator)
        axis = torch.linspace(-0.5, 0.5, PIXELS)
        self._y, self._x = torch.meshgrid(axis, axis, indexing="ij")

    def batch(self, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Images, float32 (B, 3, P, P), and their classes, int64 (B,)."""
        generator = torch.Generator().manual_seed(seed)
        classes, others = torch.randint(CLASSES, (2, size), generator=generator)
        images = self._draw(classes, generator) + 0.5 * self._draw(others, generator)
        return images + 0.7 * torch.randn(images.shape, generator=generator), classes

    def _draw(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """One image a class, float32 (B, 3, P, P)."""
        shape = (len(classes), 2)
        angle = self._angle[classes] + 0.12 * torch.randn(shape, generator=generator)
        cycles = self._cycles[classes] * (1 + 0.08 * torch.randn(shape, generator=generator))
        phase, bend, strength = torch.rand((3, *shape), generator=generator)
        across = torch.einsum("bk,ij->bkij", torch.cos(angle), self._x)
        across = across + torch.einsum("bk,ij->bkij", torch.sin(angle), self._y)
        bent = across + (bend - 0.5)[..., None, None] * across**2
        waves = torch.sin(2 * math.pi * (cycles[..., None, None] * bent + phase[..., None, None]))
        return torch.einsum("bk,bkij,bkc->bcij", 0.3 + strength, waves, self._colour[classes])


class EncoderBlock(nn.Module):
    """Attention and a feed-forward layer, each behind a layer norm and beside a residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, stream_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        batch, length, width = stream_BTC.shape
        projected = self.qkv(self.norm1(stream_BTC)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        stream_BTC = stream_BTC + self.proj(attended.transpose(1, 2).reshape(batch, length, width))
        return stream_BTC + self.fc2(functional.gelu(self.fc1(self.norm2(stream_BTC))))


class VisionTransformer(nn.Module):
    """A patch embedding, a class token, blocks, a linear head."""

    def __init__(self, width: int, layers: int, heads: int, patch: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (PIXELS // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, 3, P, P) -> logits (B, CLASSES)."""
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        stream = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream[:, 0]))


class ConvBlock(nn.Module):
    """Two convolutions with batch norm beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, P, P) -> (B, outputs, P / stride, P / stride)."""
        inner = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(images)))))
        return functional.relu(inner + self.shortcut(images))


class ConvNet(nn.Module):
    """A stem of half the resolution, three stages of two blocks, mean pooling, a linear head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        blocks = []
        for stage, (inputs, outputs) in enumerate(((width, width), (width, 2 * width), (2 * width, 4 * width))):
            blocks += [ConvBlock(inputs, outputs, 2 if stage else 1), ConvBlock(outputs, outputs, 1)]
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(4 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, 3, P, P) -> logits (B, CLASSES)."""
        return self.fc(self.blocks(functional.relu(self.bn1(self.conv1(images)))).mean((2, 3)))


@dataclass(frozen=True)
class VisionJob:
    """Either job; a training.Job."""

    model: str  # "vit" or "convnet"
    width: int
    layers: int  # of the transformer
    steps: int
    every: int
    batch: int
    peak_learning_rate: float
    least_ratio: float  # the bar for the last deltas
    warmup_steps: int = 50
    heldout_batches: int = 16
    data: Textures = field(default_factory=Textures, repr=False, compare=False)

    def make(self) -> tuple[nn.Module, Optimizer]:
        """As before the first step."""
        torch.manual_seed(0)
        if self.model == "vit":
            model = VisionTransformer(self.width, self.layers, heads=self.width // 64, patch=4)
            return model, torch.optim.AdamW(model.parameters(), lr=self.peak_learning_rate, weight_decay=0.05)
        model = ConvNet(self.width)
        rate = self.peak_learning_rate
        return model, torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def train_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> float:
        """One step; the loss before it."""
        for group in optimizer.param_groups:
            group["lr"] = self.peak_learning_rate * warm_cosine(step, self.steps, self.warmup_steps)
        images, classes = self.data.batch(self.batch, seed=step)
        loss = functional.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    @torch.no_grad()  # as a decorator: a `with` around `yield` would reach into whoever takes the batches
    def heldout(self, model: nn.Module) -> Iterator[tuple[Tensor, float]]:
        """Log-probabilities, float32 (B, CLASSES), and loss of images that training never sees."""
        model.eval()
        for index in range(self.heldout_batches):
            images, classes = self.data.batch(128, seed=HELDOUT_SEED + index)
            log_probabilities = functional.log_softmax(model(images), -1)
            yield log_probabilities, functional.nll_loss(log_probabilities, classes).item()
        model.train()


_VIT = VisionJob("vit", 192, 4, 1000, 100, batch=32, peak_learning_rate=6e-4, least_ratio=80)
_CONVNET = VisionJob("convnet", 48, 0, 1000, 100, batch=32, peak_learning_rate=0.05, least_ratio=25)

JOBS = {
    "vit": _VIT,  # 1.8 M parameters, 6 minutes on one core
    "convnet": _CONVNET,  # 1.6 M parameters, 3 minutes
    "vit-tiny": replace(_VIT, width=64, layers=2, steps=20, every=5, batch=8, heldout_batches=2),  # 0.11 M: for tests
    "convnet-tiny": replace(_CONVNET, width=16, steps=20, every=5, batch=8, heldout_batches=2),  # 0.2 M: for tests
}
