"""What is read before anything is coded: damage, repeated bytes, which tensors may lose precision, and their steps."""

import math
from collections import defaultdict
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import fsum

import numpy as np

from ckzd.codec.analysis.inputs import Inputs, TripleValues
from ckzd.codec.analysis.pairing import State
from ckzd.codec.analysis.roles import Roles, find_roles, is_matrix
from ckzd.codec.analysis.rough import Wanted, coarsened
from ckzd.codec.analysis.weighing import add_scales, is_sound_state
from ckzd.codec.budget import DEFAULT_BETAS, FINER, filled_up
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.parallel import in_order
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.records.index import LinearPrediction, QuantizationSteps
from ckzd.codec.records.layout import Triple, plane_shape
from ckzd.codec.scales import (
    Scales,
    fisher_weighting,
    product_of,
    scales_of,
    scales_of_momentum,
    typical_root,
    used_by,
)
from ckzd.codec.transform.adaptive_basis import has_basis

_STEADY_SIGNAL = 2.0  # first moments are coded where they hold more than this times the energy of pure noise
_YOUNG_MEMORIES = 60  # steps in units of 1 / (1 - beta1): before, a lost memory is a visible part of the progress
_FRESH_MEMORIES = 20  # before, even beside a trend: the gradient turns faster than checkpoints are written
_LONG_MEMORY = 0.905  # a beta1 above this averages over more than about 10 steps: never dropped
_FAR = 4.0  # times its own energy is a weight's residual: levels of its own cost less (rulers' biases: up to 0.6)
_FAR_IN_BASIS = 1.5  # the same where strong directions get finer steps: of a matrix that was replaced it is about 2
_REPLACED = 1e4  # times the median tensor's energy (rulers: up to 350) is no update: it must not coarsen all others'
_ALONE_STEP = 0.95  # times other weights' step, where no weight has moments: KL stays below 1e-3 on the ruler
_ORTHOGONAL_FROM = 100  # steps: before, what a rough momentum of Muon's costs was 0.5 % of held-out loss (later 0.2)
_NEVER_YOUNG = 1_000_000  # updates that are not known count as many


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a checkpoint before its first symbol."""

    copies: dict[int, int]  # number of a tensor -> of the first one with the same bytes
    same: frozenset[int]  # tensors whose bytes the reference has
    lossy: tuple[Triple, ...]  # weights with their moments that may lose precision
    alone: frozenset[int]  # of these, weights without moments
    exponents: dict[int, int]  # of lossy weights: what their step exponents begin with, where that is not 0
    intra: frozenset[int]  # lossy weights that are coded as if the reference had them not: it would cost more
    rough: frozenset[int]  # of those, what is moved as far in all directions: no gradient tells what errors cost
    scales: dict[int, Scales]  # of each lossy weight, by its number
    casts: dict[int, int]  # number of a tensor -> of the master that it is rounded from
    predictions: dict[int, LinearPrediction]  # of lossy weights that follow others
    states: dict[int, State]  # that may lose precision
    ruined: float  # share of the reference tensors' elements that the reference has as numbers, and that are none now
    weight_energy: float  # all lossy weights, Fisher-weighted, squared and summed
    update_energy: float  # their residuals, likewise, of those that were trained on and not replaced
    update_signal: float  # mean of exp_avg**2 / exp_avg_sq
    is_young: bool  # first moments are coded even where weights have a trend, which they else follow
    steps: QuantizationSteps


@dataclass(slots=True)
class _Energy:
    """A sum of squares."""

    total: float = 0.0
    elements: int = 0

    def include(self, other: "_Energy") -> None:
        self.total += other.total
        self.elements += other.elements

    @property
    def rms(self) -> float:
        return (self.total / self.elements) ** 0.5 if self.elements else 0.0


@dataclass(frozen=True, slots=True)
class _WorthCoding:
    """Which first moments are worth their bits."""

    beside_trend: bool  # of weights that have a trend; else they follow one that agrees with them
    without_trend: bool  # of all others; else they restore as 0

    @classmethod
    def of(cls, inputs: Inputs, lossy: Sequence[Triple], signal: float) -> "_WorthCoding":
        beta1, beta2 = max(_betas(inputs, lossy), default=DEFAULT_BETAS)
        updates = [_updates(inputs, triple) for triple in lossy if triple.first is not None]
        step = min(updates, default=_NEVER_YOUNG)  # of several optimizers the youngest tells how closely to code
        noise = (1 - beta1) / (1 + beta1)  # energy of the mean of independent gradients, over that of one
        memories = round(step * (1 - beta1), 6)  # 200 steps at 0.9 are 20, not a little less
        is_signal = beta1 > _LONG_MEMORY or signal * filled_up(beta2, step) > _STEADY_SIGNAL * noise
        return cls(
            beside_trend=is_signal or memories < _FRESH_MEMORIES,
            without_trend=is_signal or memories < _YOUNG_MEMORIES,
        )


_ByTensor = defaultdict[int, _Energy]  # by the number of a tensor's first tile


def _by_tensor() -> _ByTensor:
    return defaultdict(_Energy)


@dataclass(slots=True)
class _Energies:
    """What steps are relative to."""

    weights: _Energy = field(default_factory=_Energy)  # all lossy weights
    matrices: _ByTensor = field(default_factory=_by_tensor)  # rows and columns with moments of what may have a basis
    residuals: _ByTensor = field(default_factory=_by_tensor)  # residuals of what has a basis, likewise
    updates: _Energy = field(default_factory=_Energy)  # exp_avg / sqrt(exp_avg_sq)
    momenta: _Energy = field(default_factory=_Energy)  # lone momenta over the root of their rank-1 variance
    framed_updates: _Energy = field(default_factory=_Energy)  # exp_avg as bases see it
    framed_momenta: _Energy = field(default_factory=_Energy)
    intra: set[int] = field(default_factory=set)  # weights whose residual would cost more than they do

    def include(self, other: "_Energies") -> None:
        for name in ("weights", "updates", "momenta", "framed_updates", "framed_momenta"):
            getattr(self, name).include(getattr(other, name))
        for mine, others in ((self.matrices, other.matrices), (self.residuals, other.residuals)):
            for tensor, other_energy in others.items():
                mine[tensor].include(other_energy)
        self.intra |= other.intra


def survey(inputs: Inputs, preset: Preset) -> Survey:
    """Read everything once, and again what may lose precision; BadCheckpoint for bytes that have rotted."""

    def elements(triple: Triple) -> int:
        return inputs.tensor(triple.weight).elements

    copies, same = _repeats(inputs)
    roles = find_roles(inputs, preset.scheme, copies)
    sound = [t for t in roles.triples if t.weight not in copies and _may_lose_precision(inputs, t)]
    alive = [t for t in sound if _has_moments(inputs, t) and inputs.has_sound_moments(t)]
    scales, energies = {}, _Energies()
    for triple, (own, found) in zip(alive, in_order(partial(_measure, inputs), alive, elements), strict=True):
        scales[triple.weight] = own
        energies.include(found)
    add_scales(inputs, sound, roles, scales)
    done = frozenset(triple.weight for triple in alive)
    others = [triple for triple in sound if triple.weight in scales and triple.weight not in done]
    for found in in_order(partial(_measure_by, inputs, scales), others, elements):
        energies.include(found)
    lossy = tuple(t for t in sound if t.weight in scales)
    alone = [triple.weight for triple in lossy if not triple.moments]
    typical, worth = _typical(energies.residuals.values()), _WorthCoding.of(inputs, lossy, energies.updates.rms**2)
    rough = frozenset(t.weight for t in lossy if _is_rough(inputs, preset, t))
    share = _ALONE_STEP if len(alone) == len(lossy) else 1.0
    wanted = _set_apart(inputs, preset, energies, rough)
    others_have_momenta = any(t.moments and t.second is None for t in lossy if t.weight not in rough)
    relative = preset.orthogonal_momentum_step if rough and not others_have_momenta else preset.momentum_step
    steps = _steps(preset, energies, worth, share, momentum_step=relative)
    of_others_elements = sum(elements(triple) for triple in lossy if triple.weight not in rough)
    steps, of_rough, of_others = coarsened(steps, of_others_elements, wanted)
    return Survey(
        copies=copies,
        same=same,
        lossy=lossy,
        alone=frozenset(alone),
        exponents=_exponents(inputs, lossy, roles, of_rough, of_others),
        rough=rough,
        intra=frozenset(energies.intra if preset.scheme is not Scheme.KMEANS else ()),  # codebooks are of residuals
        scales=scales,
        casts=roles.casts,
        predictions={number: found for number, found in roles.predictions.items() if number in scales},
        states={number: state for number, state in roles.states.items() if is_sound_state(inputs, number, state)},
        ruined=_ruined(inputs),
        weight_energy=energies.weights.total,
        update_energy=typical.total,
        update_signal=energies.updates.rms**2,
        is_young=worth.beside_trend,
        steps=steps,
    )


def _updates(inputs: Inputs, triple: Triple) -> int:
    """How often a weight was moved, as its optimizer says."""
    found = inputs.checkpoint.updates if triple.first is None else inputs.updates_of(triple.first)
    return found or _NEVER_YOUNG


def _is_rough(inputs: Inputs, preset: Preset, triple: Triple) -> bool:
    """Whether a weight is moved as far in all directions, so that its error is as small a part of every movement."""
    is_late = _updates(inputs, triple) >= _ORTHOGONAL_FROM
    return is_late and preset.scheme in {Scheme.UNIFORM, Scheme.PLAIN} and inputs.is_orthogonal(triple)


def _set_apart(inputs: Inputs, preset: Preset, energies: _Energies, rough: Container[int]) -> dict[int, Wanted]:
    """What step rough tensors want, by first tile; no other's is relative to theirs, errors of the reference in it."""
    wanted: dict[int, Wanted] = {}
    for tensor in [tensor for tensor in energies.matrices if tensor in rough]:
        own, residual = energies.matrices.pop(tensor), energies.residuals.pop(tensor, None)
        step = preset.orthogonal_weight_step * own.rms
        step = min(step, preset.update_step * residual.rms) if residual is not None else step
        if step:
            wanted[tensor] = Wanted(step, sum(inputs.tensor(tile).elements for tile in inputs.tiles[tensor]))
    return wanted


