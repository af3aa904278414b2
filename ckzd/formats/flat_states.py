"""Moments of flattened parameters: as flat as the storage that the parameters lie in, and parted as that is.

An optimizer that was given one flat parameter keeps one flat moment of it. Where the model was saved as views of that
parameter, its state is read as that of several parameters, one a view.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ckzd.checkpoint import STORED_AS, Optimizer, ParamGroup
from ckzd.formats.views import REST, Part

_Storages = Mapping[str, Sequence[Part]]  # by their keys in the file
_ByPath = Mapping[tuple[str, ...], Optimizer]
_Flat = Mapping[tuple[tuple[str, ...], str], Sequence[Part]]  # by path of an optimizer and id: what a parameter is as


def parted_alike(
    storages: _Storages, optimizers: Sequence[Optimizer]
) -> tuple[dict[str, list[Part]], tuple[Optimizer, ...]]:
    """Storages with flat moments in parts, and the optimizers that hold them."""
    by_path = {optimizer.path: optimizer for optimizer in reversed(optimizers)}
    models = _models_by_elements(storages, by_path)
    if not models:
        return {key: list(parts) for key, parts in storages.items()}, tuple(optimizers)
    parted = {key: list(parts) for key, parts in storages.items()}
    flat: dict[tuple[tuple[str, ...], str], Sequence[Part]] = {}
    for key, (moment, *others) in storages.items():
        tensor, optimizer = moment.tensor, _optimizer_of(moment, by_path)
        model = models.get(tensor.elements)
        if others or optimizer is None or model is None or len(tensor.shape) != 1 or tensor.dtype not in STORED_AS:
            continue
        if len(tensor.path) == len(optimizer.path) + 3:
            parted[key] = list(_parts_like(model, moment, optimizer))
            flat[optimizer.path, tensor.path[-2]] = model
    return parted, tuple(_of_views(optimizer, flat) for optimizer in optimizers)


def _optimizer_of(part: Part, optimizers: _ByPath) -> Optimizer | None:
    """The optimizer whose state a part is."""
    path = part.tensor.path
    above = (path[:depth] for depth, key in enumerate(path) if key == "state")
    return next((optimizers[start] for start in above if start in optimizers), None)


def _models_by_elements(storages: _Storages, optimizers: _ByPath) -> dict[int, Sequence[Part]]:
    """Storages of views of one dtype, by their elements, where no other tensor of as many is flat or in other parts."""
    found: dict[int, list[Sequence[Part]]] = defaultdict(list)
    if all(len(parts) == 1 for parts in storages.values()):
        return {}
    for parts in storages.values():
        is_flat = len(parts) > 1 or len(parts[0].tensor.shape) == 1
        if is_flat and _optimizer_of(parts[0], optimizers) is None and len({part.tensor.dtype for part in parts}) == 1:
            found[sum(part.tensor.elements for part in parts)].append(parts)
    shapes = {elements: {tuple(p.tensor.shape for p in parts) for parts in some} for elements, some in found.items()}
    return {n: parts for n, (parts, *_) in found.items() if len(parts) > 1 and len(shapes[n]) == 1}


def _parts_like(model: Sequence[Part], moment: Part, optimizer: Optimizer) -> Iterator[Part]:
    """A flat moment in the parts that a model's storage has."""
    *_, key, name = moment.tensor.path
    start = 0
    for number, part in enumerate(model):
        nbytes = part.tensor.elements * STORED_AS[moment.tensor.dtype].itemsize
        path = (*optimizer.path, REST) if part.is_rest else (*optimizer.path, "state", _id(key, number), name)
        tensor = replace(moment.tensor, path=path, shape=part.tensor.shape, nbytes=nbytes)
        yield Part(start, tensor, moment.place, is_rest=part.is_rest)
        start += nbytes


def _id(key: str, number: int) -> str:
    """Of the parameter that is part number `number` of a flat one."""
    return f"{key}[{number}]"


def _of_views(optimizer: Optimizer, flat: _Flat) -> Optimizer:
    """An optimizer with the parameters that its flat ones consist of."""
    return replace(optimizer, groups=tuple(_group_of_views(optimizer, group, flat) for group in optimizer.groups))


def _group_of_views(optimizer: Optimizer, group: ParamGroup, flat: _Flat) -> ParamGroup:
    """Views stand in the order of the pickle, under the names that they have there."""
    found: list[tuple[str, str]] = []
    for key, name in zip(group.ids, group.names or group.ids, strict=True):
        model = flat.get((optimizer.path, key))
        if model is None:
            found.append((key, name))
            continue
        views = [(number, part) for number, part in enumerate(model) if not part.is_rest]
        ordered = sorted(views, key=lambda each: each[1].place)
        found += [(_id(key, number), part.tensor.path[-1]) for number, part in ordered]
    names = None if group.names is None else tuple(name for _, name in found)
    return replace(group, ids=tuple(key for key, _ in found), names=names)
