"""What ckzd asks of a framework about a directory, and reading a directory file by file."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from ckzd.checkpoint import Hole, Optimizer, TensorSpec
from ckzd.formats import sniff
from ckzd.formats.listing import Listing
from ckzd.formats.names import TENSOR_SUFFIXES
from ckzd.formats.parsed import OPAQUE_HOLE_BYTES, ParsedFile, collect, opaque
from ckzd.formats.source import FileView


@dataclass(frozen=True, slots=True)
class ParsedDirectory:
    """The tensors of all files, and the holes of each file in the order of the files."""

    tensors: tuple[TensorSpec, ...]
    holes: tuple[tuple[Hole, ...], ...]
    optimizers: tuple[Optimizer, ...] = ()
    step: int | None = None


Says = Callable[[Path], list[str] | None]  # what a checkpoint calls its best ones; None: it cannot be read
Protected = Callable[[Path, Sequence[Path], Says], Mapping[str, str]]


def protects_nothing(_run: Path, _checkpoints: Sequence[Path], _says: Says) -> Mapping[str, str]:
    """Of a framework that says nothing of its checkpoints but by markers and links."""
    return {}


@dataclass(frozen=True, slots=True)
class Framework:
    """Whose checkpoints are directories of one kind.

    `recognises(path, names, folders)` tells them by the names in them, finished or not; `folders` are those of
    directories. `require_complete(listing, views)` raises CkzdError, saying what is missing, while one is not finished.
    It is cheap: that all parses whole is for `read(views)` to find, which raises BadCheckpoint. `protected(run,
    checkpoints, says)` names the checkpoints of a run that it comes back to, each with what says so: these are never
    replaced.
    """

    kind: str
    recognises: Callable[[Path, AbstractSet[str], AbstractSet[str]], bool]
    require_complete: Callable[[Listing, Sequence[FileView]], None]
    read: Callable[[Sequence[FileView]], ParsedDirectory]
    protected: Protected = protects_nothing


def parse_file(view: FileView) -> ParsedFile:
    """A file by its name and first bytes. What is named like a tensor file and starts like one must be one."""
    if view.name.endswith(TENSOR_SUFFIXES):
        parser = sniff.parser_of(view)
        if parser is not None:
            return parser(view)
    long = view.size > OPAQUE_HOLE_BYTES
    return collect(opaque(("<bytes>",), 0, view.size) if long else (), view.subject, view.size)


def together(names: Sequence[str], parsed: Sequence[ParsedFile]) -> ParsedDirectory:
    """Number the tensors of all files through, and put each file's name, if it is given one, before its paths."""
    tensors: list[TensorSpec] = []
    optimizers: list[Optimizer] = []
    holes: list[tuple[Hole, ...]] = []
    for name, one in zip(names, parsed, strict=True):
        start = (name,) if name else ()
        holes.append(tuple(replace(hole, tensor=hole.tensor + len(tensors)) for hole in one.holes))
        tensors.extend(replace(tensor, path=(*start, *tensor.path)) for tensor in one.tensors)
        optimizers.extend(replace(optimizer, path=(*start, *optimizer.path)) for optimizer in one.optimizers)
    return ParsedDirectory(tuple(tensors), tuple(holes), tuple(optimizers))


def require_ends(views: Sequence[FileView]) -> None:
    """The cheap test of every tensor file: its writer has come to its end."""
    for view in views:
        if view.name.endswith(TENSOR_SUFFIXES) and sniff.parser_of(view) is not None:
            sniff.require_end(view)
