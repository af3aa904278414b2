"""A checkpoint of a framework with the directories in it, which may be of others: FSDP's and DeepSpeed's in Trainer's.

Each directory is read by whoever wrote it, file by file where nobody is known, and all of them are one checkpoint.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ckzd.checkpoint import Hole, Optimizer, TensorSpec
from ckzd.formats.frameworks import framework_by_names
from ckzd.formats.frameworks.framework import Framework, ParsedDirectory
from ckzd.formats.frameworks.hugging_face import HUGGING_FACE, require_files
from ckzd.formats.listing import Listing
from ckzd.formats.names import labelled_step, without_numbers
from ckzd.formats.parsed import unique_paths
from ckzd.formats.source import FileView, as_ckzd_errors


@dataclass(frozen=True, slots=True)
class _Part:
    """A directory of the checkpoint, by its relative name, with what is directly in it."""

    folder: str
    reader: Framework
    is_known: bool  # to a framework; else each file is on its own
    files: tuple[int, ...]  # numbers in the listing


def require_complete(listing: Listing, views: Sequence[FileView]) -> None:
    """Raise CkzdError, saying what is missing, while one of its directories is not finished."""
    listings = listing.parts()
    for part in _parts(listing):
        own = [views[number] for number in part.files]
        if part.is_known or not part.folder:
            part.reader.require_complete(listings[part.folder], own)
        else:
            require_files(listings[part.folder], own)


def read(listing: Listing, views: Sequence[FileView]) -> ParsedDirectory:
    """The tensors of all directories; their paths begin with the directory's name, less the step that it may tell.

    Those that a framework wrote come before the files beside them: of two weights by one name an optimizer's is meant.
    """
    parts = [part for part in _parts(listing) if part.files or not part.folder]
    parsed = {part.folder: part.reader.read([views[number] for number in part.files]) for part in parts}
    if len(parsed) == 1:
        return parsed[""]
    tensors: list[TensorSpec] = []
    optimizers: list[Optimizer] = []
    holes: dict[int, tuple[Hole, ...]] = {}
    for part in sorted(parts, key=lambda part: not (part.folder and part.is_known)):
        one, before = parsed[part.folder], tuple(_stable(part.folder))
        for number, found in zip(part.files, one.holes, strict=True):
            holes[number] = tuple(replace(hole, tensor=hole.tensor + len(tensors)) for hole in found)
        tensors += (replace(tensor, path=(*before, *tensor.path)) for tensor in one.tensors)
        optimizers += (replace(optimizer, path=(*before, *optimizer.path)) for optimizer in one.optimizers)
    return ParsedDirectory(
        tuple(unique_paths(_as_optimizers_name_them(tensors, optimizers))),
        tuple(holes[number] for number in range(len(views))),
        tuple(optimizers),
        next((one.step for one in parsed.values() if one.step is not None), None),
    )


def _parts(listing: Listing) -> list[_Part]:
    """In the order of their names; the top is the first."""
    numbers: dict[str, list[int]] = {folder: [] for folder in listing.folders}
    for number, name in enumerate(listing.names):
        numbers[name.rpartition("/")[0]].append(number)
    found = []
    for folder, files in numbers.items():
        with as_ckzd_errors(listing.path / folder):
            framework = framework_by_names(listing.path / folder)
        found.append(_Part(folder, framework or HUGGING_FACE, framework is not None, tuple(files)))
    return found


def _stable(folder: str) -> Iterator[str]:
    """The names in a relative one, alike in all checkpoints of a run: `global_step10` is called after its step."""
    for name in folder.split("/"):
        if name:
            yield without_numbers(name)[0] if labelled_step(name) is not None else name


def _as_optimizers_name_them(tensors: Sequence[TensorSpec], optimizers: Sequence[Optimizer]) -> Iterator[TensorSpec]:
    """With the weight's name last where an optimizer of another directory knows it by the end of a longer one.

    FSDP's model says `model.layers.0.weight`, its optimizer `layers.0.weight`. Numbers are no names.
    """
    ids = {key for optimizer in optimizers for group in optimizer.groups for key in group.ids}
    known = {key for key in ids if not key.isdecimal()}
    states = {optimizer.path for optimizer in optimizers}
    for tensor in tensors:
        *before, name = tensor.path
        pieces = name.split(".")
        ends = ((".".join(pieces[:n]), ".".join(pieces[n:])) for n in range(1, len(pieces)))
        start, end = next((found for found in ends if found[1] in known), ("", ""))
        is_state = any(tensor.path[: len(path)] == path for path in states)
        yield replace(tensor, path=(*before, start, end)) if end and not is_state and name not in known else tensor
