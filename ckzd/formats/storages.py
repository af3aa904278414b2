"""The tensors in the storages of a file that torch wrote, whatever it keeps them in."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ckzd.checkpoint import Optimizer
from ckzd.errors import BadCheckpoint
from ckzd.fingerprints import Fingerprint
from ckzd.formats.flat_states import parted_alike
from ckzd.formats.parsed import Found
from ckzd.formats.source import FileView
from ckzd.formats.survey import StorageUse, Survey, most_updates
from ckzd.formats.tree import Node, TensorRef
from ckzd.formats.views import Part, parts_of, whole


@dataclass(frozen=True, slots=True)
class Place:
    """The bytes [offset, offset + nbytes) of the file, and where the file repeats their CRC-32, if it does.

    Of a file with one storage also what follows from it.
    """

    offset: int
    nbytes: int
    crc_offsets: tuple[int, ...] = ()
    fingerprint: Fingerprint | None = None


def tensors_in(
    facts: Survey, places: Mapping[str, Place], view: FileView, subject: str
) -> tuple[list[Found], tuple[Optimizer, ...]]:
    """The tensors of all storages that any refers to, in the order of the pickle, and the optimizers of these.

    `view` is of the file that the places are in: how often an optimizer moved its weights is read there.
    """
    parts: dict[str, list[Part]] = {}
    paths = frozenset(optimizer.path for optimizer in facts.optimizers)
    for key, use in facts.uses.items():
        _require_size(use, places[key], subject)
        parts[key] = parts_of(use, places[key].nbytes, paths, subject)

    seen: dict[tuple[str, int, int], bytes] = {}  # a pickle may name one counter a thousand times

    def read(tensor: TensorRef) -> bytes:
        key, nbytes = tensor.storage.key, tensor.element_bytes
        if (key, tensor.offset, nbytes) not in seen:
            seen[key, tensor.offset, nbytes] = view.read(places[key].offset + tensor.offset * nbytes, nbytes)
        return seen[key, tensor.offset, nbytes]

    optimizers = tuple(_counted(one, facts.counters.get(one.path, ()), read) for one in facts.optimizers)
    if any(offset < places[key].offset for key in parts for offset in places[key].crc_offsets):
        for key, some in parts.items():  # what a restore writes first would wait for what comes last
            parts[key] = some if len(some) == 1 else [whole(facts.uses[key], places[key].nbytes, subject)]
    else:
        parts, optimizers = parted_alike(parts, optimizers)
    placed = [each for key, some in parts.items() for each in zip(some, _found(some, places[key]), strict=True)]
    return [found for _, found in sorted(placed, key=lambda each: each[0].place)], optimizers


def _counted(optimizer: Optimizer, counters: Iterable[Node], read: Callable[[TensorRef], bytes]) -> Optimizer:
    """With the number of its updates."""
    updates = most_updates(counters, read)
    return replace(optimizer, groups=tuple(replace(group, updates=updates) for group in optimizer.groups))


def _found(parts: Sequence[Part], place: Place) -> Iterator[Found]:
    """Where the parts of a storage lie; its CRC-32s stand with the last."""
    shared = place.offset if len(parts) > 1 else None
    for part in parts:
        further = (place.crc_offsets, place.fingerprint) if part is parts[-1] else ((), None)
        yield Found(part.tensor, place.offset + part.start, further[0], shared, further[1])


def _require_size(use: StorageUse, place: Place, subject: str) -> None:
    expected = use.ref.elements * use.ref.element_bytes
    if use.ref.element_bytes and expected != place.nbytes:
        raise BadCheckpoint(subject, f"storage {use.ref.key[:80]!a}: expected {expected} bytes, got {place.nbytes}")
