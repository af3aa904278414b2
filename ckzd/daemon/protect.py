"""Which checkpoints somebody holds. They are archived like all others and never replaced.

What names, markers, links and frameworks say is for `formats.frameworks.protection` to tell; here it is remembered what
checkpoints say inside, and looked for what a file system holds.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ckzd.daemon.identity import Fingerprint, fingerprint
from ckzd.daemon.settle import NotReadYet, Rule
from ckzd.errors import CkzdError
from ckzd.formats.frameworks.protection import protected
from ckzd.operations.pointer import pointer_for

MAX_SAID = 1000  # what this many checkpoints say of others is remembered


class Protection:
    """Asks who holds what; what is said inside of checkpoints is read by `rule`, once."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._said: dict[tuple[Path, Fingerprint], list[str] | None] = {}  # None: it cannot be read

    def held(self, root: Path, run: Path, checkpoints: Sequence[tuple[Path, Fingerprint]]) -> dict[Path, str]:
        """Checkpoint -> who holds it, of a run's checkpoints in order; `root` is the watched directory."""
        paths = [path for path, _ in checkpoints]
        try:
            return {**protected(root, run, paths, self._says), **_by_links(checkpoints)}
        except NotReadYet as error:
            return dict.fromkeys(paths, f"who holds it is not known yet: {error}")

    def held_where_they_stood(self, root: Path, run: Path, checkpoints: Sequence[Path]) -> dict[Path, str]:
        """Checkpoint -> who holds it, there or replaced: a link or a second name may be that of the pointer, too."""
        pointers = {pointer_for(path): path for path in checkpoints if not path.is_dir()}
        seen = [(path, _seen(path)) for path in (*checkpoints, *filter(os.path.lexists, pointers))]
        return {pointers.get(path, path): why for path, why in self.held(root, run, seen).items()}

    def _says(self, path: Path) -> list[str] | None:
        with contextlib.suppress(OSError):
            seen = path, fingerprint(path)
            if seen not in self._said:
                self._said[seen] = self._ask(path)
                if len(self._said) > MAX_SAID:
                    self._said.pop(next(iter(self._said)))
            return self._said[seen]
        return None

    def _ask(self, path: Path) -> list[str] | None:
        try:
            return self._rule.best_models(path)
        except NotReadYet:
            raise
        except CkzdError:
            return None


def _by_links(checkpoints: Iterable[tuple[Path, Fingerprint]]) -> dict[Path, str]:
    found = {}
    for path, seen in checkpoints:
        if any(file.is_symlink for file in seen.files):
            found[path] = "it holds a symlink"
        elif any(file.links > 1 for file in seen.files):
            found[path] = "it has another name (hard link)"
    return found


def _seen(path: Path) -> Fingerprint:
    """What is there; of a replaced file nothing is."""
    with contextlib.suppress(OSError):
        return fingerprint(path)
    return Fingerprint(0, ())
