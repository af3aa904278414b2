"""What is read before anything is coded: damage, repeated bytes, which tensors may lose precision, and their steps."""

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ckzd.checkpoint import Checkpoint
from ckzd.codec import moments, quantize
from ckzd.codec.arrays import Float64
from ckzd.codec.dtypes import is_finite
from ckzd.codec.inputs import Inputs
from ckzd.codec.layout import Triple
from ckzd.codec.moments import Scales
from ckzd.codec.pairing import pair
from ckzd.codec.presets import Preset, Scheme
from ckzd.errors import BadCheckpoint

_STEADY_SIGNAL = 2.0  # first moments are coded where they hold more than this times the energy of pure noise
_YOUNG_MEMORIES = 60  # steps in units of 1 / (1 - beta1): before, a lost memory is a visible part of the progress
_LONG_MEMORY = 0.905  # a beta1 above this averages over more than about 10 steps: never dropped
_REPLACED = 1e4  # times the median tensor's energy (rulers: up to 350) is no update: it must not coarsen all others'
_NEVER_YOUNG = 1_000_000  # a step that is not known counts as late


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a checkpoint before its first symbol."""

    copies: dict[int, int]  # number of a tensor -> of the first one with the same bytes
    same: frozenset[int]  # tensors whose bytes the reference has
    lossy: tuple[Triple, ...]  # weights with their moments that may lose precision
    scales: dict[int, Scales]  # of each lossy weight, by its number
    typical: frozenset[int]  # lossy weights that were trained on, not replaced
    weight_energy: float  # their weighted residuals, squared and summed
    update_signal: float  # mean of exp_avg**2 / exp_avg_sq
    step: float  # of weights' levels; 0: nothing to quantize
    moment_step: float  # of first moments' levels; 0: they restore as 0
    momentum_step: float  # of lone momenta's levels


@dataclass(slots=True)
class _Energy:
    total: float = 0.0
    elements: int = 0

    def add(self, values: Float64) -> None:
        self.total += float((values**2).sum())
        self.elements += values.size

    @property
    def mean(self) -> float:
        return self.total / self.elements if self.elements else 0.0


def survey(inputs: Inputs, preset: Preset) -> Survey:
    """Read everything once or twice; raises BadCheckpoint where a file's own CRC-32 says that its bytes have rotted."""
    check_damage(inputs.checkpoint)
    copies, same = _repeats(inputs)
    triples = pair(inputs) if preset.scheme is not Scheme.EXACT else ()
    lossy = tuple(t for t in triples if t.weight not in copies and _may_lose_precision(inputs, t))
    scales: dict[int, Scales] = {}
    updates, momenta = _Energy(), _Energy()
    residuals: dict[int, _Energy] = {}
    for triple in lossy:
        first = inputs.matrix(triple.first)
        second = None if triple.second is None else inputs.matrix(triple.second)
        scales[triple.weight] = (
            moments.scales_of_momentum(first) if second is None else moments.scales_of(second, first)
        )
        if second is None:
            second, energy = moments.product_of(scales[triple.weight]), momenta
        else:
            energy = updates
        energy.add(first[second > 0] / np.sqrt(second[second > 0]))
        residual = inputs.residual(triple.weight) if is_lossy_weight(inputs, triple.weight, same) else None
        if residual is not None:
            residuals[triple.weight] = _Energy()
            residuals[triple.weight].add(quantize.weigher_of(scales[triple.weight]).weigh(residual))
    typical = _typical(residuals)
    weights = _Energy(sum(e.total for e in typical.values()), sum(e.elements for e in typical.values()))
    return Survey(
        copies=copies,
        same=same,
        lossy=lossy,
        scales=scales,
        typical=frozenset(typical),
        weight_energy=weights.total,
        update_signal=updates.mean,
        step=float(np.float32(preset.step_fraction * weights.mean**0.5)),
        moment_step=_moment_step(inputs, lossy, preset, updates.mean),
        momentum_step=preset.momentum_step * momenta.mean**0.5,
    )


