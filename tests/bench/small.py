"""Small deterministic jobs of many kinds, for what must hold for any run: seconds to train, each a training.Job.

Regression on a teacher network, from scratch, as a fine-tune with a new optimizer, and in pure fp16; text, with a GPT
and an LSTM; images of ten classes, with batch norm in all the places where people put it.
"""

# B = examples in a batch, T = bytes in a sequence, P = pixels a side

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from training import HELDOUT_SEED, warm_cosine
from vision import ConvNet, Textures

from ckzd.demo_training import SIZES, ByteModel, batch_of, stdlib_text

HELDOUT_BATCHES = 8
HELDOUT_SIZE = 8  # training batches each
INPUTS, OUTPUTS = 64, 32  # of the regression
CLASSES, PIXELS = 10, 16  # of the images

Batch = tuple[Tensor, Tensor]
Examples = Callable[[int, int], Batch]  # size, seed -> inputs and targets

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, betas=(0.9, 0.999)),
    "adam": partial(torch.optim.Adam, betas=(0.9, 0.95)),
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
SGD_RATE = 30.0  # times that of Adam


@dataclass(frozen=True)
class SmallJob:
    """One kind of run; a training.Job."""

    network: Callable[[], nn.Module]
    examples: Examples
    optimizer: str = "adamw"
    steps: int = 120
    every: int = 40
    batch: int = 64
    peak_learning_rate: float = 1e-3
    warmup_steps: int = 1
    eps: float = 1e-8
    half: bool = False  # weights and states in fp16, gradients from a float32 copy
    constrain: Callable[[nn.Module], None] = lambda model: None  # before the first and after each backward and step

    def make(self) -> tuple[nn.Module, Optimizer]:
        """As before the first step."""
        torch.manual_seed(0)
        model = self.network()
        if self.half:
            model = model.half()
        self.constrain(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.optimizer == "sgd":
            return model, OPTIMIZERS["sgd"](trained, lr=SGD_RATE * self.peak_learning_rate)
        return model, OPTIMIZERS[self.optimizer](trained, lr=self.peak_learning_rate, eps=self.eps)

    def train_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> float:
        """One step; the loss before it."""
        rate = self.peak_learning_rate * (SGD_RATE if self.optimizer == "sgd" else 1)
        for group in optimizer.param_groups:
            group["lr"] = group.get("share", 1) * rate * warm_cosine(step, 10 * self.steps, self.warmup_steps)
        torch.manual_seed(step)  # of dropout
        inputs, targets = self.examples(self.batch, step)
        computing = self._in_float32(model)
        loss = loss_of(computing.train()(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        if self.half:
            for parameter, copy in zip(model.parameters(), computing.parameters(), strict=True):
                parameter.grad = copy.grad.half()
        self.constrain(model)
        optimizer.step()
        self.constrain(model)
        if isinstance(model, Averaged):
            model.follow()
        return loss.item()

    @torch.no_grad()
    def heldout(self, model: nn.Module) -> Iterator[tuple[Tensor, float]]:
        """Log-probabilities (of the regression: predictions), and the loss, of examples that training never sees."""
        computing = self._in_float32(model).eval()
        for index in range(HELDOUT_BATCHES):
            inputs, targets = self.examples(HELDOUT_SIZE * self.batch, HELDOUT_SEED + index)
            outputs = computing(inputs)
            loss = loss_of(outputs, targets).item()
            yield (outputs if targets.is_floating_point() else functional.log_softmax(outputs, -1)), loss

    def _in_float32(self, model: nn.Module) -> nn.Module:
        if not self.half:
            return model
        copy = self.network()
        copy.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
        return copy


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squares of numbers, mean cross-entropy of classes."""
    if targets.is_floating_point():
        return functional.mse_loss(outputs, targets)
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def mlp() -> nn.Module:
    """The regression's network, 0.03 M parameters."""
    return nn.Sequential(nn.Linear(INPUTS, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, OUTPUTS))


@cache
def _teacher(seed: int) -> nn.Module:
    generator, teacher = torch.Generator().manual_seed(seed), mlp()
    with torch.no_grad():
        for parameter in teacher.parameters():
            scale = 1.5 / math.sqrt(parameter.shape[-1])
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return teacher


def regression(teacher: int, size: int, seed: int) -> Batch:
    """What a teacher network makes of noise, float32 (B, INPUTS) and (B, OUTPUTS), under noise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, INPUTS, generator=generator)
    with torch.no_grad():
        return inputs, _teacher(teacher)(inputs) + 0.3 * torch.randn(size, OUTPUTS, generator=generator)


@cache
def _trained() -> dict[str, Tensor]:
    """The weights that the fine-tune starts from."""
    job = SmallJob(mlp, partial(regression, 0))
    model, optimizer = job.make()
    for step in range(300):
        job.train_step(model, optimizer, step)
    return model.state_dict()


def trained_mlp() -> nn.Module:
    """What learned another teacher before."""
    model = mlp()
    model.load_state_dict(_trained())
    return model


TEXT = SIZES["tiny"]
stdlib = cache(stdlib_text)


def text(size: int, seed: int) -> Batch:
    """Bytes of Python's own library and those that follow them, int64 (B, T)."""
    source = stdlib()[seed >= HELDOUT_SEED]
    scaled = type(TEXT)(**{**vars(TEXT), "batch": size})
    return batch_of(source, scaled, seed)


class ByteLstm(nn.Module):
    """An LSTM over bytes; the vocabulary may be padded, with rows that are 0 and never used."""

    def __init__(self, vocabulary: int = 256) -> None:
        super().__init__()
        self.bytes = nn.Embedding(vocabulary, 64)
        self.lstm, self.head = nn.LSTM(64, 128, batch_first=True), nn.Linear(128, 256)
        with torch.no_grad():
            self.bytes.weight[256:] = 0

    def forward(self, text_BT: Tensor) -> Tensor:
        """int64 (B, T) -> logits (B, T, 256)."""
        return self.head(self.lstm(self.bytes(text_BT))[0])


textures = cache(Textures)


def marks(size: int, seed: int) -> Batch:
    """A bright bar under noise, as far down and as wide as its class says: float32 (B, 1, P, P) and int64 (B,)."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (size,), generator=generator)
    images = 0.5 * torch.randn(size, 1, PIXELS, PIXELS, generator=generator)
    for image, row in zip(images, classes.tolist(), strict=True):
        image[0, row : row + 4, 3 : 3 + row] += 1.5
    return images, classes


def flat_marks(size: int, seed: int) -> Batch:
    """The same as vectors."""
    images, classes = marks(size, seed)
    return images.flatten(1), classes


def biased_convnet() -> nn.Module:
    """Convolutions with a bias, which batch norm takes out while training and evaluation does not."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 160, 5), nn.BatchNorm2d(160), nn.ReLU()),
        *(nn.Conv2d(160, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 5 * 5, CLASSES)),
    )
    for layer in (model[0], model[3]):
        nn.init.normal_(layer.bias, std=1.5)
    return model


def normed_mlp() -> nn.Module:
    """Layers with a bias before batch norm, and dropout."""
    layers = []
    for inputs, outputs in ((PIXELS**2, 256), (256, 192)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.3)]
    model = nn.Sequential(*layers, nn.Linear(192, CLASSES))
    for layer in (model[0], model[4]):
        nn.init.normal_(layer.bias)
    return model


def depthwise_convnet() -> nn.Module:
    """Depthwise and pointwise convolutions by turns, each with a bias before batch norm."""
    layers = [nn.Conv2d(1, 144, 3, stride=2, padding=1), nn.BatchNorm2d(144), nn.SiLU()]
    for stride in (1, 2):
        layers += [nn.Conv2d(144, 144, 3, stride, padding=1, groups=144), nn.BatchNorm2d(144), nn.SiLU()]
        layers += [nn.Conv2d(144, 144, 1), nn.BatchNorm2d(144), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(144, CLASSES))


class Averaged(nn.Module):
    """A network and its moving average in one state dict: the first is trained, the second evaluated."""

    def __init__(self, network: Callable[[], nn.Module], decay: float = 0.98) -> None:
        super().__init__()
        self.model, self.model_ema, self.decay = network(), network(), decay
        self.model_ema.load_state_dict(self.model.state_dict())
        self.model_ema.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Of the one that the mode asks for."""
        return (self.model if self.training else self.model_ema)(inputs)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average, batch norm's statistics too, towards the model."""
        current = self.model.state_dict()
        for name, average in self.model_ema.state_dict().items():
            average.copy_(average.lerp(current[name], 1 - self.decay) if average.is_floating_point() else current[name])


YOUNG = {
    "mlp": SmallJob(mlp, partial(regression, 0)),
    "fine-tune": SmallJob(trained_mlp, partial(regression, 7)),
    "gpt": SmallJob(partial(ByteModel, TEXT), text, batch=8, peak_learning_rate=2e-3, warmup_steps=10),
    "convnet": SmallJob(partial(ConvNet, 16), lambda size, seed: textures().batch(size, seed)),  # 16 were too noisy
    "lstm": SmallJob(ByteLstm, text, batch=8, peak_learning_rate=2e-3),
    "half": SmallJob(mlp, partial(regression, 0), eps=1e-4, half=True),
}

_EVALUATED = {"optimizer": "adam", "steps": 300, "every": 75, "batch": 32, "peak_learning_rate": 2e-3}
EVALUATED = {
    "bias before norm": SmallJob(biased_convnet, marks, **_EVALUATED),
    "residual": SmallJob(
        partial(ConvNet, 16), lambda size, seed: textures().batch(size, seed), **{**_EVALUATED, "batch": 16}
    ),
    "norm and dropout": SmallJob(normed_mlp, flat_marks, **_EVALUATED),
    "depthwise": SmallJob(depthwise_convnet, marks, **_EVALUATED),
    "depthwise, averaged": SmallJob(partial(Averaged, depthwise_convnet), marks, **_EVALUATED),
}
