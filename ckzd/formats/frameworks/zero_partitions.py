"""DeepSpeed's ZeRO: what lies where in the flat partitions that each rank keeps of fp32 weights and their moments.

Stages 1 and 2 lay the weights of a group one behind another and cut the whole between ranks; stage 3 cuts each weight
between ranks, and each rank lays its pieces one behind another. Which weights, in which order and shape, the file of
the model's states says. Where a partition is not as long as that makes it, it is left flat.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from ckzd.formats.tree import MAX_PATH_CHARACTERS, Node, TensorRef, label
from ckzd.formats.tree import Mapping as Tree

MAX_WEIGHTS = 1_000_000
PADDINGS = "param_alignment_paddings"
FLAT_12, FLAT_3 = "single_partition_of_fp32_groups", "fp32_flat_groups"
_WRAPPED = "optimizer_state_dict"
_STATE_12, _STATE_3 = "base_optimizer_state", "optimizer_state_dict"
Shapes = tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]  # of each group, its weights in order


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements [start, start + prod(shape)) of a flat tensor, and what they are called."""

    name: str
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """Elements [begin, begin + elements) of a weight of this shape."""

    weight: str
    shape: tuple[int, ...]
    begin: int
    elements: int


Shares = Mapping[str, Share]  # by what pieces are called
_SHARE = re.compile(r"(.+)\[(\d{1,15}):(\d{1,15})\]", re.ASCII | re.DOTALL)


def shapes_of(model_states: Node) -> Shapes | None:
    """`param_shapes`; None where there is nothing that can be understood as such."""
    groups = model_states.get("param_shapes") if isinstance(model_states, Tree) else None
    if not isinstance(groups, list) or not all(isinstance(group, Tree) for group in groups):
        return None
    found = tuple(tuple((label(name), _shape(shape)) for name, shape in group.pairs) for group in groups)
    named = [name for group in found for name, _ in group]
    if len(named) > MAX_WEIGHTS or any(len(name) > MAX_PATH_CHARACTERS for name in named):
        return None
    return found if all(shape is not None for group in found for _, shape in group) else None  # type: ignore[return-value]


def _shape(value: Node) -> tuple[int, ...] | None:
    is_shape = isinstance(value, (tuple, list)) and all(type(size) is int and 0 < size < 1 << 48 for size in value)
    return tuple(value) if is_shape else None  # type: ignore[arg-type]


def named(root: Node, shapes: Shapes, rank: int, ranks: int, suffix: str) -> Node:
    """The tree of a rank's optimizer states with its flat tensors as pieces under the names of their weights.

    Unchanged where it is not one that is known. `suffix` goes behind each name.
    """
    outer = root.get(_WRAPPED) if isinstance(root, Tree) else None
    if not isinstance(outer, Tree):
        return root
    flat_key, state_key = (FLAT_12, _STATE_12) if outer.get(FLAT_12) is not None else (FLAT_3, _STATE_3)
    flats, optimizer = outer.get(flat_key), outer.get(state_key)
    if not (isinstance(flats, list) and all(isinstance(flat, TensorRef) and len(flat.shape) == 1 for flat in flats)):
        return root
    lengths = [flat.shape[0] for flat in flats if isinstance(flat, TensorRef)]
    if flat_key == FLAT_12:
        paddings = outer.get(PADDINGS)
        padded = paddings if isinstance(paddings, list) and len(paddings) == len(shapes) else [None] * len(shapes)
        parts = zip(shapes, lengths, padded, strict=False)
        pieces = [_of_whole(group, length, _counts(own, group), rank, ranks) for group, length, own in parts]
    else:
        pieces = _of_each(shapes, lengths, rank, ranks)
    if len(pieces) != len(flats) or not isinstance(optimizer, Tree):
        return root
    pieces = [[replace(piece, name=piece.name + suffix) for piece in some] for some in pieces]
    weights = [_cut(flat, some) for flat, some in zip(flats, pieces, strict=True)]
    within = _changed(outer, {flat_key: weights, state_key: _named_state(optimizer, pieces)})
    return _changed(root, {_WRAPPED: within}) if isinstance(root, Tree) else root


def _changed(tree: Tree, values: Mapping[str, Node]) -> Tree:
    """With other values under some of its keys."""
    return Tree([(key, values.get(key, value) if type(key) is str else value) for key, value in tree.pairs])


def _counts(paddings: Node, group: Sequence[object]) -> Sequence[int]:
    """What lies behind each weight of a group, in elements."""
    if isinstance(paddings, list) and len(paddings) == len(group):
        counts = [count for count in paddings if type(count) is int and 0 <= count < 1 << 32]
        return counts if len(counts) == len(group) else [0] * len(group)
    return [0] * len(group)


