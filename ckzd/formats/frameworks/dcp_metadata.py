"""`.metadata` of torch.distributed.checkpoint, a pickle: read without unpickling.

It names every item of the saved state: a tensor with the chunks that it was cut into, or an object. Each chunk, and
each object, is a region of a file; what is in a region is a file of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ckzd.errors import BadCheckpoint
from ckzd.formats import inert_pickle
from ckzd.formats.source import FileView
from ckzd.formats.torch_objects import MAX_DIMENSIONS
from ckzd.formats.tree import MAX_PATH_CHARACTERS, Call, Mapping, Node

MAX_NUMBER = 1 << 56

Numbers = tuple[int, ...]
Sizes = dict[Numbers, Numbers]  # of chunks, by where they begin


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes of a file; `start` and `sizes` say which part of its item they are, as does `chunk`: "" for the whole."""

    item: str
    chunk: str
    start: Numbers
    sizes: Numbers | None  # None where nothing says it
    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """The names of all items in the order of the state dict, the shape of each tensor, and where everything lies.

    Regions come in the order of the items, and of the chunks in an item.
    """

    items: dict[str, Numbers | None]  # None: an object
    regions: tuple[Region, ...]


def read_metadata(view: FileView) -> Metadata:
    """BadCheckpoint if it is damaged, or names what cannot be."""
    if view.size > inert_pickle.MAX_PICKLE_BYTES:
        raise BadCheckpoint(view.subject, f"a pickle of {view.size} bytes is too large")
    root = inert_pickle.load(view.read(0, view.size), view.subject)
    items = {_name(key, view): value for key, value in _pairs(root, "state_dict_metadata", view)}
    shapes = {name: _size(value, view) for name, value in items.items()}
    found: dict[str, list[tuple[Numbers, Node]]] = {name: [] for name in items}
    for index, place in _pairs(root, "storage_data", view):
        name, at = _name(_attribute(index, "fqn"), view), _attribute(index, "offset")
        if name not in found:
            raise BadCheckpoint(view.subject, f"stores {name[:80]!a}, which is no item of the state")
        found[name].append((() if at is None else _numbers(at, view), place))
    chunks = {name: _chunks(value, view) for name, value in items.items()}
    regions = (region for name, places in found.items() for region in _regions(name, chunks[name], places, view))
    return Metadata(shapes, tuple(regions))


def _regions(name: str, chunks: Sizes, places: list[tuple[Numbers, Node]], view: FileView) -> Iterator[Region]:
    """In the order of their offsets in the tensor. One that begins at 0 and is alone has all of it."""
    if len({at for at, _ in places}) != len(places):
        raise BadCheckpoint(view.subject, f"{name[:80]!a} has two chunks in one place")
    for at, place in sorted(places, key=lambda one: one[0]):
        if _attribute(place, "transform_descriptors") is not None:
            raise BadCheckpoint(view.subject, f"{name[:80]!a} is stored transformed, as compressed: not supported")
        file, offset, nbytes = (_attribute(place, key) for key in ("relative_path", "offset", "length"))
        (start, length) = _numbers((offset, nbytes), view)
        is_whole = len(places) == 1 and not any(at)
        chunk = "" if is_whole else f"[{','.join(map(str, at))}]"
        yield Region(name, chunk, at, chunks.get(at), _name(file, view), start, length)


def _pairs(root: Node, name: str, view: FileView) -> list[tuple[Node, Node]]:
    found = _attribute(root, name)
    if not isinstance(found, Mapping):
        raise BadCheckpoint(view.subject, f"has no {name}: torch.distributed.checkpoint did not write it")
    return found.pairs


def _size(item: Node, view: FileView) -> Numbers | None:
    """Shape of a tensor; None for an object."""
    size = _attribute(item, "size")
    return None if size is None else _numbers(size, view)


def _chunks(item: Node, view: FileView) -> Sizes:
    """Sizes of the chunks of a tensor, by where they begin; nothing of an object."""
    chunks = _attribute(item, "chunks")
    if not isinstance(chunks, list):
        return {}
    places = ([_attribute(chunk, key) for key in ("offsets", "sizes")] for chunk in chunks)
    return {_numbers(start, view): _numbers(sizes, view) for start, sizes in places}


def _attribute(node: Node, name: str) -> Node:
    return node.state.get(name) if isinstance(node, Call) and isinstance(node.state, Mapping) else None


def _name(value: Node, view: FileView) -> str:
    if type(value) is not str or not value.isprintable() or len(value) > MAX_PATH_CHARACTERS:
        raise BadCheckpoint(view.subject, "names an item or a file by what is no name")
    return value


def _numbers(values: Node, view: FileView) -> Numbers:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise BadCheckpoint(view.subject, "a size or an offset that is no tuple")
    numbers = tuple(value for value in values if type(value) is int and 0 <= value <= MAX_NUMBER)
    if len(numbers) != len(values):
        raise BadCheckpoint(view.subject, "a size, an offset or a length that is no number")
    return numbers
