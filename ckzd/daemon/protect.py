"""Which checkpoints somebody holds by name. They are archived like all others and never replaced.

Asked just before something is replaced, of the disk and not of memory: a job moves its markers whenever it likes. Being
too careful costs space, being too bold costs a training job, so a marker that cannot be understood protects nothing
but is looked for wherever a framework puts one.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath

from ckzd.daemon.identity import Fingerprint, fingerprint
from ckzd.daemon.settle import NotReadYet, Rule
from ckzd.errors import CkzdError
from ckzd.formats.foreign import json_file, marker_text
from ckzd.formats.names import TRAINER_STATE, stem_of, step_in_name

MAX_STEP_DIGITS = 18
MAX_SAID = 1000  # what this many checkpoints say of others is remembered
_MARKED = re.compile(r"(?<![a-z])(?i:best|last|latest)(?![a-z])")  # bestModel too
_MARKER = re.compile(_MARKED.pattern + r"|^checkpoint$")  # TensorFlow's and Paddle's
_BETWEEN_WORDS = re.compile(r"[\s\"',:;=<>|()\[\]{}\\]+")


class Protection:
    """Asks who holds what; what is said inside of checkpoints is read by `rule`, once."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._said: dict[tuple[Path, Fingerprint], list[str] | None] = {}  # None: it cannot be read

    def held(self, root: Path, run: Path, checkpoints: Sequence[tuple[Path, Fingerprint]]) -> dict[Path, str]:
        """Checkpoint -> who holds it, of a run's checkpoints in order.

        Asked of the run and of every directory above it up to `root`, the watched one: what names a directory there
        holds all that is in it.
        """
        paths = [path for path, _ in checkpoints]
        try:
            best = set(_named(self._best_of_lightning(paths), paths))
        except NotReadYet as error:
            return dict.fromkeys(paths, f"who holds it is not known yet: {error}")
        return _held(root, run, checkpoints, best)

    def _best_of_lightning(self, paths: Iterable[Path]) -> list[str]:
        """What the callbacks in the newest readable Lightning checkpoint call their best model."""
        for path in _newest_first(path for path in paths if path.name.endswith(".ckpt")):
            with contextlib.suppress(OSError):
                seen = path, fingerprint(path)
                if seen not in self._said:
                    self._said[seen] = self._ask(path)
                    if len(self._said) > MAX_SAID:
                        self._said.pop(next(iter(self._said)))
                said = self._said[seen]
                if said is not None:
                    return said
        return []

    def _ask(self, path: Path) -> list[str] | None:
        try:
            return self._rule.best_models(path)
        except NotReadYet:
            raise
        except CkzdError:
            return None


def _held(
    root: Path, run: Path, checkpoints: Sequence[tuple[Path, Fingerprint]], best_of_lightning: AbstractSet[Path]
) -> dict[Path, str]:
    paths = [path for path, _ in checkpoints]
    places = [place for place in (run, *run.parents) if place == run or place.is_relative_to(root)]
    found = _by_themselves(checkpoints)
    for reason, held in (
        ("a symlink points to it", set(_linked(dict.fromkeys([*places, run.parent, *_folders(run)]), paths))),
        ("a marker file names it", {path for place in places for path in _named_in_markers(place, paths)}),
        ("best_model_checkpoint in trainer_state.json names it", set(_named(_best_of_trainer(run), paths))),
        ("Lightning's best_model_path names it", best_of_lightning),
    ):
        for path in paths:
            if path in held:
                found.setdefault(path, reason)
    return found


def _by_themselves(checkpoints: Iterable[tuple[Path, Fingerprint]]) -> dict[Path, str]:
    found = {}
    for path, seen in checkpoints:
        if any(file.is_symlink for file in seen.files):
            found[path] = "it holds a symlink"
        elif any(file.links > 1 for file in seen.files):
            found[path] = "it has another name (hard link)"
        elif match := _MARKED.search(path.name):
            found[path] = f"its name says {match[0].lower()}"
    return found


def _named(names: Iterable[str], paths: Iterable[Path]) -> Iterator[Path]:
    wanted = set(names)
    return (path for path in paths if path.name in wanted)


def _linked(places: Iterable[Path], paths: Iterable[Path]) -> Iterator[Path]:
    """Checkpoints that a symlink in one of these directories leads to, into, or to a directory between them."""
    real = {path: found for path in paths if (found := _resolved(path)) is not None}
    for place in places:
        here = _resolved(place)
        for entry in _entries(place):
            target = _resolved(Path(entry.path)) if entry.is_symlink() else None
            if target is None:
                continue
            is_below = here in target.parents  # a link to where the link itself is, or above, says nothing
            for path, found in real.items():
                if target == found or found in target.parents or (is_below and target in found.parents):
                    yield path


def _folders(run: Path) -> list[Path]:
    """Directories of a run, as best/ with a link in it."""
    found = (entry for entry in _entries(run) if not entry.name.startswith("."))
    return [Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False)]


def _resolved(path: Path) -> Path | None:
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a circle
        return path.resolve()
    return None


def _named_in_markers(place: Path, paths: Iterable[Path]) -> Iterator[Path]:
    """Checkpoints below that a small file called best, last or latest names, alone or among others, or their folder.

    Whole, without its suffix, or by its step.
    """
    below = {path: path.relative_to(place) for path in paths}
    for entry in _entries(place):
        if not _MARKER.search(entry.name.replace("_", "-")):
            continue
        text = marker_text(Path(entry.path)).removeprefix("\ufeff")
        words = {text.strip(), *_BETWEEN_WORDS.split(text)} - {""}
        names = [PurePosixPath(word).parts for word in words]
        parts = {name[start:end] for name in names for end in range(len(name) + 1) for start in range(end)}
        tails = {name[start:] for name in names for start in range(len(name))}
        single = {name[0] for name in names if len(name) == 1}
        steps = {int(word) for word in words if word.isdecimal() and len(word) <= MAX_STEP_DIGITS}
        for path, (*folders, name) in ((path, at.parts) for path, at in below.items()):
            for own in ((*folders, name), (*folders, stem_of(name))):
                inside = own in parts or any(own[:end] in tails for end in range(1, len(own)))
                if inside or single.intersection(own) or steps.intersection(map(step_in_name, own)):
                    yield path


def _best_of_trainer(run: Path) -> Iterator[str]:
    """What the newest readable trainer_state.json of the run calls its best model."""
    states = [folder / TRAINER_STATE for folder in (run, *_folders(run))]
    for state in _newest_first(states):
        told = json_file(state)
        if told is not None:
            best = told.get("best_model_checkpoint")
            yield from [Path(best).name] if isinstance(best, str) else []
            return


def _entries(place: Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        return list(entries)
    return []


def _newest_first(files: Iterable[Path]) -> list[Path]:
    """Those that are regular files, by mtime."""
    dated = []
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            found = os.lstat(file)
            if stat.S_ISREG(found.st_mode):
                dated.append((found.st_mtime_ns, file))
    return [file for _, file in sorted(dated, reverse=True)]