def _typical(residuals: Mapping[int, _Energy]) -> dict[int, _Energy]:
    """Without those of tensors that were replaced rather than trained on."""
    means = sorted(energy.mean for energy in residuals.values() if energy.total)
    limit = _REPLACED * means[(len(means) - 1) // 2] if means else 0.0
    return {number: energy for number, energy in residuals.items() if energy.mean <= limit}


def check_damage(checkpoint: Checkpoint) -> None:
    """Hold every tensor against the CRC-32 that its file gives for it."""
    for number, layout in enumerate(checkpoint.files):
        for hole in layout.holes:
            if not hole.crc_offsets:
                continue
            stored = {bytes(checkpoint.source.read(number, offset, 4)) for offset in hole.crc_offsets}
            if stored != {zlib.crc32(checkpoint.payload(hole.tensor)).to_bytes(4, "little")}:
                path = "/".join(checkpoint.tensors[hole.tensor].path)
                raise BadCheckpoint(
                    f"{checkpoint.name}/{layout.name}" if checkpoint.is_directory else checkpoint.name,
                    f"tensor {path}: its bytes do not match the CRC-32 that the file gives for them",
                    hint="the file is damaged; restore it from another copy",
                )


def _repeats(inputs: Inputs) -> tuple[dict[int, int], frozenset[int]]:
    """Tensors that have the bytes of an earlier one, and those that have the reference's."""
    copies, same = {}, set()
    seen: dict[tuple[bytes, str], int] = {}
    for number in inputs.kept:
        payload = inputs.payload(number)
        first = seen.setdefault((hashlib.sha256(payload).digest(), inputs.tensor(number).dtype), number)
        if first != number:
            copies[number] = first
        before = inputs.before(number)
        if before is not None and before.tobytes() == payload:
            same.add(number)
    return copies, frozenset(same)


def _may_lose_precision(inputs: Inputs, triple: Triple) -> bool:
    """Finite, and a second moment that is one; without one, a momentum that is not all 0."""
    if not all(inputs.is_finite(number) for number in (triple.weight, *triple.moments)):
        return False
    if triple.second is None:
        return bool(inputs.matrix(triple.first).any())
    second = inputs.matrix(triple.second)
    return bool(second.any()) and not bool((second < 0).any())


def is_lossy_weight(inputs: Inputs, number: int, same: frozenset[int]) -> bool:
    """Whether there is a residual to quantize: one against a broken reference would set everybody's step."""
    before = inputs.before(number)
    return before is not None and number not in same and is_finite(before, inputs.tensor(number).dtype)


def _moment_step(inputs: Inputs, lossy: Sequence[Triple], preset: Preset, signal: float) -> float:
    """The preset's step where first moments are worth their bits, else 0: they restore as 0."""
    if preset.scheme is not Scheme.SCALAR:
        return 0.0
    beta1, beta2 = max(_betas(inputs, lossy), default=(0.9, 0.999))
    step = inputs.checkpoint.step or _NEVER_YOUNG
    filled = 1 - beta2**step  # exp_avg_sq starts at 0 and is still filling up
    noise = (1 - beta1) / (1 + beta1)  # energy of the mean of independent gradients, over that of one
    young = step * (1 - beta1) < _YOUNG_MEMORIES
    needed = young or beta1 > _LONG_MEMORY or signal * filled > _STEADY_SIGNAL * noise
    return preset.moment_step * signal**0.5 if needed else 0.0


def _betas(inputs: Inputs, lossy: Sequence[Triple]) -> Iterator[tuple[float, float]]:
    """Of every group that holds a weight with two moments: Lion's betas mean something else."""
    adam = {inputs.tensor(triple.second).path[:-1] for triple in lossy if triple.second is not None}
    for optimizer in inputs.checkpoint.optimizers:
        for group in optimizer.groups:
            if group.betas is not None and any((*optimizer.path, "state", key) in adam for key in group.ids):
                yield group.betas
