"""Which tensor of another model is which of ours: by the ends of their names, and by their shapes.

    ours    module.h.0.weight        base_model.model.h.0.base_layer.weight        ema.h.0.weight
    theirs  model.h.0.weight         h.0.weight                                    h.0.weight

A wrong hint costs bytes, never data.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

Path = tuple[str, ...]
Shape = tuple[int, ...]

# What wrappers put into names: torch.compile, FSDP, activation checkpointing, PEFT around the layer that it adapts
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"})
_MIN_PARTS = 2  # that two names share at their ends, unless they are all of one of them: every layer has a "weight"


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor as it is to be found again."""

    path: Path
    shape: Shape

    @property
    def parts(self) -> Path:
        """Of its dotted name, without what wrappers put into it."""
        return tuple(part for part in ".".join(self.path).split(".") if part not in _WRAPPERS)


def counterparts(ours: Sequence[Named], theirs: Sequence[Named]) -> dict[int, int]:
    """Number of a tensor of ours -> number of theirs: the longest end in common, in the same shape.

    Where several have that, whichever stands under what most of ours that are called alike are found under.
    """
    by_end: dict[tuple[Path, Shape], list[int]] = defaultdict(list)
    their_parts = [named.parts for named in theirs]
    for number, parts in enumerate(their_parts):
        for start in range(len(parts)):
            by_end[parts[start:], theirs[number].shape].append(number)
    found: dict[int, tuple[Path, list[tuple[Path, int]]]] = {}  # their prefixes and numbers, under our prefix
    votes: Counter[tuple[Path, Path]] = Counter()
    for number, named in enumerate(ours):
        parts = named.parts
        for start in range(len(parts)):
            end = parts[start:]
            there = [
                (their_parts[other][: -len(end)], other)
                for other in by_end.get((end, named.shape), ())
                if len(end) >= _MIN_PARTS or not start or end == their_parts[other]
            ]
            if there:
                found[number] = parts[:start], there
                votes.update((parts[:start], prefix) for prefix, _ in there)
                break
    return {
        number: max(there, key=lambda each: votes[own, each[0]])[1]  # called at once
        for number, (own, there) in found.items()
    }
