"""A run, the directory that a training job writes to: its checkpoints, and which of them are finished.

Scans go on beside a job that creates, replaces and deletes: what vanishes meanwhile is simply not there.
"""

import contextlib
import os
import re
import stat
from pathlib import Path

from ckzd.errors import CkzdError
from ckzd.formats import sniff
from ckzd.formats.directory import Listing, list_directory, require_parts, trainer_step
from ckzd.formats.names import INCOMPLETE_MARKER, TENSOR_SUFFIXES, TRAINER_STATE, hugging_face_step
from ckzd.formats.source import FileSource, FileView, as_ckzd_errors
from ckzd.formats.units import look_into

_RNG_STATE = re.compile(r"rng_state_(\d{1,6})\.pth")


def looks_like_checkpoint(path: Path) -> bool:
    """By names and first bytes, its neighbours' too. False for links, pointers, temporary names, what is not there."""
    return path in look_into(path.parent).checkpoints


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints directly in a run: by the step in the name, then in natural order, then by mtime."""
    with as_ckzd_errors(run):
        os.scandir(run).close()
    return list(look_into(run).checkpoints)


def is_run(path: Path) -> bool:
    """A directory that directly holds checkpoints or pointers of replaced ones, and is no checkpoint itself."""
    return look_into(path).is_run


def completeness(path: Path) -> str | None:
    """None if its writer has finished, by the rule of its framework; else what is missing.

    Cheap: it looks at ends and headers. That a checkpoint parses whole, and rests, is for the caller to see.
    """
    try:
        with as_ckzd_errors(path):
            is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
        if is_directory:
            _require_complete_directory(list_directory(path))
        else:
            with contextlib.closing(FileSource([path])) as source:
                sniff.require_end(source.view(0))
    except CkzdError as error:
        return f"{Path(error.subject).name}: {error.problem}"
    return None


def _require_complete_directory(listing: Listing) -> None:
    """Hugging Face's rule: trainer_state.json is written last and names the directory's step."""
    path = listing.path
    if INCOMPLETE_MARKER in listing.names:
        raise CkzdError(path, f"{INCOMPLETE_MARKER} is still there")
    if TRAINER_STATE not in listing.names:
        raise CkzdError(path, f"{TRAINER_STATE} missing")
    with contextlib.closing(FileSource([path / name for name in listing.names])) as source:
        views = [source.view(number) for number in range(len(listing.names))]
        step, named = trainer_step(views), hugging_face_step(path.name)
        if named is not None and step != named:
            raise CkzdError(path, f"{TRAINER_STATE} says step {step}")
        require_parts(views)
        _require_random_states(listing)
        for view in views:
            _require_end(view)


def _require_random_states(listing: Listing) -> None:
    """With several ranks each writes its own, and nobody waits for the others."""
    ranks = {int(match[1]) for match in map(_RNG_STATE.fullmatch, listing.names) if match}
    if missing := set(range(max(ranks, default=-1))) - ranks:
        raise CkzdError(listing.path, f"rng_state_{min(missing)}.pth missing")


def _require_end(view: FileView) -> None:
    if view.name.endswith(TENSOR_SUFFIXES) and sniff.parser_of(view) is not None:
        sniff.require_end(view)
