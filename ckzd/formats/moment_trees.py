"""Optimizer state that is kept by moment instead of by parameter, as trees or lists of all weights' moments.

    {"exp_avg": [...], "exp_avg_sq": [...]}          {"count": 300, "mu": {"dense": {"kernel": ...}}, "nu": {...}}

It is read as if it were an optimizer's `state_dict()`, so that nothing behind the reader knows of it. Short names
say little: `mu` and `nu` are moments if nothing but numbers stands beside them, and every shape is that of a third
tensor, the weight.
"""

from collections import Counter
from dataclasses import dataclass

from ckzd.formats.tree import Mapping, Node, TensorRef, walk

MOMENTS = "<moments>"  # in the place of what they are called
_CALLED = (("exp_avg", "exp_avg_sq"), ("mu", "nu"), ("m", "v"))  # Adam's: torch's, optax's, its paper's
_COUNTERS = ("step", "count", "t")
_TREES = (list, tuple, Mapping)

Pairs = list[tuple[Node, Node]]
Leaves = dict[str, TensorRef]  # by their keys, joined with dots


@dataclass(slots=True)
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
            if number == 0 or (_is_alone(node, called) and self._have_weights(first)):
                moments = {"exp_avg": first, "exp_avg_sq": second}
                return [*_beside(node, called), (MOMENTS, _optimizer(node, moments))]
        return None

    def _leaves(self, node: Node) -> Leaves:
        """All tensors of a list, or of mappings and lists in each other; nothing if it holds anything else."""
        found: Leaves = {}
        for trail, each in walk(node, self.subject) if isinstance(node, _TREES) else ():
            self.nodes_left -= 1
            if isinstance(each, TensorRef):
                found[".".join(trail.path(self.subject))] = each
            elif self.nodes_left < 0 or not isinstance(each, _TREES):
                return {}
        return found

    def _have_weights(self, leaves: Leaves) -> bool:
        """Whether the file has a third tensor of each shape."""
        own = Counter(tensor.shape for tensor in leaves.values())
        everything = Counter(each.shape for _, each in walk(self.root, self.subject) if isinstance(each, TensorRef))
        return all(everything[shape] >= 3 * count for shape, count in own.items())


def _optimizer(node: Mapping, moments: dict[str, Leaves]) -> Mapping:
    keys: list[Node] = [*moments["exp_avg"]]
    states: Pairs = [
        (key, Mapping([(name, leaves[key]) for name, leaves in moments.items()])) for key in moments["exp_avg"]
    ]
    counter = next((value for name in _COUNTERS if (value := node.get(name)) is not None), None)
    return Mapping([("state", Mapping(states)), ("param_groups", [Mapping([("params", keys), ("step", counter)])])])


def _beside(node: Mapping, called: tuple[str, str]) -> Pairs:
    return [(key, value) for key, value in node.pairs if type(key) is not str or key not in called]


def _is_alone(node: Mapping, called: tuple[str, str]) -> bool:
    """Whether nothing but numbers stands beside the two."""
    return not any(isinstance(value, _TREES) for _, value in _beside(node, called))


def _shapes(leaves: Leaves) -> dict[str, tuple[int, ...]]:
    return {key: tensor.shape for key, tensor in leaves.items()}
