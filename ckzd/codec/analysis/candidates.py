"""Which of a checkpoint's weights an optimizer of so many may hold, and in which order: what names and places say.

An optimizer holds all weights, all but buffers, those not frozen, or those of one module or state dict. A model's
average has the same shapes and often the same names: what is called one comes last.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from ckzd.codec.analysis.inputs import Inputs

_BUFFER = re.compile(r"(?:^|\.)running_(?:mean|var)$")  # batch norm's: float tensors of a model that nobody optimizes
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:\.|$)|_norm(?:\.|$)", re.IGNORECASE)
_AVERAGE = re.compile(
    r"(?:^|[._])(?:ema|swa|avg|averaged?|shadow|polyak|teacher|target|momentum)(?:[._]|$)", re.IGNORECASE
)
_MOST_RESTS = 4  # modules that all weights are taken without: each is a look at all weights


def is_buffer(inputs: Inputs, number: int) -> bool:
    """Whether a tensor is called as a batch norm's statistics are."""
    return _BUFFER.search(inputs.tensor(number).path[-1]) is not None


def has_changed(inputs: Inputs, number: int) -> bool:
    """Whether a tensor, by its first tile, is in the reference with other bytes."""
    tiles, contents = inputs.tiles[number], inputs.contents.tensors
    return any(not contents[tile].is_same and inputs.before(tile) is not None for tile in tiles)


def averages_among(inputs: Inputs, numbers: Iterable[int]) -> int:
    """How many of them are called an average of a weight, or another model's that follows it."""
    return sum(_AVERAGE.search(_name(inputs, number)) is not None for number in numbers)


def without_averages(inputs: Inputs, numbers: Sequence[int]) -> list[int]:
    """What is left of them without those."""
    return [number for number in numbers if not averages_among(inputs, [number])]


def candidates(inputs: Inputs, weights: Sequence[int], count: int) -> Iterator[list[int]]:
    """What an optimizer of `count` parameters may hold: first whole pools, then parts of them. None twice."""
    trained = [number for number in weights if not is_buffer(inputs, number)]
    moved = [number for number in trained if has_changed(inputs, number)]
    seen: set[tuple[int, ...]] = set()
    for pool in (weights, trained, moved):
        for found in (pool, *_modules(inputs, pool, count)):
            if len(found) == count and tuple(found) not in seen:
                seen.add(tuple(found))
                yield list(found)


def _modules(inputs: Inputs, pool: Sequence[int], count: int) -> Iterator[list[int]]:
    """Modules of so many weights in the order of the pool, then what is left of it without one module."""
    # a module that has all of the one above it is that one again
    sizes = Counter(prefix for number in pool for prefix in _prefixes(_name(inputs, number)))
    inner = {end: size for end, size in sizes.items() if sizes.get(_above(end), len(pool)) != size}
    within: dict[str, list[int]] = {prefix: [] for prefix, size in inner.items() if size == count}
    rests = sorted((prefix for prefix, size in inner.items() if len(pool) - size == count), key=_is_no_average)
    for number in pool:
        for prefix in _prefixes(_name(inputs, number)):
            if prefix in within:
                within[prefix].append(number)
    yield from within.values()
    for prefix in rests[:_MOST_RESTS]:
        yield [number for number in pool if not _name(inputs, number).startswith(prefix + ".")]


def _name(inputs: Inputs, number: int) -> str:
    return ".".join(inputs.tensor(number).path)


def _prefixes(name: str) -> Iterator[str]:
    return (name[: dot.start()] for dot in re.finditer(r"\.", name))


def _above(prefix: str) -> str:
    return prefix.rpartition(".")[0]


def _is_no_average(prefix: str) -> bool:
    return _AVERAGE.search(prefix) is None


def by_names(inputs: Inputs, weights: Iterable[int], names: Sequence[str]) -> Iterator[list[int]]:
    """Weights that are called as an optimizer calls them, in its order, behind whatever all of them have in common."""
    wanted = set(names)
    called: dict[str, dict[str, int]] = {}  # what stands before it -> name -> weight
    for number in weights:
        name = _name(inputs, number)
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if name[start:] in wanted:
                called.setdefault(name[:start], {}).setdefault(name[start:], number)
    for found in called.values():
        if len(found) == len(wanted):
            yield [found[name] for name in names]


def orders(inputs: Inputs, weights: Sequence[int]) -> Iterator[list[int]]:
    """In which frameworks give them to an optimizer."""
    rules: tuple[Callable[[int], bool], ...] = (
        lambda _: True,
        lambda n: _NO_DECAY.search(inputs.tensor(n).path[-1]) is None,
        lambda n: len(inputs.tensor(n).shape) >= 2,
        lambda n: len(inputs.tensor(n).shape) < 2,
    )
    natural = sorted(weights, key=lambda n: [_natural(part) for part in inputs.tensor(n).path])
    for order in (list(weights), natural):
        for rule in rules:
            yield [n for n in order if rule(n)] + [n for n in order if not rule(n)]


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(run), "") if run.isdecimal() else (-1, run) for run in re.split(r"(\d+)", text)]
