"""Files of one step in one directory that are one checkpoint: a model, and what its optimizer keeps beside it.

    model_100.pt  optimizer_100.pt        one: the states have the shapes of the weights, and the names if they say them
    net_5.pt  net_ema_5.pt  optim_5.pt    one: an average of the same tensors belongs to its model
    G_5.pt  optG_5.pt  D_5.pt  optD_5.pt  two: where shapes fit several models, names decide
    G_5.pt  D_5.pt                        no one: each has an optimizer of its own inside, or none has
    ... scheduler_5.pt  rng_5.pt          small files without weights go with the only one of their step

What cannot be decided is no part of another: each file is a checkpoint of its own.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ckzd.checkpoint import STORED_AS, Checkpoint, FileLayout, TensorSpec
from ckzd.errors import CkzdError, SourceChanged
from ckzd.file_marks import is_unchanged
from ckzd.formats import sniff
from ckzd.formats.frameworks.framework import together
from ckzd.formats.listing import is_text
from ckzd.formats.names import averaged, family, number_of_model, series_in_name, step_in_name, updates_in_name
from ckzd.formats.parsed import ParsedFile, unique_paths
from ckzd.formats.source import FileSource, closed_on_error, file_stat
from ckzd.formats.units import look_into

MIN_ELEMENTS = 128  # smaller tensors tell nothing: every model has some
MAX_SMALL_BYTES = 4 << 20  # of a file without weights that goes with others: schedulers, random states
MAX_FILES = 32  # of one step that are looked at
_ENOUGH, _ENOUGH_OF_SEVERAL = 0.5, 0.9  # of its model's elements an optimizer has states of, at least

Shapes = Counter[tuple[int, ...]]


@dataclass(frozen=True)
class _File:
    """A file of the step, and what is in it."""

    name: str
    size: int
    parsed: ParsedFile

    @cached_property
    def weights(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        """Path -> shape of the floats that are under no optimizer."""
        paths = {optimizer.path for optimizer in self.parsed.optimizers}
        return {
            tensor.path: tensor.shape
            for tensor in filter(_is_large, self.parsed.tensors)
            if not any(tensor.path[:depth] in paths for depth in range(len(tensor.path) + 1))
        }

    @cached_property
    def states(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        """Optimizer and name (or number) of each parameter -> shape of what is kept of it, the largest."""
        paths = {optimizer.path for optimizer in self.parsed.optimizers}
        shapes: dict[tuple[str, ...], tuple[int, ...]] = {}  # of the largest, by the path of a parameter's state
        for tensor in filter(_is_large, self.parsed.tensors):
            for depth in (n for n, key in enumerate(tensor.path) if key == "state" and tensor.path[:n] in paths):
                start = tensor.path[: depth + 2]
                if math.prod(tensor.shape) > math.prod(shapes.get(start, (0,))):
                    shapes[start] = tensor.shape
        return {
            (*optimizer.path, name): shapes[start]
            for optimizer in self.parsed.optimizers
            for group in optimizer.groups
            for key, name in zip(group.ids, group.names or group.ids, strict=True)
            if (start := (*optimizer.path, "state", key)) in shapes
        }

    @property
    def is_small(self) -> bool:
        return not (self.weights or self.states) and self.size <= MAX_SMALL_BYTES


def _is_large(tensor: TensorSpec) -> bool:
    return tensor.dtype in STORED_AS and tensor.elements >= MIN_ELEMENTS


def read_with_others(path: Path) -> Checkpoint | None:
    """The checkpoint of several files that the file at `path` is one of; None where it is one by itself.

    BadCheckpoint if the file is damaged, SourceChanged if any of them moved meanwhile. The others' paths begin with
    what their names have in common from step to step; the model's are as in a file of its own.
    """
    others = _of_its_step(path)
    if len(others) < 2:
        return None
    with closing(FileSource(others)) as source:
        files = list(_read(source, path))
        chosen = next((group for group in groups_of(files) if path.name in {file.name for file in group}), None)
        if chosen is None:
            return None
        before = dict(zip(source.paths, source.stats, strict=True))
    with closed_on_error(FileSource([path.with_name(file.name) for file in chosen])) as members:
        for place, found in zip(members.paths, members.stats, strict=True):
            if not is_unchanged(before[place], found):
                raise SourceChanged(place, "was replaced or written to while it was read")
        return _assemble(members, chosen)


def _of_its_step(path: Path) -> list[Path]:
    """The file, and those others that may be of the same checkpoint, by their names."""
    step, model = step_in_name(path.name), number_of_model(path.name)
    others = [
        other
        for other in look_into(path.parent).checkpoints
        if other != path and step_in_name(other.name) == step and number_of_model(other.name) == model
        if (step is not None or family(other.name) == family(path.name)) and is_text(other.name) and not other.is_dir()
    ]
    if not is_text(path.name):
        others = []
    return [path, *others] if len(others) < MAX_FILES else [path]


def _read(source: FileSource, wanted: Path) -> Iterator[_File]:
    for number, place in enumerate(source.paths):
        try:
            yield _File(place.name, source.stats[number].st_size, sniff.parse(source.view(number)))
        except CkzdError:
            if place == wanted:
                raise


def groups_of(files: Sequence[_File]) -> list[tuple[_File, ...]]:
    """The checkpoints of several files among the files of one step: the models first, each file in one at most."""
    files = sorted(files, key=lambda file: file.name)
    models = [file for file in files if file.weights and not file.parsed.optimizers and not averaged(file.name)]
    groups: dict[str, list[_File]] = {model.name: [model] for model in models}
    optimizers = [file for file in files if file.states and not file.weights]
    homeless = []
    for optimizer in optimizers:
        model = _only([model for model in models if _fits(optimizer, [model], groups[model.name])], optimizer)
        if model is None:
            homeless.append(optimizer)
        else:
            groups[model.name].append(optimizer)
    alone = [model for model in models if len(groups[model.name]) == 1]
    if len(homeless) == len(optimizers) == 1 and len(models) == len(alone) > 1 and _fits(homeless[0], models, ()):
        groups = {models[0].name: [*models, homeless[0]]}  # one optimizer of several parts of a model
    for file in files:
        if averaged(file.name) and file.weights and not file.parsed.optimizers:
            shapes = Counter(file.weights.values())
            same = [model for model in models if model.name in groups and Counter(model.weights.values()) == shapes]
            if (model := _only(same, file)) is not None:
                groups[model.name].append(file)
    found = [group for group in groups.values() if len(group) > 1]
    for file in files:
        if file.is_small and found:
            same = [group[0] for group in found]
            if (model := _only(same, file)) is not None:
                groups[model.name].append(file)
    return [_in_order(group) for group in found]


def _only(models: Sequence[_File], other: _File) -> _File | None:
    """The one that another file belongs to, by its name where there are several; None where that does not tell."""
    if len(models) > 1:
        models = [model for model in models if family(model.name) == family(other.name)]
    return models[0] if len(models) == 1 else None


def _in_order(group: Sequence[_File]) -> tuple[_File, ...]:
    """Models, their averages, optimizers, all else: what others are told by comes first."""
    return tuple(sorted(group, key=lambda file: (not file.weights, averaged(file.name), not file.states)))


def _fits(optimizer: _File, models: Sequence[_File], others: Sequence[_File]) -> bool:
    """Whether the optimizer's states may be those of the models' weights, beside the optimizers among the `others`."""
    weights = [item for model in models for item in model.weights.items()]
    shapes: Shapes = Counter(shape for _, shape in weights)
    states: Shapes = Counter(shape for file in (optimizer, *others) for shape in file.states.values())
    is_told = len(models) == 1 and family(models[0].name) == family(optimizer.name)
    if not states <= shapes or not (is_told or _is_enough(optimizer, models, others)):
        return False
    if all(name.isdecimal() for *_, name in optimizer.states):
        if len(models) == 1 and states != shapes and not is_told and family(optimizer.name) and family(models[0].name):
            return False  # the names are of two models, and shapes that some of one have prove nothing
        return len(models) == 1 or all(states & Counter(model.weights.values()) for model in models)
    named = {path[-1]: shape for path, shape in reversed(weights)}
    return all(named.get(name) == shape for (*_, name), shape in optimizer.states.items())


def _is_enough(optimizer: _File, models: Sequence[_File], others: Sequence[_File]) -> bool:
    """Whether it is more than a few tensors of common shapes, and of several models more than one's.

    A second optimizer may have few: of what is no matrix.
    """
    of_weights = sum(math.prod(shape) for model in models for shape in model.weights.values())
    of_states = sum(map(math.prod, optimizer.states.values()))
    share = _ENOUGH if len(models) == 1 else _ENOUGH_OF_SEVERAL
    return any(other.states for other in others) or of_states >= share * of_weights


def _assemble(source: FileSource, files: Sequence[_File]) -> Checkpoint:
    first, *others = files
    keys = ["", *(series_in_name(file.name) for file in others)]
    found = together(keys, [file.parsed for file in files])
    step = next((file.parsed.step for file in files if file.parsed.step is not None), None)
    return Checkpoint(
        name=first.name,
        is_directory=False,
        stat=None,
        step=step_in_name(first.name) if step is None else step,
        files=tuple(
            FileLayout(file.name, stat.st_size, file_stat(path, stat), holes)
            for file, path, stat, holes in zip(files, source.paths, source.stats, found.holes, strict=True)
        ),
        tensors=tuple(unique_paths(found.tensors)),
        optimizers=found.optimizers,
        source=source,
        updates=updates_in_name(first.name) if step is None else step,
    )
