"""What in a directory is one checkpoint, what is part of a larger one, and what is left alone, and why.

A checkpoint is replaced whole or not at all. Known whole are single files and the directories that `frameworks` reads.
Directories and files that bear the marks of others, directories named after a step that hold more than flat tensor
files, and the parts that several processes write of one checkpoint are left alone whole. Several files of one step that
say no more of each other (G_200.pth and D_200.pth) are listed one by one, and are one unit to whoever replaces them:
whether they are one checkpoint, what is in them says (`several`).
"""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckzd.errors import CkzdError
from ckzd.formats import sniff
from ckzd.formats.frameworks import Framework, framework_by_names, framework_of
from ckzd.formats.listing import is_replaced
from ckzd.formats.names import (
    CHECKPOINT_SUFFIXES,
    POINTER_NAME,
    POINTER_SUFFIX,
    TENSOR_SUFFIXES,
    TRACKER,
    is_only_numbers,
    is_part,
    is_temporary,
    labelled_step,
    natural_key,
    number_of_model,
    shard_number,
    step_in_name,
    without_numbers,
)
from ckzd.formats.source import first_bytes

KINDS: Final[Mapping[str, str]] = {  # what is left alone, as a label and in words
    "deepspeed": "DeepSpeed checkpoints",
    "megatron": "Megatron checkpoints",
    "fsdp": "FSDP checkpoints",
    "accelerate": "Accelerate checkpoints",
    "dcp": "DCP checkpoints",
    "orbax": "Orbax checkpoints",
    "several_files": "checkpoints of several files",
    "step_files": "directories of a step",
    "shards": "parts of sharded checkpoints",
    "parts": "files that are parts of checkpoints",
    "tarball": "tarballs",
    "keras": "Keras files",
    "tensorflow": "TensorFlow checkpoints",
    "hugging_face": "parts of Hugging Face checkpoints",
}
_FRAMEWORKS: Final = tuple(  # kind, what its files and its directories are called; the first that fits
    (kind, re.compile(files), re.compile(folders))
    for kind, files, folders in (
        ("deepspeed", r".*(zero_pp_rank|mp_rank|expp_rank)_\d+.*", r"$."),
        ("megatron", r"$.", r"mp_rank_\d+.*"),
        ("fsdp", r"pytorch_model_fsdp_.+", r"pytorch_model_fsdp_\d+"),
        ("accelerate", r"random_states_\d+\.pkl", r"$."),
        (
            "orbax",
            r"_CHECKPOINT_METADATA|_METADATA|manifest\.ocdbt|commit_success\.txt|_sharding",
            r"ocdbt\.process_\d+",
        ),
        ("dcp", r".*\.distcp|\.metadata(\.tmp)?|__\d+(_\d+)*\.metadata", r"$."),
    )
)
_BY_NAME: Final = tuple(  # files that are left alone, kind and name
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("keras", r".*\.(keras|h5|hdf5)"),
        ("tensorflow", r".*\.data-00000-of-\d{5}|saved_model\.pb"),
        ("tarball", r"(?!.*\.(pt|pth)\.tar$).*\.(tar|tgz|tar\.(gz|bz2|xz|zst))"),
    )
)
_CHECKPOINT: Final = "checkpoint"
_LEFT_WHOLE: Final = frozenset({"shards", "parts", "several_files"})  # with all that is of their step
MAX_DEPTH = 4  # of what is looked into to tell a checkpoint of several files
MAX_ABOVE = 3  # directories above a path that it may be a part of
MAX_LOOKED_AT = 5_000  # names below a directory


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """A file or directory that ckzd does not touch; `kind` is one of KINDS."""

    path: Path
    kind: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What one directory holds; nothing at all of one that is a checkpoint, or of one that cannot be read."""

    path: Path
    checkpoints: tuple[Path, ...] = ()  # in order: by the step in the name, then in natural order, then by mtime
    left_alone: tuple[LeftAlone, ...] = ()  # the directory itself, or some of what is in it
    folders: tuple[Path, ...] = ()  # directories that are no checkpoints: what is in them is to be seen
    has_pointers: bool = False

    @property
    def is_left_alone(self) -> bool:
        """Whether the directory is left alone as a whole."""
        return any(left.path == self.path for left in self.left_alone)

    @property
    def is_run(self) -> bool:
        """Whether it directly holds checkpoints or pointers of replaced ones."""
        return bool(self.checkpoints) or self.has_pointers


def look_into(directory: Path) -> Contents:
    """Tell apart what is in a directory. What vanishes meanwhile is simply not there; nothing raises."""
    files, folders = _names(directory)
    if POINTER_NAME in files or framework_of(directory) is not None:
        return Contents(directory)
    if kind := _kind_of_directory(directory, files, folders):
        return Contents(directory, left_alone=(LeftAlone(directory, kind),))
    own, left = _sort_files(directory, files)
    inner, pointers = [], any(_is_pointer(directory / name) for name in files)
    for path in (directory / name for name in folders if not name.startswith(".")):
        if os.path.lexists(path / POINTER_NAME):
            pointers = True
        if framework_of(path) is None:
            if not os.path.lexists(path / POINTER_NAME):
                inner.append(path)
        elif kind := _kind_of_directory(path, *_names(path)):
            left.append(LeftAlone(path, kind))
        else:
            own.append(path)
    return Contents(directory, tuple(sorted(own, key=_order)), tuple(left), tuple(sorted(inner)), pointers)


def left_alone(path: Path) -> LeftAlone | None:
    """The checkpoint that ckzd does not know whole, and that `path` is, or is a part of; None if there is none."""
    for place in (*path.parents[MAX_ABOVE - 1 :: -1], path):  # the largest
        if kind := _kind_of_directory(place, *_names(place)):
            return LeftAlone(place, kind)
        framework = framework_of(place) if place != path else None
        if framework is not None:
            return LeftAlone(place, framework.kind)
    return next((found for found in look_into(path.parent).left_alone if found.path == path), None)


def _names(directory: Path) -> tuple[set[str], set[str]]:
    """Names of the regular files and of the directories in it; no links, nothing that cannot be read."""
    files: set[str] = set()
    folders: set[str] = set()
    with contextlib.suppress(OSError, ValueError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    files.add(entry.name)
    return files, folders


# Directories


def _kind_of_directory(directory: Path, files: set[str], folders: set[str]) -> str | None:
    """The kind of the directory that is a checkpoint as a whole and is left alone; None for any other."""
    if POINTER_NAME in files and is_replaced(directory):
        return None
    framework = framework_of(directory)
    if framework is not None:
        return _unread(directory, framework)
    for kind, of_files, of_folders in _FRAMEWORKS:
        if any(map(of_files.fullmatch, files)) or any(map(of_folders.fullmatch, folders)):
            return kind
    if _is_tracked(directory):
        return "megatron"
    if _is_one_of_ranks(directory):
        return "shards"
    return "several_files" if _is_one_step(directory, files, folders) else None


def _unread(directory: Path, framework: Framework | None, depth: int = 0) -> str | None:
    """The kind of what lies in a framework's checkpoint and is of another one that does not read it."""
    files, folders = _names(directory)
    for kind, of_files, _ in _FRAMEWORKS:
        if any(map(of_files.fullmatch, files)) and (framework is None or framework.kind != kind):
            return kind
    for name in folders if depth < MAX_DEPTH else ():
        with contextlib.suppress(OSError):
            inner = _unread(directory / name, framework_by_names(directory / name), depth + 1)
            if inner is not None:
                return inner
    return None


