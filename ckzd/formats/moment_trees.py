"""Optimizer state that is kept by moment instead of by parameter, as trees or lists of all weights' moments.

    {"exp_avg": [...], "exp_avg_sq": [...]}          {"count": 300, "mu": {"dense": {"kernel": ...}}, "nu": {...}}

It is read as if it were an optimizer's `state_dict()`, so that nothing behind the reader knows of it. Short names
say little, and a model's own tensors must not be taken for moments: `mu` and `nu` are some if a counter stands beside
them and nothing else but numbers, and every shape is that of a third tensor, the weight.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from ckzd.formats.tree import Mapping, Node, TensorRef, walk

MOMENTS = "<moments>"  # in the place of what they are called
_CALLED = (("exp_avg", "exp_avg_sq"), ("mu", "nu"), ("m", "v"))  # Adam's: torch's, optax's, its paper's
_COUNTERS = ("step", "count", "t")
_TREES = (list, tuple, Mapping)
_LONGEST = 1024  # characters of keys; beyond it they are left as they are

Pairs = list[tuple[Node, Node]]
Leaves = dict[str, TensorRef]  # by their keys, joined with dots


@dataclass
class MomentTrees:
    """Finds them in one file, with a limit on the work over all of it."""

    root: Node
    subject: str
    nodes_left: int = 8_000_000

    def by_parameter(self, node: Mapping) -> Pairs | None:
        """The pairs of such a mapping with `MOMENTS`, an optimizer's state and a group; None of any other mapping."""
        for number, called in enumerate(_CALLED):
            first, second = (self._leaves(node.get(name)) for name in called)
            if not first or not second or _shapes(first) != _shapes(second):
                continue
            if number == 0 or (_is_counted(node, called) and self._have_weights(first)):
                moments = {"exp_avg": first, "exp_avg_sq": second}
                return [*_beside(node, called), (MOMENTS, _optimizer(node, moments))]
        return None

    def _leaves(self, node: Node) -> Leaves:
        """All tensors of a list, or of mappings and lists in each other; nothing if it holds anything else."""
        found: Leaves = {}
        for trail, each in walk(node, self.subject) if isinstance(node, _TREES) else ():
            self.nodes_left -= 1
            if isinstance(each, TensorRef):
                key = ".".join(trail.path(self.subject))
                if key in found or len(key) > _LONGEST:
                    return {}
                found[key] = each
            elif self.nodes_left < 0 or not isinstance(each, _TREES):
                return {}
        return found

    def _have_weights(self, leaves: Leaves) -> bool:
        """Whether the file has a third tensor of each shape."""
        own = Counter(tensor.shape for tensor in leaves.values())
        return all(self._shapes_of_all[shape] >= 3 * count for shape, count in own.items())

    @cached_property
    def _shapes_of_all(self) -> Counter[tuple[int, ...]]:
        return Counter(each.shape for _, each in walk(self.root, self.subject) if isinstance(each, TensorRef))


def _optimizer(node: Mapping, moments: dict[str, Leaves]) -> Mapping:
    keys: list[Node] = [*moments["exp_avg"]]
    states: Pairs = [
        (key, Mapping([(name, leaves[key]) for name, leaves in moments.items()])) for key in moments["exp_avg"]
    ]
    group = Mapping([("params", keys), ("step", _counter(node))])
    return Mapping([("state", Mapping(states)), ("param_groups", [group])])


def _beside(node: Mapping, called: tuple[str, str]) -> Pairs:
    return [(key, value) for key, value in node.pairs if type(key) is not str or key not in called]


def _is_counted(node: Mapping, called: tuple[str, str]) -> bool:
    """Whether a number of updates stands beside the two, and nothing but numbers."""
    counter = _counter(node)
    is_number = type(counter) is int or (isinstance(counter, TensorRef) and math.prod(counter.shape) == 1)
    return is_number and not any(isinstance(value, _TREES) for _, value in _beside(node, called))


def _counter(node: Mapping) -> Node:
    return next((value for name in _COUNTERS if (value := node.get(name)) is not None), None)


def _shapes(leaves: Leaves) -> dict[str, tuple[int, ...]]:
    return {key: tensor.shape for key, tensor in leaves.items()}
