"""What an inert pickle is read into: plain values, recorded constructions, and references to torch storages.

Nothing here may hash, compare or print a value of the stream: a nested tuple costs exponential time, a deep one the
C stack. Keys are therefore kept in pairs and only ever turned into text by `label()`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ckzd.errors import BadCheckpoint

MAX_DEPTH = 1000  # of containers in containers; a pickler written in Python stops at about a third of it
MAX_PATH_KEYS = 64
MAX_PATH_CHARACTERS = 4096

Node = object  # None, bool, int, float, str, bytes, bytearray, list, tuple, or one of the classes below


@dataclass(frozen=True, slots=True)
class Global:
    """A name in a module, never resolved."""

    module: str
    name: str


@dataclass(slots=True, eq=False, repr=False)
class Mapping:
    """A dict as its pairs in stream order; as in a dict, the last of several equal keys counts."""

    pairs: list[tuple[Node, Node]] = field(default_factory=list)
    state: Node = None  # attributes, as on an OrderedDict

    def get(self, key: str) -> Node:
        """Value of the last pair with this string key, else None."""
        for own, value in reversed(self.pairs):  # a generator takes twice as long, and these are asked by the million
            if type(own) is str and own == key:
                return value
        return None


@dataclass(slots=True, eq=False, repr=False)
class SetOf:
    """A set or frozenset as its items in stream order."""

    items: list[Node]
    frozen: bool = False


@dataclass(slots=True, eq=False, repr=False)
class Call:
    """A construction that was recorded and not made, with what the stream would have put into its result."""

    function: Node
    args: Node
    state: Node = None
    pairs: list[tuple[Node, Node]] = field(default_factory=list)
    items: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A torch storage, named by its key in the file; `element_bytes` is 0 where the dtype is unknown."""

    key: str
    dtype: str
    element_bytes: int
    elements: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A view of a storage; offset and stride count elements. It lies inside its storage if both dtypes are known."""

    storage: StorageRef
    dtype: str
    element_bytes: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Trail:
    """A path as a linked list: cheap to extend, turned into text only for tensors."""

    parent: "Trail | None"
    key: Node
    depth: int

    def path(self, subject: str) -> tuple[str, ...]:
        """The keys from the root to here."""
        keys: list[str] = []
        at = self
        while at.parent is not None and len(keys) <= MAX_PATH_KEYS:
            keys.append(label(at.key))
            at = at.parent
        if len(keys) > MAX_PATH_KEYS or sum(map(len, keys)) > MAX_PATH_CHARACTERS:
            limits = f"{MAX_PATH_KEYS} keys or {MAX_PATH_CHARACTERS} characters"
            raise BadCheckpoint(subject, f"the key path of a tensor is longer than {limits}")
        return tuple(reversed(keys))

    def down(self, key: Node) -> "Trail":
        """One level deeper; what is `HERE` adds no key."""
        return Trail(self.parent, self.key, self.depth + 1) if key is HERE else Trail(self, key, self.depth + 1)


ROOT = Trail(None, None, 0)
HERE = object()


def label(key: Node) -> str:
    """A key as text: strings as they are (lone surrogates escaped), small scalars by value, the rest by kind."""
    if type(key) is str:
        return key if key.isascii() else key.encode("utf-8", "backslashreplace").decode("utf-8")
    if key is None or isinstance(key, (bool, float)) or (isinstance(key, int) and key.bit_length() <= 64):
        return str(key)
    return f"<{type(key).__name__.lower()}>"


def walk(root: Node, subject: str) -> Iterator[tuple[Trail, Node]]:
    """Every container, tensor and storage once, depth first in stream order, with the first trail that leads to it."""
    seen: set[int] = set()
    waiting: list[tuple[Trail, Node]] = [(ROOT, root)]
    while waiting:
        trail, node = waiting.pop()
        if isinstance(node, (TensorRef, StorageRef)):
            yield trail, node
        elif id(node) not in seen:
            seen.add(id(node))
            if trail.depth > MAX_DEPTH:
                raise BadCheckpoint(subject, f"containers are nested more than {MAX_DEPTH} deep")
            yield trail, node
            children = [(trail.down(key), child) for key, child in _parts(node) if isinstance(child, _WALKED)]
            waiting.extend(reversed(children))


def _parts(node: Node) -> Iterator[tuple[Node, Node]]:
    """What is directly in a container. Arguments and attributes of a Call count as its own contents."""
    if isinstance(node, (list, tuple)):
        yield from enumerate(node)
    elif isinstance(node, SetOf):
        yield from enumerate(node.items)
    elif isinstance(node, (Mapping, Call)):
        yield from node.pairs
        yield HERE, node.state
        if isinstance(node, Call):
            yield from enumerate(node.items)
            yield HERE, node.args


_WALKED = (list, tuple, SetOf, Mapping, Call, StorageRef, TensorRef)