def _is_one_of_ranks(directory: Path) -> bool:
    """Whether processes wrote their parts of a run into directories of their own: rank_0/step_1.pt, rank_1/step_1.pt.

    There is a first one, and they have names in common: rank_8 and rank_16 are low-rank adapters.
    """
    number = shard_number(directory.name)
    if number is None:
        return False
    text, _ = without_numbers(directory.name)
    alike = [name for name in _names(directory.parent)[1] if without_numbers(name)[0] == text]
    others = {shard_number(name): name for name in alike}
    if not {0, 1} <= others.keys():
        return False
    beside = directory.parent / others[1 if number == 0 else 0]
    return not {*map(_plain, _tensor_files(directory))}.isdisjoint(map(_plain, _tensor_files(beside)))


def _plain(name: str) -> str:
    """As it was before a pointer took its place."""
    return name.removesuffix(POINTER_SUFFIX)


def _is_tracked(directory: Path) -> bool:
    """A directory of a step beside a tracker file that says which one is the latest."""
    named = directory.name == "release" or step_in_name(directory.name) is not None
    return named and os.path.lexists(directory.parent / TRACKER) and any(_tensor_files(directory))


def _is_one_step(directory: Path, files: set[str], folders: set[str]) -> bool:
    """Whether a directory named after a step holds several tensor files, and no steps of their own in turn.

    One whose name is numbers alone may be a run's (2024-01-31/model_100.pt): there no file may bear a number.
    """
    step = labelled_step(directory.name)
    if is_only_numbers(directory.name):
        tensors = [name for name in files if _is_tensor_name(name)]
        return len(tensors) > 1 and all(step_in_name(_plain(name)) is None for name in tensors)
    if step is None or not (folders or sum(map(_is_tensor_name, files)) > 1):
        return False
    found = 0
    for name, is_directory in _below(directory):
        if labelled_step(name) not in (None, step):
            return False
        found += not is_directory
    return found > 1


