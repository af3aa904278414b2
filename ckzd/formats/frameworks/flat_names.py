"""States that are flat, each tensor under a name of its own: what is an optimizer's, and which weight it belongs to.

- `model.layers.0.weight`: a weight; its name in the optimizer is `layers.0.weight`
- `optimizer.state.layers.0.weight.exp_avg`: of the optimizer `optimizer`, as torch's get_state_dict names it
- `optimizer.state.exp_avg.layers.0.weight`: the same, as Megatron does
- `optimizer.state.fp32_param.layers.0.weight`: the weight itself, of which the model's is a copy in fewer bits
- `optimizer.param_groups.layers.0.weight.lr`: a setting of one parameter, when flattened
- `optimizer.param_groups.0.lr`: a setting of a group, whose `params` lists its parameters
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ckzd.checkpoint import Optimizer, ParamGroup
from ckzd.formats.survey import COUNTER, GROUPS, MAX_COUNTERS, STATE, is_step, param_group
from ckzd.formats.tree import Node, label

# What optimizers keep of a weight. One of these tells that a name is of an optimizer's state.
MOMENTS = frozenset(
    (
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "step", "square_avg", "grad_avg"),
        *("sum", "acc_delta", "row_var", "col_var", "variance", "exp_avg_sq_row", "exp_avg_sq_col", "prev", "ax"),
    )
)
MASTERS = frozenset(
    ("fp32_param", "master_param")
)  # weights as Megatron's optimizer keeps them, beside half as wide ones
_STATE = re.compile(rf"(?:^|(?<=\.)){STATE}\.")
_PART = re.compile(rf"(?:^|(?<=\.))({STATE}|{GROUPS})\.")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a state an item stands; its weight and its key are "" for what is no parameter's state."""

    optimizer: tuple[str, ...]  # the path of its optimizer; empty for all others
    weight: str  # as optimizers call it
    key: str
    others: tuple[str, ...]  # for what is no optimizer's, what comes before the weight's name; else what comes behind


def places_of(names: Iterable[str]) -> dict[str, Place]:
    """Where each name stands."""
    names = list(names)
    states = {name: found for name in names if (found := _state(name)) is not None}
    optimizers = {optimizer for optimizer, _, _ in states.values()}
    weights = {weight for _, weight, _ in states.values()}
    return {name: _place(name, states.get(name), optimizers, weights) for name in names}


def _state(name: str) -> tuple[str, str, str] | None:
    """(name of the optimizer, of the weight, of what is kept of it), if this is some of an optimizer's state."""
    for match in _STATE.finditer(name):
        rest, optimizer = name[match.end() :], name[: match.start()].rstrip(".")
        weight, _, key = rest.rpartition(".")
        if weight and key in MOMENTS:
            return optimizer, weight, key
        key, _, weight = rest.partition(".")
        if weight and key in MOMENTS | MASTERS:
            return optimizer, weight, key
    return None


def _place(name: str, state: tuple[str, str, str] | None, optimizers: set[str], weights: set[str]) -> Place:
    if state is not None:
        optimizer, weight, key = state
        return Place((), weight, "", (key,)) if key in MASTERS else Place(_path(optimizer), weight, key, ())
    for match in reversed(list(_PART.finditer(name))):
        optimizer = name[: match.start()].rstrip(".")
        if optimizer in optimizers:
            return Place(_path(optimizer), "", "", (match[1], name[match.end() :]))
    pieces = name.split(".")
    weight = next((end for n in range(len(pieces)) if (end := ".".join(pieces[n:])) in weights), "")
    before = name.removesuffix(weight).rstrip(".") if weight else name
    return Place((), weight, "", (before,) if before else ())


def _path(optimizer: str) -> tuple[str, ...]:
    """All tensors below it are state of the optimizer: one without a name gets one."""
    return tuple(optimizer.split(".")) if optimizer else ("optimizer",)


def is_master(place: Place) -> bool:
    """Whether it is a weight as an optimizer keeps it: moments belong to it, not to its copy in the model."""
    return not place.optimizer and place.others[:1] != () and place.others[0] in MASTERS


def path_of(place: Place, chunk: str) -> tuple[str, ...]:
    """The path of a tensor, or of a chunk of one, as pairing finds weight and state by it."""
    if not place.optimizer:
        return (*place.others, place.weight + chunk) if place.weight else (*place.others[:-1], place.others[-1] + chunk)
    if not place.weight:
        return (*place.optimizer, *place.others[:-1], place.others[-1] + chunk)
    return (*place.optimizer, STATE, place.weight + chunk, place.key)


def optimizers_of(
    places: Mapping[str, Place], chunks: Mapping[str, Sequence[str]], value_of: Callable[[str], Node]
) -> tuple[Optimizer, ...]:
    """The optimizers of a state. `chunks` are those of each item; `value_of` reads an object or a count, else None."""
    ids: dict[tuple[str, ...], dict[str, dict[str, None]]] = {}  # optimizer -> weight -> its chunks, in order
    for name, place in places.items():
        if place.optimizer and place.weight:
            of_weight = ids.setdefault(place.optimizer, {}).setdefault(place.weight, {})
            of_weight |= dict.fromkeys(place.weight + chunk for chunk in chunks.get(name, ()))
    counters: dict[tuple[str, ...], list[str]] = {}  # optimizer -> items that say how often it moved a weight
    for name, place in places.items():
        if place.optimizer and place.key == COUNTER:
            counters.setdefault(place.optimizer, []).append(name)
    settings: dict[tuple[str, ...], dict[str, str]] = {}  # optimizer -> "0.lr" -> its item
    for name, place in places.items():
        if place.optimizer and not place.weight and place.others[0] == GROUPS:
            settings.setdefault(place.optimizer, {})[place.others[1]] = name
    updates = {path: map(value_of, items[:MAX_COUNTERS]) for path, items in counters.items()}
    most = {path: max(filter(is_step, found), default=None) for path, found in updates.items()}
    return tuple(
        Optimizer(
            path,
            tuple(
                replace(group, updates=most.get(path)) for group in _groups(weights, settings.get(path, {}), value_of)
            ),
        )
        for path, weights in ids.items()
    )


def _groups(
    weights: Mapping[str, Iterable[str]], settings: Mapping[str, str], value_of: Callable[[str], Node]
) -> Iterator[ParamGroup]:
    """A group for each list of parameters, else for each weight by its own settings; what is left has none."""

    def group(start: str, names: Iterable[str]) -> ParamGroup:
        ids = tuple(one for name in names for one in weights[name])
        return param_group(ids, None, lambda key: value_of(settings[start + key]) if start + key in settings else None)

    seen: set[str] = set()
    for key, item in settings.items():
        listed = value_of(item) if key.endswith(".params") else None
        if isinstance(listed, list) and len(listed) <= len(weights):
            names = [name for name in map(label, listed) if name in weights and name not in seen]
            seen.update(names)
            yield group(key.removesuffix("params"), names)
    for name in weights:
        if name not in seen:
            yield group(f"{name}.", [name])
