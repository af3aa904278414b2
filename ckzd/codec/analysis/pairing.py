"""Which optimizer state belongs to which weight: a hint that the archive stores; a wrong one costs bytes, never data.

A state has Adam's two moments, exp_avg and exp_avg_sq, or a lone momentum: SGD's and Muon's momentum_buffer, Lion's
exp_avg; or neither. What else of it is a mean of gradients or of their squares is told by its name. Where there are
Kronecker factors `GG` and their eigenvectors `Q` (SOAP), the moments are in the basis of these: they say nothing of
rows and columns of their weight, as the factors do.

States name their weight only when the optimizer was built with names. Else the order of ids is held against orders of
candidates (`candidates.py`), and accepted if every shape agrees. Of several that agree, as a model and its average do,
that is taken which is not called an average and whose change the states explain. Matrices of one shape are then checked
against the same evidence: Adam moves a weight by about -exp_avg / sqrt(exp_avg_sq), Lion by about -sign(exp_avg), the
others along -momentum_buffer, so the change since the reference correlates with its own state and with no other.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckzd.checkpoint import CODED_FLOATS, Optimizer, RawArray
from ckzd.codec.analysis.candidates import (
    averages_among,
    by_names,
    candidates,
    has_changed,
    is_buffer,
    orders,
    without_averages,
)
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.arrays import Float64
from ckzd.codec.dtypes import to_float64
from ckzd.codec.records.layout import Triple

MIN_ELEMENTS = 128  # smaller tensors are coded exactly: formats keeps the smallest out, and not alike for all dtypes
_SAMPLE = 1 << 14  # elements of a matrix that the evidence looks at: noise of 1/128, where evidence is 0.1 and more
_MOST_OPTIMIZERS = 16  # that are looked at one by one
_LONE = ("momentum_buffer", "exp_avg")  # what a momentum is called that has no second moment beside it
_MEANS = frozenset({*_LONE, "grad_avg", "exp_avg_diff"})  # of gradients (RMSprop, Adan)
# Of their squares, or their largest: AMSGrad, RMSprop, Adagrad, Adadelta, Adamax, Adafactor of vectors
_VARIANCES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "exp_inf", "variance"})


@dataclass(frozen=True, slots=True)
class _State:
    id: str
    name: str | None
    moments: tuple[int, ...]  # Adam's two, a lone momentum, or nothing
    others: tuple[int, ...]  # beside them, of their shape
    signed: bool  # moves its weight by the sign of its momentum alone, as Lion does
    factors: tuple[int | None, ...]  # of each dimension, and then their eigenvectors; nothing of most optimizers

    @property
    def all(self) -> tuple[int, ...]:
        """All tensors of it, one at least."""
        return *self.moments, *self.others


@dataclass(frozen=True, slots=True)
class State:
    """A tensor that an optimizer keeps, beside a weight's moments or of a weight that is not found."""

    weight: int | None
    is_mean: bool  # of gradients; else of their squares
    is_factor: bool = False  # a Kronecker factor of a variance, or its eigenvectors; counts as a mean


@dataclass(frozen=True, slots=True)
class Paired:
    """Tile by tile."""

    triples: tuple[Triple, ...]  # weights with moments, ascending by weight; a weight is in one triple at most
    states: dict[int, State]
    factors: dict[int, tuple[int | None, ...]]  # first tiles: of a weight -> of the factor of each dimension


Found = dict[_State, int]  # state -> number of its weight
_Tensors = dict[tuple[str, ...], dict[tuple[str, ...], int]]  # path of a parameter's state -> path in it -> number


