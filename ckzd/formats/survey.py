"""What a training script put into a pickle: which tensors view which storage, the optimizers, the step."""

import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

from ckzd.checkpoint import Optimizer, ParamGroup
from ckzd.errors import BadCheckpoint
from ckzd.formats.moment_trees import MomentTrees
from ckzd.formats.tree import MAX_PATH_CHARACTERS, Mapping, Node, StorageRef, TensorRef, Trail, label, walk

STEP_KEYS = ("step", "global_step", "iter_num", "iteration")
STATE, GROUPS, COUNTER = "state", "param_groups", "step"  # what an optimizer's state_dict() calls them
MAX_COUNTERS = 64  # states of an optimizer that are asked how often they moved their parameters
_COUNTER_DTYPES = {"float32": "<f", "float64": "<d", "int64": "<q", "int32": "<i"}
MAX_STEP = 1 << 62
MAX_LEARNING_RATE = 1e6  # larger than any that trains: what is computed with it stays finite
MAX_EPS = 1.0  # larger ones are no guard against a root of 0
MAX_OPTIMIZER_ITEMS = 8_000_000  # parameters and settings in all param_groups that are looked at


@dataclass(slots=True)
class StorageUse:
    """A storage, and how tensors view it.

    Places count the references in a pickle, so that tensors can be put in the order in which they stand there.
    """

    ref: StorageRef
    first: tuple[int, Trail]  # place of the first reference, and the trail that led to it
    views: dict[TensorRef, tuple[int, Trail]] = field(default_factory=dict)  # likewise of each
    several_dtypes: bool = False

    def add(self, node: TensorRef | StorageRef, place: int, trail: Trail, subject: str) -> None:
        """Note one more reference to the storage."""
        ref = node.storage if isinstance(node, TensorRef) else node
        if ref != self.ref:
            self.several_dtypes = True
            if _nbytes(ref) != _nbytes(self.ref):
                raise BadCheckpoint(subject, f"storage {ref.key[:80]!a} has two sizes")
        if isinstance(node, TensorRef):
            self.views.setdefault(node, (place, trail))


@dataclass(frozen=True, slots=True)
class Survey:
    """Storages by key in the order of their first use."""

    uses: dict[str, StorageUse]
    optimizers: tuple[Optimizer, ...]
    step: int | None
    counters: dict[tuple[str, ...], list[Node]] = field(default_factory=dict)  # by optimizer: see `_counters`


def survey(root: Node, subject: str) -> Survey:
    """Walk the tree once. BadCheckpoint, naming `subject`, if it is nested without end or contradicts itself."""
    uses: dict[str, StorageUse] = {}
    optimizers, counters = _Optimizers(), dict[tuple[str, ...], list[Node]]()
    moments = MomentTrees(root, subject)
    for place, (trail, node) in enumerate(walk(root, subject)):
        if isinstance(node, (TensorRef, StorageRef)):
            ref = node.storage if isinstance(node, TensorRef) else node
            uses.setdefault(ref.key, StorageUse(ref, (place, trail))).add(node, place, trail, subject)
        elif isinstance(node, Mapping) and (pairs := moments.by_parameter(node)) is not None:
            node.pairs = pairs  # what is walked next
        elif isinstance(node, Mapping) and (groups := optimizers.groups(node)):
            optimizers.found.append(Optimizer(trail.path(subject), groups))
            counters[optimizers.found[-1].path] = list(_counters(node))
    return Survey(uses, tuple(optimizers.found), _step(root), counters)


def _counters(optimizer: Mapping) -> Iterator[Node]:
    """What some of an optimizer's states, or its groups, say of how often they moved their parameters."""
    states, groups = optimizer.get(STATE), optimizer.get(GROUPS)
    found = [state for _, state in states.pairs[:MAX_COUNTERS]] if isinstance(states, Mapping) else []
    found += groups[:MAX_COUNTERS] if isinstance(groups, list) else []
    return (one.get(COUNTER) for one in found if isinstance(one, Mapping))


