"""Whether a model that is named is what a checkpoint was trained from, and what is noted before an archive needs it.

Whatever speaks against it is said, and the archive becomes a base: a disk that is not mounted stops no run.
"""

import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ckzd.archive import NamedFile, NamedModel
from ckzd.archive.manifest import MAX_MODEL_FILES
from ckzd.base_models import is_part_of, known_sha256, note, require, require_plain_name
from ckzd.checkpoint import Checkpoint
from ckzd.codec.analysis.nearness import NEAR, nearness
from ckzd.errors import BadCheckpoint, ConfigError, SourceChanged
from ckzd.file_marks import Mark
from ckzd.formats import read_checkpoint
from ckzd.formats.source import FileSource
from ckzd.operations.base_model import ModelTensors, matched, only_files_in_use
from ckzd.store import Store

# Of a directory's files: the first kind that it has. Hugging Face's, then what torch.save writes.
PATTERNS = (r".+\.safetensors", r".+\.bin", r".+\.(pt|pth|ckpt)")

_NAME_ANOTHER = "name the model that the run began from, or none: without one the first archive is a base"
_NOT_THERE = "check the path, and whether its disk is mounted"


@dataclass(frozen=True, slots=True)
class Located:
    """A model as it is found: where, links resolved, and its files by name."""

    path: Path
    kind: Literal["file", "directory"]
    files: dict[str, Path]  # where each really lies


@dataclass(frozen=True, slots=True)
class TrainedFrom:
    """What the first archive of a run is a delta against. Its archives may need it from now on: that is noted."""

    named: NamedModel
    tensors: ModelTensors

    def require_in_place(self) -> None:
        """Raise SourceChanged unless all of it stands where it is named, as it was: asked last before it is needed.

        Whoever replaces a file looks for notes after it was moved: one of the two sees the other.
        """
        for file, path, status in zip(
            self.named.files, self.tensors.source.paths, self.tensors.source.stats, strict=True
        ):
            named, now = self.named.path_of(file), None
            with suppress(OSError):
                now = path.lstat()
            if os.path.realpath(named) != str(path) or now is None or Mark.of(now) != Mark.of(status):
                raise SourceChanged(named, "the base model was moved or written to while an archive was made of it")


@contextmanager
def trained_from(checkpoint: Checkpoint, path: Path, place: Path, store: Store) -> Iterator[TrainedFrom]:
    """What of the model at `place` the checkpoint at `path` was trained from. Notes that the store needs it.

    Raises ConfigError, BadCheckpoint or SourceChanged where it is not there, no model, the checkpoint itself, or far.
    """
    located = locate(place)
    own, is_directory = (path, *checkpoint.places(path)), located.kind == "directory"
    if any(is_part_of(Path(os.path.realpath(one)), located.path, is_directory=is_directory) for one in own):
        problem = f"expected a model that was trained before, got {place}, of which {path} is part"
        raise ConfigError("base_model", problem, hint=_NAME_ANOTHER)
    with _trained_from(checkpoint, located, store) as found:
        yield found


@contextmanager
def trained_from_again(checkpoint: Checkpoint, archive: Path, named: NamedModel, store: Store) -> Iterator[TrainedFrom]:
    """What a checkpoint was trained from of the model that its archive named. MissingBaseModel where that is away."""
    paths = require(archive, named)
    files = {file.name: path for file, path in zip(named.files, paths, strict=True)}
    with _trained_from(checkpoint, Located(Path(named.path), named.kind, files), store) as found:
        yield found


@contextmanager
def _trained_from(checkpoint: Checkpoint, located: Located, store: Store) -> Iterator[TrainedFrom]:
    names, paths = list(located.files), list(located.files.values())
    found = matched(checkpoint, paths)
    if not found:
        raise ConfigError("base_model", f"{located.path} shares no tensor with {checkpoint.name}", hint=_NAME_ANOTHER)
    used, placed = only_files_in_use(found)
    source = FileSource([paths[number] for number in used])
    try:
        tensors = ModelTensors(source, placed)
        distance = nearness(checkpoint, tensors)
        if not distance < NEAR:
            far = "shares too few tensors" if math.isinf(distance) else f"differs by {distance:.2g} of its energy"
            problem = f"{located.path} is another model than {checkpoint.name}'s: it {far}"
            raise ConfigError("base_model", problem, hint=_NAME_ANOTHER)
        yield TrainedFrom(_noted(located, [names[number] for number in used], source, store), tensors)
    finally:
        source.close()


def _noted(located: Located, names: list[str], source: FileSource, store: Store) -> NamedModel:
    """Its identity, which the store remembers from now on."""
    marks = tuple(map(Mark.of, source.stats))
    files = []
    for name, path, mark in zip(names, source.paths, marks, strict=True):
        files.append(NamedFile(name=name, size=mark.size, sha256=known_sha256(store.root, path, mark)))
        if Mark.of(path.lstat()) != mark:
            raise SourceChanged(path, "was written to while it was read")
    named = NamedModel(path=str(located.path), kind=located.kind, files=files)
    note(store.root, named, marks)
    return named


def locate(place: Path) -> Located:
    """The files of a model: itself, or those of a directory that can be read. ConfigError if there are none.

    Links are followed, as a snapshot of Hugging Face's cache has nothing else; only regular files are opened.
    """
    real = Path(os.path.realpath(place))
    require_plain_name(real)
    try:
        status = real.stat()
    except FileNotFoundError:
        problem = f"expected a file or a directory, got {place}, which is not there"
        raise ConfigError("base_model", problem, hint=_NOT_THERE) from None
    if stat.S_ISREG(status.st_mode):
        return Located(real, "file", {real.name: real})
    if not stat.S_ISDIR(status.st_mode):
        problem = f"expected a file or a directory, got {place}, which is neither"
        raise ConfigError("base_model", problem, hint=_NOT_THERE)
    files = _files_in(real)
    if not files:
        raise ConfigError("base_model", f"expected files of tensors, got none in {place}", hint=_NOT_THERE)
    return Located(real, "directory", files)


def _files_in(directory: Path) -> dict[str, Path]:
    names = sorted(name for name in os.listdir(directory) if not name.startswith("."))  # noqa: PTH208  # names, no paths
    for pattern in PATTERNS:
        there = [name for name in names if re.fullmatch(pattern, name, re.DOTALL)]
        for name in there:
            require_plain_name(directory / name)
        if len(there) > MAX_MODEL_FILES:
            problem = f"expected at most {MAX_MODEL_FILES} files, got {len(there)} in {directory}"
            raise ConfigError("base_model", problem, hint="name a directory that holds the model alone")
        found = {name: Path(os.path.realpath(directory / name)) for name in there}
        readable = {name: path for name, path in found.items() if _holds_tensors(path)}
        if readable:
            return readable
    return {}


def _holds_tensors(path: Path) -> bool:
    """Whether it is a checkpoint: what lies beside (training_args.bin, a pipe) is none."""
    with suppress(BadCheckpoint, SourceChanged):
        checkpoint = read_checkpoint(path)
        checkpoint.source.close()
        return bool(checkpoint.tensors)
    return False
