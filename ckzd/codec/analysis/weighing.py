"""Scales of weights whose own moments tell none: what else says how much an error of them costs."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import State
from ckzd.codec.analysis.roles import Roles
from ckzd.codec.arrays import Float64
from ckzd.codec.dtypes import to_numbers
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.records.layout import Triple, is_in_layer, plane_shape
from ckzd.codec.scales import STEPS_AN_OCTAVE, Scales, code_of, scales_beside, scales_of, typical_scale, uniform_scales

_LEAST = 2.0**-500
_OUTER_OCTAVES = 4  # of the ruler's second moments: 6 to 8 between embeddings and layers (DESIGN)


def add_scales(inputs: Inputs, triples: Sequence[Triple], roles: Roles, scales: dict[int, Scales]) -> None:
    """Add to the `scales` of weights, by number, what can be told of others: tiles that are quiet, broken or alone."""
    scales |= {triple.weight: own for triple, own in [*_quiet(inputs, triples, scales), *_broken(inputs, triples)]}
    _alone(inputs, triples, roles, scales)


def is_sound_state(inputs: Inputs, number: int, state: State) -> bool:
    """Whether it is finite, of a variance not below 0, and not all 0, which costs nothing."""
    content = inputs.contents.tensors[number]
    return content.is_finite and not content.is_zero and (state.is_mean or not content.has_negative)


def _quiet(inputs: Inputs, triples: Sequence[Triple], scales: Mapping[int, Scales]) -> Iterator[tuple[Triple, Scales]]:
    """Tiles without moments, as of tokens that never occurred, beside others of their tensor that have some."""
    contents = inputs.contents.tensors
    for triple in triples:
        beside = inputs.tiles[inputs.first_tile[triple.weight]]
        known = [scales[tile] for tile in beside if tile in scales]
        if known and triple.weight not in scales and all(contents[n].is_zero for n in triple.moments):
            rows, _ = plane_shape(inputs.tensor(triple.weight).shape)
            yield triple, scales_beside(known[0], rows)


def _broken(inputs: Inputs, triples: Sequence[Triple]) -> Iterator[tuple[Triple, Scales]]:
    """Weights whose moments say nothing: what the reference knows of them serves once more."""
    for triple in triples:
        if not inputs.has_sound_moments(triple) and (known := inputs.scales_before(triple.weight)) is not None:
            yield triple, known


def _alone(inputs: Inputs, triples: Sequence[Triple], roles: Roles, scales: dict[int, Scales]) -> None:
    """Weights without moments weigh by a variance or its factors, or by what they follow; else uniformly.

    That is as the typical element of those that have scales. One that follows a weight without scales has none itself.
    """
    alone = {triple.weight: None for triple in triples if not triple.moments}
    for first, factors in roles.factors.items():
        if len(factors) == 2 and None not in factors:
            scales |= {number: own for number, own in _scales_of_factors(inputs, first, factors) if number in alone}
    for number, state in roles.states.items():
        weighs = not state.is_mean and is_sound_state(inputs, number, state)
        if state.weight in alone and state.weight not in scales and weighs:
            scales[state.weight] = _scales_of_variance(inputs, number)
    typical = typical_scale(scales.values()) if scales else None
    for number in alone:
        if number not in roles.predictions and number not in scales:
            code = _scale_by_structure(inputs, number) if typical is None else typical
            scales[number] = uniform_scales(plane_shape(inputs.tensor(number).shape), code)
    for number in alone:
        if number in roles.predictions and roles.predictions[number].other in scales:
            scales[number] = scales[roles.predictions[number].other]


def _scale_by_structure(inputs: Inputs, number: int) -> int:
    """Code of one element where no optimizer says anything.

    Gradients of tensors are about equally long, so that an element of a larger one has less; what stands before and
    behind all numbered layers, as an embedding does, has more.
    """
    elements = math.prod(inputs.whole_shape(inputs.first_tile[number]))
    octaves = _OUTER_OCTAVES * (not is_in_layer(inputs.tensor(number).path)) - math.log2(elements)
    return round(STEPS_AN_OCTAVE * octaves)


def _scales_of_factors(inputs: Inputs, first: int, factors: Sequence[int | None]) -> Iterator[tuple[int, Scales]]:
    """Of a matrix's tiles: what is on the diagonals are sums of its rows' and of its columns' squared gradients."""
    rows, columns = (_diagonal(inputs, factor) for factor in factors if factor is not None)
    start = 0
    for tile in inputs.tiles[first]:
        stop = start + inputs.tensor(tile).shape[0]
        relative = columns / max(float(columns.mean()), _LEAST)
        yield tile, Scales(code_of(rows[start:stop] / columns.size), code_of(relative))
        start = stop


def _diagonal(inputs: Inputs, factor: int) -> Float64:
    """Of a square matrix; of one that has no sound one all 1."""
    parts: list[Float64] = []
    for tile in inputs.tiles[factor]:
        matrix, done = inputs.matrix(tile), sum(part.size for part in parts)
        parts.append(matrix[:, done : done + len(matrix)].diagonal())
    found = np.concatenate(parts)
    return found if np.isfinite(found).all() and (found >= 0).all() else np.ones_like(found)


def _scales_of_variance(inputs: Inputs, number: int) -> Scales:
    """Of a state that is a variance of its weight's gradients, though no second moment of Adam's."""
    tensor = inputs.tensor(number)
    variance = to_numbers(inputs.stored(number), tensor.dtype).reshape(plane_shape(tensor.shape))
    return scales_of(Moments(np.zeros_like(variance), variance), tensor.dtype)