def _exponents(
    inputs: Inputs, lossy: Sequence[Triple], roles: Roles, of_rough: Mapping[int, int], of_others: int
) -> dict[int, int]:
    """Vectors alone that follow no other are finer: a few bits more are nothing, an error may be much."""
    found: dict[int, int] = {}
    for triple in lossy:
        number, first = triple.weight, inputs.first_tile[triple.weight]
        is_fine = not triple.moments and number not in roles.predictions and not is_matrix(inputs, first)
        exponent = of_rough.get(first, of_others) + FINER * is_fine
        found |= {number: exponent} if exponent else {}
    return found


def _measure(inputs: Inputs, triple: Triple) -> tuple[Scales, _Energies]:
    """The scales of one weight, and its energies."""
    values = inputs.values(triple)
    if values.second is None:
        scales = scales_of_momentum(values.first.matrix)
    else:
        scales = scales_of(Moments(values.first.numbers, values.second.numbers), values.second.tensor.dtype)
    return scales, _energies(inputs, triple, values, scales)


def _measure_by(inputs: Inputs, scales: Mapping[int, Scales], triple: Triple) -> _Energies:
    """The energies of one weight whose scales are known from elsewhere."""
    return _energies(inputs, triple, inputs.values(triple), scales[triple.weight])


def _energies(inputs: Inputs, triple: Triple, values: TripleValues, scales: Scales) -> _Energies:
    """What is finite of a weight and its moments."""
    energies, tensor, weight = _Energies(), inputs.first_tile[triple.weight], values.weight.numbers
    is_finite, before = inputs.contents.tensors[triple.weight].is_finite, inputs.numbers_before(triple.weight)
    weighting, used = fisher_weighting(scales), used_by(scales)
    has_moments = bool(triple.moments) and inputs.has_sound_moments(triple)
    moments = Moments(values.first.numbers, product_of(scales) if values.second is None else values.second.numbers)
    found = elementwise.energies(weight if is_finite else np.zeros_like(weight), before, moments, weighting, used)
    update = _Energy(fsum(found.update), int(found.updates.sum())) if has_moments else _Energy()
    unweighted = _Energy(fsum(found.unweighted_first), weight.size) if has_moments else _Energy()
    if values.second is None:
        unweighted.total /= typical_root(scales) ** 2
        energies.momenta, energies.framed_momenta = update, unweighted
    else:
        energies.updates, energies.framed_updates = update, unweighted
    if not is_finite:
        return energies
    energies.weights = _Energy(fsum(found.weight), weight.size)
    trained = int(used.rows.sum()) * int(used.columns.sum())
    in_basis = has_basis(plane_shape(inputs.tensor(triple.weight).shape))
    if in_basis:
        energies.matrices[tensor] = _Energy(fsum(found.trained), trained)
    residual = _Energy(fsum(found.residual), trained)
    if before is None or residual.total > (_FAR_IN_BASIS if in_basis else _FAR) * fsum(found.trained):
        energies.intra.add(triple.weight)
    else:
        energies.residuals[tensor] = residual
    return energies