def most_updates(counters: Iterable[Node], read: Callable[[TensorRef], bytes | None]) -> int | None:
    """The largest of such numbers: some weights may have joined late. `read` gives a tensor's bytes, if it has them."""
    found = (_number(node, read) if isinstance(node, TensorRef) else node for node in counters)
    return max(filter(is_step, found), default=None)


def _number(tensor: TensorRef, read: Callable[[TensorRef], bytes | None]) -> Node:
    """The whole number that a tensor of one element holds."""
    kind = _COUNTER_DTYPES.get(tensor.dtype)
    data = read(tensor) if kind is not None and math.prod(tensor.shape) == 1 else None
    if kind is None or data is None:
        return None
    (value,) = struct.unpack(kind, data)
    return int(value) if math.isfinite(value) and value == int(value) else None


def _nbytes(ref: StorageRef) -> int:
    return ref.elements * ref.element_bytes


@dataclass(slots=True)
class _Optimizers:
    """Finds what looks like `optimizer.state_dict()`, with a limit on the work over all of them."""

    found: list[Optimizer] = field(default_factory=list)
    items_left: int = MAX_OPTIMIZER_ITEMS

    def groups(self, node: Mapping) -> tuple[ParamGroup, ...]:
        """Its param_groups; nothing for any other mapping."""
        groups = node.get(GROUPS)
        if not isinstance(groups, list) or not isinstance(node.get(STATE), Mapping):
            return ()
        found: list[ParamGroup] = []
        for group in groups:
            read = self._group(group)
            if read is None:
                return ()
            found.append(read)
        return tuple(found)

    def _group(self, group: Node) -> ParamGroup | None:
        if not isinstance(group, Mapping) or not self._spend(len(group.pairs)):
            return None
        params, names = group.get("params"), group.get("param_names")
        if not isinstance(params, list) or not self._spend(len(params)) or not all(map(_is_id, params)):
            return None
        named = isinstance(names, list) and len(names) == len(params) and all(map(_is_name, names))
        known = tuple(map(label, names)) if named and isinstance(names, list) else None
        return param_group(tuple(map(label, params)), known, group.get)

    def _spend(self, items: int) -> bool:
        self.items_left -= items + 1
        return self.items_left >= 0


def param_group(ids: tuple[str, ...], names: tuple[str, ...] | None, setting: Callable[[str], Node]) -> ParamGroup:
    """A group of parameters with the settings that `setting` knows by name."""
    betas, learning_rate, eps = setting("betas"), setting("lr"), setting("eps")
    rate, is_muon = _learning_rate(learning_rate), _is_muon(setting)
    return ParamGroup(ids, names, _betas(betas), rate, _eps(eps), is_orthogonal=is_muon)


def _is_muon(setting: Callable[[str], Node]) -> bool:
    """By what a group says: that it is not its inner Adam's, else in how many iterations matrices become orthogonal."""
    use = setting("use_muon")
    return use is True if isinstance(use, bool) else type(setting("ns_steps")) is int


def _is_id(value: Node) -> bool:
    return type(value) is int or _is_name(value)


def _is_name(value: Node) -> bool:
    return type(value) is str and len(value) <= MAX_PATH_CHARACTERS


def _betas(values: Node) -> tuple[float, float] | None:
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        return None
    first, second = (float(v) if isinstance(v, (int, float)) and 0 <= v <= 1 else None for v in values)
    return None if first is None or second is None else (first, second)


def _learning_rate(value: Node) -> float | None:
    """None also for 0 and for one that is held in a tensor."""
    return float(value) if isinstance(value, (int, float)) and 0 < value < MAX_LEARNING_RATE else None


def _eps(value: Node) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < MAX_EPS else None


def _step(root: Node) -> int | None:
    if not isinstance(root, Mapping):
        return None
    return next(filter(is_step, map(root.get, STEP_KEYS)), None)


def is_step(value: Node) -> TypeGuard[int]:
    """Whether this can be the step of a checkpoint."""
    return type(value) is int and 0 <= value < MAX_STEP
