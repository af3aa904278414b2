"""A run, the directory that a training job writes to: what in it is a checkpoint, which are finished, in what order.

Scans go on beside a job that creates, replaces and deletes: what vanishes meanwhile is simply not there.
"""

import contextlib
import os
import re
import stat
from pathlib import Path

from ckzd.errors import CkzdError
from ckzd.formats import sniff
from ckzd.formats.directory import Listing, is_replaced, list_directory, require_parts, trainer_step
from ckzd.formats.names import (
    CHECKPOINT_SUFFIXES,
    INCOMPLETE_MARKER,
    POINTER_NAME,
    POINTER_SUFFIX,
    TENSOR_SUFFIXES,
    TRAINER_STATE,
    hugging_face_step,
    is_part,
    is_temporary,
    natural_key,
    step_in_name,
)
from ckzd.formats.source import FileSource, FileView, as_ckzd_errors, first_bytes

_RNG_STATE = re.compile(r"rng_state_(\d{1,6})\.pth")


def looks_like_checkpoint(path: Path) -> bool:
    """By name and first bytes, for scanning a run. False for links, pointers, temporary names and what is not there."""
    if is_temporary(path.name) or path.name.endswith(POINTER_SUFFIX):
        return False
    with contextlib.suppress(OSError, ValueError):
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            return _looks_like_directory(path)
        if stat.S_ISREG(mode) and path.name.endswith(CHECKPOINT_SUFFIXES) and not is_part(path.name):
            with contextlib.suppress(CkzdError):
                return sniff.parser_by(path.name, first_bytes(path, sniff.START_BYTES)) is not None
    return False


def _looks_like_directory(path: Path) -> bool:
    if is_replaced(path):
        return False
    if hugging_face_step(path.name) is not None:
        return True
    holds_others = any(hugging_face_step(entry.name) is not None for entry in path.iterdir())
    return os.path.lexists(path / TRAINER_STATE) and not holds_others


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints directly in a run: by the step in the name, then in natural order, then by mtime."""
    with as_ckzd_errors(run):
        entries = list(run.iterdir())
    return sorted(filter(looks_like_checkpoint, entries), key=_order)


def _order(path: Path) -> tuple[bool, int, tuple[str | int, ...], int]:
    step = step_in_name(path.name)
    mtime_ns = 0
    with contextlib.suppress(OSError):
        mtime_ns = os.lstat(path).st_mtime_ns
    return step is None, step or 0, natural_key(path.name), mtime_ns


def is_run(path: Path) -> bool:
    """A directory that directly holds checkpoints or pointers of replaced ones, and is no checkpoint itself."""
    with contextlib.suppress(CkzdError, OSError, ValueError):
        if path.is_dir() and not looks_like_checkpoint(path) and not os.path.lexists(path / POINTER_NAME):
            return any(looks_like_checkpoint(entry) or _is_pointer(entry) for entry in path.iterdir())
    return False


def _is_pointer(path: Path) -> bool:
    """`step_100.pt.ckz` (JSON; an archive of that suffix is a zip), or `checkpoint-100/ckzd.json`."""
    if os.path.lexists(path / POINTER_NAME):
        return True
    if path.suffix == POINTER_SUFFIX and path.stem.endswith(CHECKPOINT_SUFFIXES):
        with contextlib.suppress(CkzdError):
            return first_bytes(path, 1) == b"{"
    return False


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