def _steps(
    preset: Preset, energies: _Energies, worth: _WorthCoding, share: float, *, momentum_step: float
) -> QuantizationSteps:
    """What levels are worth; `share` of what a preset says are those of weights."""
    if preset.scheme is Scheme.KMEANS:
        return QuantizationSteps(momentum_step=momentum_step * energies.momenta.rms)  # codebooks are for two moments
    weight = share * _typical_rms(energies.matrices.values() or [energies.weights])
    update = share * _typical(energies.residuals.values()).rms
    moment_step = preset.fresh_moment_step if worth.beside_trend else preset.moment_step * worth.without_trend
    return QuantizationSteps(
        step=float(np.float32(min(preset.weight_step * weight, preset.update_step * update))),
        whole_step=float(np.float32(preset.intra_step * weight)),
        moment_step=moment_step * energies.updates.rms,
        momentum_step=momentum_step * energies.momenta.rms,
        framed_moment_step=moment_step * energies.framed_updates.rms,
        framed_momentum_step=momentum_step * energies.framed_momenta.rms,
    )


def _typical_rms(weights: Collection[_Energy]) -> float:
    """Rms of the typical weight: a geometric mean, so that one tensor of another scale does not set everybody's."""
    used = [energy for energy in weights if energy.total]
    elements = sum(energy.elements for energy in used)
    return math.exp(sum(energy.elements / elements * math.log(energy.rms) for energy in used)) if used else 0.0


