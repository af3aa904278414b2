"""Tensors that another one foretells: a master's rounded copy, a moving average of a weight, a weight's other iterate.

A copy of a master in a narrower dtype follows from it. An average of a weight is near to it and moves towards it: it is
coded as what is left beside a linear prediction from its own past, from the weight, and from the weight's past.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec.analysis.candidates import candidates, orders
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import is_coded, sample
from ckzd.codec.arrays import Float64
from ckzd.codec.dtypes import finite, from_float64, to_float64
from ckzd.codec.records.index import MAX_COEFFICIENT, LinearPrediction
from ckzd.codec.records.reference_tensors import cast_values, finite_reference

_NEAR = 0.25  # of its energy, the most that an average is off its weight; two weights of one layout are off by 2
_NEAR_BY_NAME = 1.0  # the same of one that has its weight's name: in a young run it lags far behind
_MOST_LISTS = 16  # of averages: each is a look at all weights
_NARROW = frozenset({"bfloat16", "float16"})
_NAMES = re.compile(r"[^.]+")


def casts(inputs: Inputs) -> dict[int, int]:
    """Tiles that are a float32 tile rounded to a narrower dtype, each with the number of that."""
    numbers = [n for n in inputs.tiles if n in inputs.is_reference and is_coded(inputs, n)]
    masters: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number in numbers:
        if inputs.tensor(number).dtype == "float32":
            masters[inputs.whole_shape(number)].append(number)
    found: dict[int, int] = {}
    for number in numbers:
        tensor = inputs.tensor(number)
        if tensor.dtype not in _NARROW or inputs.whole_shape(number) not in masters:
            continue
        seen = _sampled(inputs, number)
        for master in masters[inputs.whole_shape(number)]:
            rounded = to_float64(from_float64(_sampled(inputs, master), tensor.dtype), tensor.dtype)
            if np.array_equal(rounded, seen):
                tiles = list(zip(inputs.tiles[number], inputs.tiles[master], strict=True))
                if all(_is_cast(inputs, *pair) for pair in tiles):
                    found |= tiles
                    break
    return found


def _is_cast(inputs: Inputs, number: int, master: int) -> bool:
    if not (inputs.contents.tensors[number].is_finite and inputs.contents.tensors[master].is_finite):
        return False
    rounded = cast_values(inputs.stored(master), inputs.tensor(master).dtype, inputs.tensor(number))
    return np.array_equal(rounded, inputs.stored(number))


def predictions(inputs: Inputs, weights: Collection[int], followers: Sequence[int]) -> dict[int, LinearPrediction]:
    """Linear predictions of tiles of the `followers` (first tiles, ascending) from tiles of `weights` (likewise).

    A follower may be a weight too: then it may only follow from one before it that follows from none.
    """
    found: dict[int, LinearPrediction] = {}
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number in weights:
        by_shape[inputs.whole_shape(number)].append(number)
    own, in_lists = frozenset(weights), _by_position(inputs, weights, followers)
    for number in followers:
        others = by_shape[inputs.whole_shape(number)]
        allowed = [n for n in others if n not in found and (number not in own or n < number)]
        other = _nearest(inputs, number, allowed, in_lists.get(number))
        if other is None:
            continue
        fitted = _fitted(inputs, number, other)
        if fitted is not None:
            for tile, others_tile in zip(inputs.tiles[number], inputs.tiles[other], strict=True):
                found[tile] = LinearPrediction(others_tile, *fitted)
    return found


def _by_position(inputs: Inputs, weights: Collection[int], followers: Sequence[int]) -> dict[int, int]:
    """Of lists without names, as of shadow parameters: the weight at the same place of an order that fits them all."""
    lists: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number in followers:
        *above, last = inputs.tensor(number).path
        if last.isdecimal():
            lists[tuple(above)].append(number)
    found: dict[int, int] = {}
    for members in list(lists.values())[:_MOST_LISTS]:
        members.sort(key=lambda number: int(inputs.tensor(number).path[-1]))
        shapes, own = _shapes(inputs, members), frozenset(members)
        pools = candidates(inputs, [number for number in weights if number not in own], len(members))
        fitting = (order for pool in pools for order in orders(inputs, pool) if _shapes(inputs, order) == shapes)
        found |= zip(members, next(fitting, ()), strict=False)
    return found


def _shapes(inputs: Inputs, numbers: Sequence[int]) -> list[tuple[int, ...]]:
    return [inputs.whole_shape(number) for number in numbers]


def _nearest(inputs: Inputs, number: int, others: Sequence[int], placed: int | None) -> int | None:
    """Of the weights of one shape that at the same place of a list (`placed`), else whose name is alike, else any.

    Of several that which differs least.
    """
    name = _NAMES.findall(inputs.tensor(number).path[-1])[-2:]
    called = [other for other in others if _NAMES.findall(inputs.tensor(other).path[-1])[-2:] == name]
    alike = [placed] if placed is not None and placed in others else called
    seen = _sampled(inputs, number)
    energy = float((seen**2).sum())
    distances = {other: float(((_sampled(inputs, other) - seen) ** 2).sum()) for other in alike or others}
    nearest = min(distances, key=distances.__getitem__, default=None)
    if not alike and len(inputs.whole_shape(number)) < 2:
        return None  # many vectors are near to each other: norms begin as ones
    near = _NEAR_BY_NAME if alike else _NEAR
    return nearest if nearest is not None and distances[nearest] <= near * energy else None


def _fitted(inputs: Inputs, number: int, other: int) -> tuple[float, float, float] | None:
    """Coefficients of its own past, of the other and of the other's past, by least squares; 0 of what is not there."""
    values = _read(inputs, number)
    past = [_read_before(inputs, each) for each in (number, other)]
    terms = [past[0], _read(inputs, other), past[1]]
    known = [position for position, term in enumerate(terms) if term is not None]
    matrix = np.stack([term for term in terms if term is not None], axis=1)
    solution = np.linalg.lstsq(matrix, values, rcond=1e-6)[0].astype(np.float32)
    if np.abs(solution).max(initial=0.0) > MAX_COEFFICIENT:
        return None
    left = float(((values - matrix @ solution) ** 2).sum())
    if past[0] is not None and left >= float(((values - past[0]) ** 2).sum()):
        return None
    coefficients = [0.0, 0.0, 0.0]
    for position, coefficient in zip(known, solution, strict=True):
        coefficients[position] = float(coefficient)
    own, now, before = coefficients
    return own, now, before


def _sampled(inputs: Inputs, number: int) -> Float64:
    """What the first reading kept: tensors of one shape may be many, so none is read to be compared with all others."""
    stored = inputs.contents.tensors[number].sample
    assert stored is not None, "it is of a dtype that may be coded with a loss"
    return _finite(stored, inputs.tensor(number).dtype)


def _read(inputs: Inputs, number: int) -> Float64:
    """More values, for a fit."""
    return _finite(sample(inputs.stored(number)), inputs.tensor(number).dtype)


def _finite(stored: RawArray, dtype: str) -> Float64:
    return np.where(finite(stored, dtype), to_float64(stored, dtype), 0.0)


def _read_before(inputs: Inputs, number: int) -> Float64 | None:
    before, dtype = finite_reference(inputs.tensor(number), inputs.reference), inputs.tensor(number).dtype
    return None if before is None else to_float64(sample(before), dtype)
