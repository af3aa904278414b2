"""Which Adam state belongs to which weight: a hint that the archive stores; a wrong one costs bytes, never data.

States name their weight only when the optimizer was built with names. Else the order of ids is held against the order
of the weights (module order, decay first by Hugging Face's rule or by rank, no-decay first), and accepted if every
shape agrees. Matrices of one shape are then checked against the evidence: Adam moves a weight by about
-exp_avg / sqrt(exp_avg_sq), so the change since the reference correlates with its own state and with no other.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from ckzd.checkpoint import CODED_FLOATS, Checkpoint, Optimizer
from ckzd.codec.arrays import Float64
from ckzd.codec.dtypes import stored_array, to_float64
from ckzd.codec.reconstruction import Reconstruction

MIN_ELEMENTS = 128  # smaller tensors are coded exactly: formats keeps the smallest out, and not alike for all dtypes
_SAMPLE = 1 << 16  # elements of a matrix that the evidence looks at
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:\.|$)|_norm(?:\.|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Triple:
    """Tensor numbers of a weight and of its two moments."""

    weight: int
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class _State:
    id: str
    name: str | None
    first: int
    second: int


def pair(checkpoint: Checkpoint, reference: Reconstruction | None) -> tuple[Triple, ...]:
    """All (weight, exp_avg, exp_avg_sq) triples that can be told, ascending by weight."""
    states = [state for optimizer in checkpoint.optimizers for state in _states(checkpoint, optimizer)]
    weights = weight_numbers(checkpoint)
    shape = {n: checkpoint.tensors[n].shape for n in weights} | {
        s.first: checkpoint.tensors[s.first].shape for s in states
    }
    found = _by_name(checkpoint, states, weights)
    if found is None:
        found = _by_order(checkpoint, states, weights)
        if reference is not None:
            found = _by_evidence(checkpoint, reference, found, states, weights)
    triples = [Triple(w, s.first, s.second) for s, w in found if shape[w] == shape[s.first]]
    return tuple(sorted(triples, key=lambda triple: triple.weight))


def weight_numbers(checkpoint: Checkpoint) -> list[int]:
    """Numbers of the float tensors that are no optimizer state."""
    paths = [optimizer.path for optimizer in checkpoint.optimizers]
    return [
        number
        for number, tensor in enumerate(checkpoint.tensors)
        if tensor.dtype in CODED_FLOATS
        and tensor.elements >= MIN_ELEMENTS
        and not any(tensor.path[: len(path)] == path for path in paths)
    ]


def _states(checkpoint: Checkpoint, optimizer: Optimizer) -> Iterator[_State]:
    """Adam states of an optimizer in the order of its groups, largest tensors only."""
    number = {tensor.path: n for n, tensor in enumerate(checkpoint.tensors)}
    for group in optimizer.groups:
        for position, key in enumerate(group.ids):
            first = number.get((*optimizer.path, "state", key, "exp_avg"))
            second = number.get((*optimizer.path, "state", key, "exp_avg_sq"))
            if first is None or second is None:
                continue
            moments = checkpoint.tensors[first], checkpoint.tensors[second]
            coded = all(m.dtype in CODED_FLOATS and m.elements >= MIN_ELEMENTS for m in moments)
            if coded and moments[0].shape == moments[1].shape:
                name = group.names[position] if group.names is not None else None
                yield _State(key, name, first, second)


Found = list[tuple[_State, int]]


def _by_name(checkpoint: Checkpoint, states: Sequence[_State], weights: Sequence[int]) -> Found | None:
    """By parameter name, if every state has one that is a weight's."""
    number = {checkpoint.tensors[n].path[-1]: n for n in weights}
    found = [(state, number.get(state.name or state.id)) for state in states]
    if not all(weight is not None for _, weight in found):
        return None
    return [(state, weight) for state, weight in found if weight is not None]


def _by_order(checkpoint: Checkpoint, states: Sequence[_State], weights: Sequence[int]) -> Found:
    """The first order whose shapes all agree, else the order within each shape where the counts agree."""
    shapes = [checkpoint.tensors[state.first].shape for state in states]
    for order in _orders(checkpoint, weights):
        if [checkpoint.tensors[n].shape for n in order] == shapes:
            return list(zip(states, order, strict=True))
    found: Found = []
    for some_states, some_weights in _shape_classes(checkpoint, states, weights):
        if len(some_states) == len(some_weights):
            found += zip(some_states, some_weights, strict=True)
    return found


