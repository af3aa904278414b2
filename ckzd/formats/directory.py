"""Checkpoints that are directories, as Hugging Face's Trainer writes them: flat, each file on its own.

Tensor files (safetensors, torch.save) are parsed; all others are kept verbatim, or as opaque holes where they are
long. Symbolic links, sub-directories and special files are refused: an archive could not give them back.
"""

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckzd.checkpoint import Checkpoint, FileLayout, Optimizer, TensorSpec
from ckzd.errors import BadCheckpoint, SourceChanged
from ckzd.file_marks import is_unchanged
from ckzd.formats import foreign, sniff
from ckzd.formats.names import POINTER_NAME, TENSOR_SUFFIXES, TRAINER_STATE, is_being_written, step_in_name
from ckzd.formats.parsed import MAX_VERBATIM_BYTES, OPAQUE_HOLE_BYTES, ParsedFile, collect, opaque
from ckzd.formats.source import FileSource, FileView, as_ckzd_errors, closed_on_error, file_stat

MAX_FILES = 10_000
INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True, slots=True)
class Listing:
    """The names in a directory, sorted, and the directory's own stat."""

    path: Path
    names: tuple[str, ...]
    stat: os.stat_result


def list_directory(path: Path) -> Listing:
    """What is in the directory; BadCheckpoint unless it is flat, finished and not yet replaced."""
    with as_ckzd_errors(path):
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise BadCheckpoint(path, "is no directory")
        with os.scandir(path) as entries:
            kinds = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in entries}
    if is_replaced(path):
        raise BadCheckpoint(path, "was replaced by its archive", hint=f"run `ckzd restore {path}` first")
    kinds.pop(POINTER_NAME, None)
    if len(kinds) > MAX_FILES:
        raise BadCheckpoint(path, f"holds {len(kinds)} files, at most {MAX_FILES} are read")
    for name, mode in kinds.items():
        _require_plain(path, name, mode)
    return Listing(path, tuple(sorted(kinds)), found)


def is_replaced(path: Path) -> bool:
    """Whether a pointer stands in this directory for what was in it.

    Not when the checkpoint was saved again, into the directory that was there: then a tensor file is younger than the
    pointer, and so is trainer_state.json, which a trainer writes last.
    """
    pointer = _mtime_ns(path / POINTER_NAME)
    if pointer is None:
        return False
    if (_mtime_ns(path / TRAINER_STATE) or 0) <= pointer:
        return True
    with contextlib.suppress(OSError):
        tensor_files = (name for name in os.listdir(path) if name.endswith(TENSOR_SUFFIXES))  # noqa: PTH208
        return all((_mtime_ns(path / name) or 0) <= pointer for name in tensor_files)
    return True


def _mtime_ns(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return os.lstat(path).st_mtime_ns
    return None


def _require_plain(path: Path, name: str, mode: int) -> None:
    if is_being_written(name):
        raise BadCheckpoint(path, f"{name!a} is still being written, or was left by a writer that died")
    if stat.S_ISLNK(mode) or stat.S_ISDIR(mode):
        kind = "symbolic link" if stat.S_ISLNK(mode) else "sub-directory"
        raise BadCheckpoint(path, f"holds the {kind} {name!a}: not supported", hint="it stays as it is")
    if not stat.S_ISREG(mode) or not is_text(name):
        raise BadCheckpoint(path, f"holds {name!a}, which is no regular file with a name in UTF-8")


def is_text(name: str) -> bool:
    """Whether a name from the file system is UTF-8: a manifest cannot hold another."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def read_directory(path: Path) -> Checkpoint:
    """Read a checkpoint directory. The paths of its tensors begin with the name of their file."""
    listing = list_directory(path)
    with closed_on_error(FileSource([path / name for name in listing.names])) as source:
        views = [source.view(number) for number in range(len(listing.names))]
        require_parts(views)
        step = trainer_step(views)
        checkpoint = _assemble(listing, source, [_parse(view) for view in views], step)
        again = list_directory(path)
        if again.names != listing.names or not is_unchanged(listing.stat, again.stat):
            raise SourceChanged(path, "files came or went while it was read")
        return checkpoint


def _parse(view: FileView) -> ParsedFile:
    """A file by its name and first bytes. What is named like a tensor file and starts like one must be one."""
    if view.name.endswith(TENSOR_SUFFIXES):
        parser = sniff.parser_of(view)
        if parser is not None:
            return parser(view)
    long = view.size > OPAQUE_HOLE_BYTES
    return collect(opaque(("<bytes>",), 0, view.size) if long else (), view.subject, view.size)


def _assemble(listing: Listing, source: FileSource, parsed: Sequence[ParsedFile], step: int | None) -> Checkpoint:
    """Number the tensors of all files through, and put each file's name before its paths."""
    files: list[FileLayout] = []
    tensors: list[TensorSpec] = []
    optimizers: list[Optimizer] = []
    for name, found, one in zip(listing.names, source.stats, parsed, strict=True):
        holes = tuple(replace(hole, tensor=hole.tensor + len(tensors)) for hole in one.holes)
        tensors.extend(replace(tensor, path=(name, *tensor.path)) for tensor in one.tensors)
        optimizers.extend(replace(optimizer, path=(name, *optimizer.path)) for optimizer in one.optimizers)
        files.append(FileLayout(name, found.st_size, file_stat(listing.path / name, found), holes))
    verbatim = sum(layout.size for layout in files) - sum(tensor.nbytes for tensor in tensors)
    if not tensors or verbatim > MAX_VERBATIM_BYTES:
        problem = f"{verbatim} bytes besides its tensors, at most {MAX_VERBATIM_BYTES} are read"
        raise BadCheckpoint(listing.path, problem if tensors else "holds no tensor file that ckzd can read")
    return Checkpoint(
        name=listing.path.name,
        is_directory=True,
        stat=file_stat(listing.path, listing.stat),
        step=step_in_name(listing.path.name) if step is None else step,
        files=tuple(files),
        tensors=tuple(tensors),
        optimizers=tuple(optimizers),
        source=source,
    )


def trainer_step(views: Sequence[FileView]) -> int | None:
    """`global_step` of trainer_state.json; None if there is no such file."""
    for view in views:
        if view.name == TRAINER_STATE:
            step = read_json(view).get("global_step")
            if type(step) is not int or not 0 <= step < 1 << 62:
                raise BadCheckpoint(view.subject, f"global_step is {str(step)[:40]!a}")
            return step
    return None


def require_parts(views: Sequence[FileView]) -> None:
    """Every shard that an index names is there."""
    names = {view.name for view in views}
    for view in views:
        if view.name.endswith(INDEX_SUFFIX):
            parts = read_json(view).get("weight_map", {})
            parts = set(parts.values()) if isinstance(parts, dict) and all(map(_is_str, parts.values())) else {"?"}
            if missing := sorted(parts - names):
                raise BadCheckpoint(view.subject, f"names {missing[0][:80]!a}, which is not there")


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


def read_json(view: FileView) -> dict[str, Any]:
    """A JSON object; BadCheckpoint if it is cut off, too long or something else."""
    if view.size > foreign.MAX_JSON_BYTES:
        raise BadCheckpoint(view.subject, f"JSON of {view.size} bytes, at most {foreign.MAX_JSON_BYTES} are read")
    try:
        return foreign.json_object(view.read(0, view.size))
    except ValueError as error:
        problem = f"no JSON object: cut off, or still being written ({str(error)[:80]})"
        raise BadCheckpoint(view.subject, problem) from error