def _typical(residuals: Collection[_Energy]) -> _Energy:
    """All of them together, without those of tensors that were replaced rather than trained on."""
    means = sorted(energy.rms**2 for energy in residuals if energy.total)
    limit = _REPLACED * means[(len(means) - 1) // 2] if means else 0.0
    typical = [energy for energy in residuals if 0 < energy.rms**2 <= limit]
    return _Energy(sum(energy.total for energy in typical), sum(energy.elements for energy in typical))


def _repeats(inputs: Inputs) -> tuple[dict[int, int], frozenset[int]]:
    """Tensors that have the bytes of an earlier one, and those that have the reference's."""
    copies = {}
    seen: dict[tuple[bytes, str], int] = {}
    for number in inputs.reference_tensors:
        content = inputs.contents.tensors[number]
        first = seen.setdefault((content.digest, inputs.tensor(number).dtype), number)
        if first != number:
            copies[number] = first
    return copies, frozenset(n for n in inputs.reference_tensors if inputs.contents.tensors[n].is_same)


def _ruined(inputs: Inputs) -> float:
    elements = sum(inputs.tensor(number).elements for number in inputs.reference_tensors)
    return sum(inputs.contents.tensors[number].ruined for number in inputs.reference_tensors) / max(elements, 1)


def _may_lose_precision(inputs: Inputs, triple: Triple) -> bool:
    """A weight that is finite, or has moments that may."""
    return inputs.contents.tensors[triple.weight].is_finite or inputs.has_sound_moments(triple)


def _has_moments(inputs: Inputs, triple: Triple) -> bool:
    """A second moment that is not all 0; without one, a momentum."""
    return bool(triple.moments) and not inputs.contents.tensors[triple.moments[-1]].is_zero


def _betas(inputs: Inputs, lossy: Sequence[Triple]) -> Iterator[tuple[float, float]]:
    """Betas of every group that holds a weight with two moments: Lion's mean something else."""
    for triple in lossy:
        group = inputs.group_of(triple.second) if triple.second is not None else None
        if group is not None and group.betas is not None:
            yield group.betas