def _orders(checkpoint: Checkpoint, weights: Sequence[int]) -> Iterator[list[int]]:
    rules: tuple[Callable[[int], bool], ...] = (
        lambda _: True,
        lambda n: _NO_DECAY.search(checkpoint.tensors[n].path[-1]) is None,
        lambda n: len(checkpoint.tensors[n].shape) >= 2,
        lambda n: len(checkpoint.tensors[n].shape) < 2,
    )
    natural = sorted(weights, key=lambda n: [_natural(part) for part in checkpoint.tensors[n].path])
    for order in (list(weights), natural):
        for rule in rules:
            yield [n for n in order if rule(n)] + [n for n in order if not rule(n)]


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(run), "") if run.isdigit() else (-1, run) for run in re.split(r"(\d+)", text)]


def _shape_classes(
    checkpoint: Checkpoint, states: Sequence[_State], weights: Sequence[int]
) -> list[tuple[list[_State], list[int]]]:
    classes: dict[tuple[int, ...], tuple[list[_State], list[int]]] = defaultdict(lambda: ([], []))
    for state in states:
        classes[checkpoint.tensors[state.first].shape][0].append(state)
    for number in weights:
        classes[checkpoint.tensors[number].shape][1].append(number)
    return [both for both in classes.values() if both[0] and both[1]]


def _by_evidence(
    checkpoint: Checkpoint, reference: Reconstruction, found: Found, states: Sequence[_State], weights: Sequence[int]
) -> Found:
    """Re-match the matrices of one shape where their changes correlate better with other states."""
    chosen = dict(found)
    for some_states, some_weights in _shape_classes(checkpoint, states, weights):
        if len(checkpoint.tensors[some_weights[0]].shape) < 2 or len(some_weights) < 2:
            continue
        evidence = _correlations(checkpoint, reference, some_states, some_weights)
        rows, columns = linear_sum_assignment(-evidence)
        column = {weight: position for position, weight in enumerate(some_weights)}
        by_order = sum(evidence[i, column[chosen[s]]] for i, s in enumerate(some_states) if chosen.get(s) in column)
        noise = 1.0 / np.sqrt(min(_SAMPLE, checkpoint.tensors[some_weights[0]].elements))
        if evidence[rows, columns].sum() > by_order + 3 * noise * np.sqrt(len(rows)):
            for state in some_states:
                chosen.pop(state, None)
            chosen |= {some_states[i]: some_weights[j] for i, j in zip(rows, columns, strict=True)}
    return list(chosen.items())


def _correlations(
    checkpoint: Checkpoint, reference: Reconstruction, states: Sequence[_State], weights: Sequence[int]
) -> Float64:
    """Correlation of each state's update direction (row) with each weight's change (column)."""
    updates = np.stack([_update(checkpoint, state) for state in states])
    changes = np.stack([_change(checkpoint, reference, number) for number in weights])
    return _normalized(updates) @ _normalized(changes).T


def _normalized(rows: Float64) -> Float64:
    centred = rows - rows.mean(1, keepdims=True)
    length = np.sqrt((centred**2).sum(1, keepdims=True))
    return np.asarray(centred / np.maximum(length, 1e-300), np.float64)


def _update(checkpoint: Checkpoint, state: _State) -> Float64:
    first, second = _sampled(checkpoint, state.first), _sampled(checkpoint, state.second)
    update = -first / (np.sqrt(np.abs(second)) + 1e-12)
    return np.where(np.isfinite(update), update, 0.0)


def _change(checkpoint: Checkpoint, reference: Reconstruction, number: int) -> Float64:
    tensor = checkpoint.tensors[number]
    before = reference.get(tensor.path, "weights")
    now = _sampled(checkpoint, number)
    if before is None or before.shape != tensor.shape:
        return np.zeros_like(now)
    change = now - _sample(to_float64(before.ravel(), tensor.dtype))
    return np.where(np.isfinite(change), change, 0.0)


def _sampled(checkpoint: Checkpoint, number: int) -> Float64:
    tensor = checkpoint.tensors[number]
    payload = checkpoint.payload(number)
    return _sample(to_float64(stored_array(payload, tensor.dtype, (tensor.elements,)), tensor.dtype))


def _sample(values: Float64) -> Float64:
    return values[:: -(-values.size // _SAMPLE)]
