"""A run, the directory that a training job writes to: its checkpoints, and which of them are finished.

Scans go on beside a job that creates, replaces and deletes: what vanishes meanwhile is simply not there.
"""

import contextlib
import os
import stat
from pathlib import Path

from ckzd.errors import CkzdError
from ckzd.formats import sniff
from ckzd.formats.frameworks import whole
from ckzd.formats.listing import Listing, list_directory
from ckzd.formats.source import FileSource, as_ckzd_errors
from ckzd.formats.units import look_into


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
    with contextlib.closing(FileSource([listing.path / name for name in listing.names])) as source:
        views = [source.view(number) for number in range(len(listing.names))]
        whole.require_complete(listing, views)
