"""Which reference tensors a part of a checkpoint restores from, archive by archive along its chain: a few of all.

A tensor needs itself in the reference; its archive says which others it follows. So one look at all indexes, and the
decoder leaves out the rest.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeVar

from ckzd.codec.records.index import Index
from ckzd.codec.records.layout import layer_before
from ckzd.codec.records.reconstruction import Key

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Followed:
    """Of one archive: the reference tensors that others follow, by the path of these; all else stands for itself.

    With `sees_layers` a tensor's contexts may see the one of the layer before in the reference, too: an LSTM's do.
    """

    paths: Mapping[Key, Sequence[Key]]
    sees_layers: bool

    @classmethod
    def of(cls, index: Index, *, sees_layers: bool) -> "Followed":
        """As an index says."""
        path_of: list[Key] = [tensor.path for tensor in index.layout.tensors]
        found: dict[Key, list[Key]] = defaultdict(list)
        for number in index.layout.reference_tensors:
            for other in _others(index, number):
                found[path_of[number]].append(path_of[other])
        return cls(found, sees_layers)

    def closed(self, paths: Iterable[Key]) -> frozenset[Key]:
        """These and all that they follow."""
        return frozenset(_reached(paths, lambda path: self.paths.get(path, ())))

    def in_reference(self, paths: AbstractSet[Key]) -> AbstractSet[Key]:
        """What these need of the reference."""
        layers = map(layer_before, paths) if self.sees_layers else ()
        return paths | {path for path in layers if path is not None}


def needed(chain: Sequence[Followed], last: Index, tensors: Iterable[int]) -> list[AbstractSet[Key]]:
    """What these tensors of the last archive need of each archive, base first: paths of its reference tensors."""
    paths: AbstractSet[Key] = chain[-1].closed(_directly(last, tensors))
    found = [paths]
    for before, link in zip(chain[-2::-1], reversed(chain), strict=False):
        paths = before.closed(link.in_reference(paths))
        found.append(paths)
    return found[::-1]


def _directly(index: Index, tensors: Iterable[int]) -> Iterator[Key]:
    """The reference tensors among these, those of the weights whose moments are, and of what any is a copy of."""
    kept = frozenset(index.layout.reference_tensors)
    weights = {number: triple.weight for triple in index.layout.triples for number in triple.moments}

    def next_to(number: int) -> Iterator[int]:
        yield from _others(index, number)
        if number in weights:
            yield weights[number]

    return (index.layout.tensors[number].path for number in _reached(tensors, next_to) if number in kept)


def _reached(starts: Iterable[T], next_to: Callable[[T], Iterable[T]]) -> set[T]:
    """What is reached from these, step by step."""
    found: set[T] = set()
    pending = list(starts)
    while pending:
        one = pending.pop()
        if one not in found:
            found.add(one)
            pending += next_to(one)
    return found


def _others(index: Index, number: int) -> Iterator[int]:
    """Of the same archive, whose values it restores from."""
    if index.codes[number].other >= 0:
        yield index.codes[number].other
    if number in index.predictions:
        yield index.predictions[number].other
