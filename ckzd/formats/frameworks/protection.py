"""Which checkpoints of a run somebody comes back to: a framework, a person or a script, by whatever says so on disk.

Being too careful costs space, being too bold costs a training job. What a job says it may change at any time, so it is
asked anew just before something is replaced.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ckzd.formats.frameworks.framework import Says
from ckzd.formats.frameworks.hugging_face import HUGGING_FACE
from ckzd.formats.frameworks.lightning import LIGHTNING
from ckzd.formats.frameworks.markers import folders_of, linked, mark_in_name, named_in_markers

PROTECTING: Final = (HUGGING_FACE, LIGHTNING)


def protected(root: Path, run: Path, checkpoints: Sequence[Path], says: Says) -> Mapping[Path, str]:
    """Checkpoint -> what says so, of a run's checkpoints in order. `says` reads inside of one; what it raises passes.

    Asked of the run and of every directory above it up to `root`, the watched one: what names a directory there holds
    all that is in it.
    """
    places = [place for place in (run, *run.parents) if place == run or place.is_relative_to(root)]
    found = {path: f"its name says {mark}" for path in checkpoints if (mark := mark_in_name(path.name))}
    for path in linked(dict.fromkeys([*places, run.parent, *folders_of(run)]), checkpoints):
        found.setdefault(path, "a symlink points to it")
    for place in places:
        for path in named_in_markers(place, checkpoints):
            found.setdefault(path, "a marker file names it")
    for framework in PROTECTING:
        said = framework.protected(run, checkpoints, says)
        for path in checkpoints:
            if path.name in said:
                found.setdefault(path, said[path.name])
    return found
