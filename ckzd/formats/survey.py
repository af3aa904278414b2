"""What a training script put into a pickle: which tensors view which storage, the optimizers, the step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeGuard

from ckzd.checkpoint import Optimizer, ParamGroup
from ckzd.errors import BadCheckpoint
from ckzd.formats.tree import MAX_PATH_CHARACTERS, Mapping, Node, StorageRef, TensorRef, Trail, label, walk

STEP_KEYS = ("step", "global_step", "iter_num", "iteration")
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


def survey(root: Node, subject: str) -> Survey:
    """Walk the tree once. BadCheckpoint, naming `subject`, if it is nested without end or contradicts itself."""
    uses: dict[str, StorageUse] = {}
    optimizers = _Optimizers()
    for place, (trail, node) in enumerate(walk(root, subject)):
        if isinstance(node, (TensorRef, StorageRef)):
            ref = node.storage if isinstance(node, TensorRef) else node
            uses.setdefault(ref.key, StorageUse(ref, (place, trail))).add(node, place, trail, subject)
        elif isinstance(node, Mapping) and (groups := optimizers.groups(node)):
            optimizers.found.append(Optimizer(trail.path(subject), groups))
    return Survey(uses, tuple(optimizers.found), _step(root))


def _nbytes(ref: StorageRef) -> int:
    return ref.elements * ref.element_bytes


@dataclass(slots=True)
class _Optimizers:
    """Finds what looks like `optimizer.state_dict()`, with a limit on the work over all of them."""

    found: list[Optimizer] = field(default_factory=list)
    items_left: int = MAX_OPTIMIZER_ITEMS

    def groups(self, node: Mapping) -> tuple[ParamGroup, ...]:
        """Its param_groups; nothing for any other mapping."""
        groups = node.get("param_groups")
        if not isinstance(groups, list) or not isinstance(node.get("state"), Mapping):
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
    return ParamGroup(ids, names, _betas(betas), _learning_rate(learning_rate), _eps(eps))


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
