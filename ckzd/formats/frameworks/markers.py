"""What files and links beside checkpoints name: the newest, the best, the one to resume from.

DeepSpeed writes `latest`, Megatron `latest_checkpointed_iteration.txt`, TensorFlow and Paddle `checkpoint`, scripts
whatever they like. A marker that cannot be understood names nothing, but is looked for wherever one may be.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ckzd.formats.foreign import marker_text
from ckzd.formats.names import stem_of, step_in_name

MAX_STEP_DIGITS = 18
_MARKED = re.compile(r"(?<![a-z])(?i:best|last|latest)(?![a-z])")  # bestModel too
_MARKER = re.compile(_MARKED.pattern + r"|^checkpoint$")
_BETWEEN_WORDS = re.compile(r"[\s\"',:;=<>|()\[\]{}\\]+")


def mark_in_name(name: str) -> str | None:
    """Which of best, last and latest a checkpoint's own name says, if any."""
    match = _MARKED.search(name)
    return match[0].lower() if match else None


def named_in_markers(place: Path, paths: Iterable[Path]) -> Iterator[Path]:
    """Checkpoints below that a small file called best, last or latest names, alone or among others, or their folder.

    Whole, without its suffix, or by its step.
    """
    below = {path: path.relative_to(place) for path in paths}
    lengths = range(1, max((len(at.parts) for at in below.values()), default=0) + 1)  # a marker may have more parts
    for entry in entries_of(place):
        if not _MARKER.search(entry.name.replace("_", "-")):
            continue
        text = marker_text(Path(entry.path)).removeprefix("\ufeff")
        words = {text.strip(), *_BETWEEN_WORDS.split(text)} - {""}
        names = [PurePosixPath(word).parts for word in words]
        parts = {name[at : at + length] for name in names for at in range(len(name)) for length in lengths}
        tails = {name[-length:] for name in names for length in lengths}
        single = {name[0] for name in names if len(name) == 1}
        steps = {int(word) for word in words if word.isdecimal() and len(word) <= MAX_STEP_DIGITS}
        for path, (*folders, name) in ((path, at.parts) for path, at in below.items()):
            for own in ((*folders, name), (*folders, stem_of(name))):
                inside = own in parts or any(own[:end] in tails for end in range(1, len(own)))
                if inside or single.intersection(own) or steps.intersection(map(step_in_name, own)):
                    yield path


def linked(places: Iterable[Path], paths: Iterable[Path]) -> Iterator[Path]:
    """Checkpoints that a symlink in one of these directories leads to, into, or to a directory between them."""
    real = {path: found for path in paths if (found := _resolved(path)) is not None}
    for place in places:
        here = _resolved(place)
        for entry in entries_of(place):
            target = _resolved(Path(entry.path)) if entry.is_symlink() else None
            if target is None:
                continue
            is_below = here in target.parents  # a link to where the link itself is, or above, says nothing
            for path, found in real.items():
                if target == found or found in target.parents or (is_below and target in found.parents):
                    yield path


def folders_of(run: Path) -> list[Path]:
    """Directories of a run, as best/ with a link in it."""
    found = (entry for entry in entries_of(run) if not entry.name.startswith("."))
    return [Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False)]


def newest_first(files: Iterable[Path]) -> list[Path]:
    """Those that are regular files, by mtime."""
    dated = []
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            found = os.lstat(file)
            if stat.S_ISREG(found.st_mode):
                dated.append((found.st_mtime_ns, file))
    return [file for _, file in sorted(dated, reverse=True)]


def entries_of(place: Path) -> list[os.DirEntry[str]]:
    """What is in a directory; nothing of one that is gone or cannot be read."""
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        return list(entries)
    return []


def _resolved(path: Path) -> Path | None:
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a circle
        return path.resolve()
    return None