def _of_whole(
    group: Sequence[tuple[str, tuple[int, ...]]], length: int, paddings: Sequence[int], rank: int, ranks: int
) -> list[Piece]:
    """Stages 1 and 2: what of a group's weights lies in this rank's part of it; nothing if it cannot be."""
    total = sum(prod(shape) for _, shape in group) + sum(paddings)
    if not 0 <= length * ranks - total < 2 * ranks:  # the whole is padded to a multiple of 2 a rank
        return []
    found: list[Piece] = []
    at = -rank * length  # where a weight begins, seen from this part
    for (name, shape), padding in zip(group, paddings, strict=True):
        begin, end = max(at, 0), min(at + prod(shape), length)
        if begin < end:
            found.append(_share(name, shape, begin - at, end - at, begin))
        at += prod(shape) + padding
    return found


def _of_each(shapes: Shapes, lengths: Sequence[int], rank: int, ranks: int) -> list[list[Piece]]:
    """Stage 3: this rank's part of each weight, all parts of a weight equally long and the last one padded."""
    weights = [each for group in shapes for each in group]
    if sum(lengths) != sum(-(-prod(shape) // ranks) for _, shape in weights):
        return []
    found: list[list[Piece]] = [[] for _ in lengths]
    flat, at = 0, 0
    for name, shape in weights:
        part = -(-prod(shape) // ranks)
        while flat < len(lengths) and at >= lengths[flat]:
            flat, at = flat + 1, 0
        if flat == len(lengths) or at + part > lengths[flat]:
            return []
        begin, end = rank * part, min((rank + 1) * part, prod(shape))
        if begin < end:
            found[flat].append(_share(name, shape, begin, end, at))
        at += part
    return found


def _share(name: str, shape: tuple[int, ...], begin: int, end: int, start: int) -> Piece:
    """Elements [begin, end) of a weight, which lie at `start`."""
    if (begin, end) == (0, prod(shape)):
        return Piece(name, start, shape)
    return Piece(f"{name}[{begin}:{end}]", start, (end - begin,))


def shares_in(names: Iterable[str], shapes: Shapes, suffix: str) -> dict[str, Share]:
    """What of which weight the pieces are that are called so."""
    known = {name + suffix: shape for group in shapes for name, shape in group}
    found: dict[str, Share] = {}
    for each in names:
        match = _SHARE.fullmatch(each.removesuffix(suffix))
        if each in known:
            found[each] = Share(each, known[each], 0, prod(known[each]))
        elif match is not None and match[1] + suffix in known:
            begin, end = int(match[2]), int(match[3])
            weight = match[1] + suffix
            found[each] = Share(weight, known[weight], begin, end - begin)
    return found


def _cut(flat: Node, pieces: Sequence[Piece]) -> Node:
    """The pieces of a flat tensor by name; a tensor of another length as it is."""
    stop = max((piece.start + prod(piece.shape) for piece in pieces), default=0)
    if not isinstance(flat, TensorRef) or len(flat.shape) != 1 or flat.stride != (1,) or not 0 < stop <= flat.shape[0]:
        return flat
    return Tree([(piece.name, _view(flat, piece)) for piece in pieces])


def _view(flat: TensorRef, piece: Piece) -> TensorRef:
    stride = tuple(prod(piece.shape[axis + 1 :]) for axis in range(len(piece.shape)))
    return replace(flat, offset=flat.offset + piece.start, shape=piece.shape, stride=stride)


def _named_state(optimizer: Tree, pieces: Sequence[Sequence[Piece]]) -> Tree:
    """A torch optimizer's state dict whose parameters are flat groups, as if each piece were one."""
    state, groups = optimizer.get("state"), optimizer.get("param_groups")
    if not isinstance(state, Tree) or not isinstance(groups, list):
        return optimizer
    by_id: dict[Node, Sequence[Piece]] = dict(enumerate(pieces))
    states: list[tuple[Node, Node]] = []
    for key, kept in state.pairs:
        if type(key) is not int or key not in by_id or not isinstance(kept, Tree):
            return optimizer
        cut = {name: _cut(value, by_id[key]) for name, value in kept.pairs}
        parts = {name: dict(value.pairs) if isinstance(value, Tree) else value for name, value in cut.items()}
        states += ((piece.name, _of(parts, piece.name)) for piece in by_id[key])
    return _changed(optimizer, {"state": Tree(states), "param_groups": _named_groups(groups, by_id)})


def _of(parts: dict[Node, dict[Node, Node] | Node], name: str) -> Tree:
    """One piece's state: its part of what was cut, and all of the rest, as the step."""
    return Tree([(key, part[name] if isinstance(part, dict) else part) for key, part in parts.items()])


def _named_groups(groups: Sequence[Node], by_id: Mapping[Node, Sequence[Piece]]) -> list[Node]:
    """Each group with the names of its pieces; those of flat groups that no other lists belong to the last."""
    ids: list[list[Node]] = []
    for group in groups:
        params = group.get("params") if isinstance(group, Tree) else None
        ids.append([key for key in params if type(key) is int and key in by_id] if isinstance(params, list) else [])
    if ids:
        ids[-1] += [key for key in by_id if not any(key in some for some in ids)]
    found: list[Node] = []
    for group, own in zip(groups, ids, strict=True):
        names: list[Node] = [piece.name for key in own for piece in by_id[key]]
        found.append(_changed(group, {"params": names}) if isinstance(group, Tree) else group)
    return found