def pair(inputs: Inputs) -> Paired:
    """All weights with the moments and other states that can be told."""
    by_optimizer = _by_optimizer(inputs)
    states = [state for some in by_optimizer for state in some]
    weights = [n for n in inputs.model_tensors if n in inputs.tiles and is_coded(inputs, n)]
    found = _by_name(inputs, by_optimizer, weights)
    taken = frozenset(found.values())
    found |= _by_order(
        inputs,
        [[state for state in some if state not in found] for some in by_optimizer],
        [number for number in weights if number not in taken],
    )
    triples: dict[int, Triple] = {}
    others: dict[int, State] = {}
    factors: dict[int, tuple[int | None, ...]] = {}
    for state in states:
        weight = found.get(state)
        for number in (number for number in state.factors if number is not None):
            others |= {tile: State(None, is_mean=True, is_factor=True) for tile in inputs.tiles[number]}
        if weight is not None and inputs.whole_shape(weight) == inputs.whole_shape(state.all[0]):
            if state.moments:
                triples |= {tiles[0]: Triple(*tiles) for tiles in _by_tile(inputs, (weight, *state.moments))}
            others |= _others(inputs, state.others, weight)
            if state.factors:
                factors[weight] = state.factors[: len(state.factors) // 2]
        else:
            others |= _others(inputs, state.all, None)
    return Paired(tuple(triples[weight] for weight in sorted(triples)), others, factors)


def _by_tile(inputs: Inputs, firsts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Several tensors of one shape, tile by tile: they are cut alike."""
    return zip(*(inputs.tiles[number] for number in firsts), strict=True)


def _others(inputs: Inputs, numbers: Sequence[int], weight: int | None) -> dict[int, State]:
    found: dict[int, State] = {}
    for number in numbers:
        is_mean = inputs.tensor(number).path[-1] in _MEANS
        for tile, *of in _by_tile(inputs, [number] if weight is None else [number, weight]):
            found[tile] = State(of[0] if of else None, is_mean)
    return found


def is_coded(inputs: Inputs, number: int) -> bool:
    """Whether a tensor is of a dtype and a size that presets may code with a loss."""
    tensor = inputs.tensor(number)
    return tensor.dtype in CODED_FLOATS and tensor.elements >= MIN_ELEMENTS


def _by_optimizer(inputs: Inputs) -> list[list[_State]]:
    """States of each optimizer; of very many, of all together: each is a look at all weights."""
    paths = {optimizer.path for optimizer in inputs.checkpoint.optimizers}
    tensors: _Tensors = defaultdict(dict)
    for number in inputs.tiles:
        path = inputs.tensor(number).path
        for depth in (n for n, key in enumerate(path) if key == "state" and path[:n] in paths):
            tensors[path[: depth + 2]][path[depth + 2 :]] = number
    found = [list(_states(inputs, optimizer, tensors)) for optimizer in inputs.checkpoint.optimizers]
    return found if len(found) <= _MOST_OPTIMIZERS else [[state for some in found for state in some]]


def _states(inputs: Inputs, optimizer: Optimizer, tensors: _Tensors) -> Iterator[_State]:
    """States of an optimizer in the order of its groups, largest tensors only."""
    for group in optimizer.groups:
        for position, key in enumerate(group.ids):
            own = tensors.get((*optimizer.path, "state", key), {})
            moments, others = _moments(inputs, own)
            if moments or others:
                factors = _factors(inputs, own, inputs.whole_shape((*moments, *others)[0]))
                moments, others = ((), (*moments, *others)) if factors else (moments, others)
                name = group.names[position] if group.names is not None else None
                is_signed = len(moments) == 1 and group.betas is not None
                yield _State(key, name, moments, others, is_signed, factors)


def _moments(inputs: Inputs, state: dict[tuple[str, ...], int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Adam's two, or a lone momentum; and what else is known of the same shape."""
    known = {
        path[0]: number
        for path, number in state.items()
        if len(path) == 1 and path[0] in _MEANS | _VARIANCES and is_coded(inputs, number)
    }
    moments = [known[name] for name in ("exp_avg", "exp_avg_sq") if name in known]
    if len(moments) < 2:
        moments = [known[name] for name in _LONE if name in known][:1]
    shapes = [inputs.whole_shape(number) for number in (*moments, *known.values())]
    if len(moments) == 2 and shapes[0] != shapes[1]:
        moments = moments[:1]
    return tuple(moments), tuple(n for n in known.values() if n not in moments and inputs.whole_shape(n) == shapes[0])


def _factors(inputs: Inputs, state: Mapping[tuple[str, ...], int], shape: Sequence[int]) -> tuple[int | None, ...]:
    """What SOAP keeps of each dimension of a weight of that shape: `GG`, then `Q`; nothing without any `Q`."""
    found: list[int | None] = []
    for name in ("GG", "Q"):
        for axis, side in enumerate(shape):
            number = state.get((name, str(axis)))
            fits = number is not None and is_coded(inputs, number) and inputs.whole_shape(number) == (side, side)
            found.append(number if fits else None)
    return tuple(found) if any(number is not None for number in found[len(shape) :]) else ()


def _by_name(inputs: Inputs, by_optimizer: Sequence[Sequence[_State]], weights: Sequence[int]) -> Found:
    """Of optimizers whose states all have a weight's name: where several weights have it, as `_preferred` says."""
    found: Found = {}
    for states in by_optimizer:
        taken = frozenset(found.values())
        names = [state.name or state.id for state in states]
        if not any(name.isdecimal() for name in names):  # parameters that are numbered have no names
            named = by_names(inputs, [number for number in weights if number not in taken], names)
            found |= _preferred(inputs, [dict(zip(states, order, strict=True)) for order in named])
    return found


def _by_order(inputs: Inputs, by_optimizer: Sequence[Sequence[_State]], weights: Sequence[int]) -> Found:
    """Each optimizer's own weights where all have some that fit, else those of all together, else by shapes."""
    states = [state for some in by_optimizer for state in some]
    found: Found = {}
    for some in by_optimizer:
        taken = frozenset(found.values())
        found |= _fitting(inputs, some, [number for number in weights if number not in taken])
    if len(found) < len(states):
        found = _fitting(inputs, states, weights)
    if len(found) == len(states):
        return _by_evidence(inputs, found, states, sorted(found.values()))
    found, weights = _by_shape(inputs, states, weights)
    return _by_evidence(inputs, found, states, weights)


def _fitting(inputs: Inputs, states: Sequence[_State], weights: Sequence[int]) -> Found:
    """Weights in an order in which all shapes agree; nothing if there is none."""
    shapes = [inputs.whole_shape(state.all[0]) for state in states]
    fits: list[Found] = []
    for some in candidates(inputs, weights, len(states)):
        in_order = (order for order in orders(inputs, some) if [inputs.whole_shape(n) for n in order] == shapes)
        if (order := next(in_order, None)) is not None:
            fits.append(dict(zip(states, order, strict=True)))
    return _preferred(inputs, fits)


def _preferred(inputs: Inputs, fits: Sequence[Found]) -> Found:
    """The first of those with the fewest averages, unless what has moved since the reference speaks for another."""
    ordered = sorted(fits, key=lambda found: averages_among(inputs, found.values()))
    best: Found = ordered[0] if ordered else {}
    if len(ordered) > 1 and inputs.reference is not None:
        noise = 3 * math.sqrt(sum(1 / min(_SAMPLE, inputs.tensor(number).elements) for number in best.values()))
        evidence = [sum(_correlation(inputs, *pair) for pair in found.items()) for found in ordered]
        best, seen = ordered[0], evidence[0]
        for found, own in zip(ordered, evidence, strict=True):
            if own > seen + noise:
                best, seen = found, own
    return best


def _by_shape(inputs: Inputs, states: Sequence[_State], weights: Sequence[int]) -> tuple[Found, Sequence[int]]:
    """The order within each shape where the counts agree; and the weights that may be looked at for evidence."""
    others = without_averages(inputs, weights)
    enough = sum(len(some) for some, own in _shape_classes(inputs, states, others) if len(some) <= len(own))
    weights = others if enough == len(states) else weights
    found: Found = {}
    for pool in _pools(inputs, weights):
        for some_states, some_weights in _shape_classes(inputs, states, pool):
            if len(some_states) == len(some_weights) and some_states[0] not in found:
                found |= zip(some_states, some_weights, strict=True)
    return found, weights


def _pools(inputs: Inputs, weights: Sequence[int]) -> Iterator[Sequence[int]]:
    """All, all but buffers, those not frozen, those of one state dict."""
    yield weights
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    trained = [number for number in weights if not is_buffer(inputs, number)]
    for number in trained:
        groups[inputs.tensor(number).path[:-1]].append(number)
    for group in [trained, *groups.values()]:
        yield group
        yield [number for number in group if has_changed(inputs, number)]


def _best_assignment(evidence: Float64) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows and columns of the largest sum, each taken once."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415  # half a second, hardly ever needed

    rows, columns = linear_sum_assignment(-evidence)
    return rows, columns


def _shape_classes(
    inputs: Inputs, states: Sequence[_State], weights: Sequence[int]
) -> list[tuple[list[_State], list[int]]]:
    classes: dict[tuple[int, ...], tuple[list[_State], list[int]]] = defaultdict(lambda: ([], []))
    for state in states:
        classes[inputs.whole_shape(state.all[0])][0].append(state)
    for number in weights:
        classes[inputs.whole_shape(number)][1].append(number)
    return [both for both in classes.values() if both[0] and both[1]]


def _by_evidence(inputs: Inputs, found: Found, states: Sequence[_State], weights: Sequence[int]) -> Found:
    """Re-match the matrices of one shape where their changes correlate better with other states."""
    chosen = dict(found)
    for some_states, some_weights in _shape_classes(inputs, states, weights):
        shape = inputs.whole_shape(some_weights[0])
        if len(shape) < 2 or len(some_states) == len(some_weights) == 1:
            continue
        evidence = _correlations(inputs, some_states, some_weights)
        column = {weight: position for position, weight in enumerate(some_weights)}
        if [column.get(chosen.get(state, -1)) for state in some_states] == evidence.argmax(1).tolist():
            continue  # nothing correlates better
        rows, columns = _best_assignment(evidence)
        by_order = sum(evidence[i, column[chosen[s]]] for i, s in enumerate(some_states) if chosen.get(s) in column)
        noise = 1.0 / np.sqrt(min(_SAMPLE, inputs.tensor(some_weights[0]).elements))
        if evidence[rows, columns].sum() > by_order + 3 * noise * np.sqrt(len(rows)):
            for state in some_states:
                chosen.pop(state, None)
            sure = -np.inf if len(some_states) == len(some_weights) else 3 * noise
            matches = zip(rows, columns, strict=True)
            chosen |= {some_states[i]: some_weights[j] for i, j in matches if evidence[i, j] > sure}
    return chosen


def _correlation(inputs: Inputs, state: _State, number: int) -> float:
    """Of one state's update direction and one weight's change."""
    return float(_correlations(inputs, [state], [number])[0, 0])


def _correlations(inputs: Inputs, states: Sequence[_State], weights: Sequence[int]) -> Float64:
    """Correlation of each state's update direction (row) with each weight's change (column)."""
    updates = np.stack([_update(inputs, state) for state in states])
    changes = np.stack([_change(inputs, number) for number in weights])
    return _normalized(updates) @ _normalized(changes).T


def _normalized(rows: Float64) -> Float64:
    with np.errstate(over="ignore"):  # numbers of float64 beyond those of float32 are evidence of nothing
        centred = rows - rows.mean(1, keepdims=True)
        length = np.sqrt((centred**2).sum(1, keepdims=True))
        return np.asarray(centred / np.maximum(length, 1e-300), np.float64)


def _update(inputs: Inputs, state: _State) -> Float64:
    if not state.moments:
        return np.zeros_like(_sampled(inputs, state.all[0]))
    first = _sampled(inputs, state.moments[0])
    if len(state.moments) == 1:
        return np.where(np.isfinite(first), -np.sign(first) if state.signed else -first, 0.0)
    second = _sampled(inputs, state.moments[1])
    return np.where(np.isfinite(first) & np.isfinite(second), -first / (np.sqrt(np.abs(second)) + 1e-12), 0.0)


def _change(inputs: Inputs, number: int) -> Float64:
    now, before = _sampled(inputs, number), inputs.before(number)
    if before is None:
        return np.zeros_like(now)
    then = to_float64(sample(before), inputs.tensor(number).dtype)
    return np.where(np.isfinite(now) & np.isfinite(then), now - then, 0.0)


def _sampled(inputs: Inputs, number: int) -> Float64:
    return to_float64(sample(inputs.stored(number)), inputs.tensor(number).dtype)


def sample(stored: RawArray) -> RawArray:
    """Some of a tensor's values, evenly spread."""
    return stored.ravel()[:: -(-stored.size // _SAMPLE)]