def _tensor_files(directory: Path) -> Iterator[str]:
    return (name for name, is_directory in _below(directory) if not is_directory)


def _below(directory: Path) -> Iterator[tuple[str, bool]]:
    """Names of tensor files (replaced ones too) and directories below, and whether it is a directory; bounded."""
    pending, seen = [(directory, 0)], 0
    while pending and seen < MAX_LOOKED_AT:
        place, depth = pending.pop()
        files, folders = _names(place)
        seen += len(files) + len(folders)
        yield from ((name, False) for name in files if _is_tensor_name(name))
        for name in folders:
            if not name.startswith("."):
                yield name, True
                if depth < MAX_DEPTH:
                    pending.append((place / name, depth + 1))


def _is_tensor_name(name: str) -> bool:
    return _plain(name).endswith((*TENSOR_SUFFIXES, ".distcp")) and not is_temporary(name)


# Files


def _sort_files(directory: Path, files: set[str]) -> tuple[list[Path], list[LeftAlone]]:
    """The checkpoints among the files of a directory, and those that are left alone."""
    told = ((name, _kind_of_file(directory / name, files)) for name in files if not is_temporary(name))
    kinds = {name: kind for name, kind in told if kind is not None}
    shards = _shards([name for name, kind in kinds.items() if kind == _CHECKPOINT])
    kinds |= dict.fromkeys(shards, "shards")
    parts = {step_in_name(name) for name, kind in kinds.items() if kind in _LEFT_WHOLE}
    own, left = [], []
    for name, kind in sorted(kinds.items()):
        if kind != _CHECKPOINT:
            left.append(LeftAlone(directory / name, kind))
        elif step_in_name(name) in parts:
            left.append(LeftAlone(directory / name, "several_files"))
        else:
            own.append(directory / name)
    return own, left


def _kind_of_file(path: Path, beside: AbstractSet[str]) -> str | None:
    """_CHECKPOINT, a kind of KINDS for what is left alone, or None for what is neither; by name and first bytes."""
    for kind, pattern in _BY_NAME:
        if pattern.fullmatch(path.name):
            return kind
    if is_part(path.name, beside):
        return "parts"
    if not path.name.endswith(TENSOR_SUFFIXES):
        return None
    with contextlib.suppress(CkzdError):
        if sniff.parser_by(path.name, first_bytes(path, sniff.START_BYTES)) is not None:
            return _CHECKPOINT if path.name.endswith(CHECKPOINT_SUFFIXES) else "several_files"
    return None


def _shards(names: list[str]) -> set[str]:
    """Those that several processes wrote of one step: their names differ in a rank, or of one step in any number.

    A rank that is the same in all names of a kind, and not 0, is none: that of a low-rank adapter. Nor are numbers that
    say which of several models a file is of: fold0_step_10.pt.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    same_step: dict[tuple[str, int | None, tuple[str, ...]], list[str]] = defaultdict(list)
    for name in names:
        text, _ = without_numbers(name)
        alike[text].append(name)
        same_step[text, step_in_name(name), number_of_model(name)].append(name)
    found: set[str] = set()
    for group in alike.values():
        ranks = {number for name in group if (number := shard_number(name)) is not None}
        if 0 in ranks or len(ranks) > 1:
            found.update(group)
    for group in same_step.values():
        if len({without_numbers(name)[1] for name in group}) > 1:
            found.update(group)
    return found


def _order(path: Path) -> tuple[bool, int, tuple[str | int, ...], int]:
    step = step_in_name(path.name)
    mtime_ns = 0
    with contextlib.suppress(OSError):
        mtime_ns = os.lstat(path).st_mtime_ns
    return step is None, step or 0, natural_key(path.name), mtime_ns


def _is_pointer(path: Path) -> bool:
    """`step_100.pt.ckz` (JSON; an archive of that suffix is a zip)."""
    if path.suffix == POINTER_SUFFIX and path.stem.endswith(CHECKPOINT_SUFFIXES):
        with contextlib.suppress(CkzdError):
            return first_bytes(path, 1) == b"{"
    return False
