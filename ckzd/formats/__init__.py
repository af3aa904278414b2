"""Training files read into checkpoints: which bytes are tensors and what they are called; knows no compression."""

import os
import stat
from pathlib import Path

from ckzd.checkpoint import Checkpoint, FileLayout
from ckzd.errors import BadCheckpoint
from ckzd.formats import sniff
from ckzd.formats.directory import read_directory
from ckzd.formats.listing import is_replaced, is_text
from ckzd.formats.names import POINTER_SUFFIX, step_in_name, updates_in_name
from ckzd.formats.runs import completeness, is_run, list_checkpoints, looks_like_checkpoint
from ckzd.formats.several import read_with_others
from ckzd.formats.source import FileSource, as_ckzd_errors, closed_on_error, file_stat
from ckzd.formats.units import KINDS, Contents, LeftAlone, left_alone, look_into

__all__ = [
    "KINDS",
    "Contents",
    "LeftAlone",
    "completeness",
    "is_replaced",
    "is_run",
    "left_alone",
    "list_checkpoints",
    "look_into",
    "looks_like_checkpoint",
    "read_checkpoint",
    "read_whole",
]


def read_checkpoint(path: Path) -> Checkpoint:
    """Parse a checkpoint file or directory; the tensors' bytes are read later, through its `source`.

    BadCheckpoint if it is damaged, half-written, hostile or of no known format; SourceChanged if it moved meanwhile.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link in its place
    if path.suffix == POINTER_SUFFIX:
        raise BadCheckpoint(path, "is an archive or a pointer, no checkpoint", hint="`ckzd inspect` says what is in it")
    if not os.path.lexists(path) and os.path.lexists(f"{path}{POINTER_SUFFIX}"):
        raise BadCheckpoint(path, "was replaced by its archive", hint=f"run `ckzd restore {path}` first")
    with as_ckzd_errors(path):
        is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
    return read_directory(path) if is_directory else _read_file(path)


def read_whole(path: Path) -> Checkpoint:
    """Parse all files that are one checkpoint with the one at `path`. Raises as `read_checkpoint`."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - as above
    whole = read_with_others(path) if looks_like_checkpoint(path) and not path.is_dir() else None
    return read_checkpoint(path) if whole is None else whole


def _read_file(path: Path) -> Checkpoint:
    if not is_text(path.name):
        raise BadCheckpoint(ascii(str(path)), "its name is not UTF-8", hint="rename it")
    with closed_on_error(FileSource([path])) as source:
        parsed = sniff.parse(source.view(0))
    found = source.stats[0]
    return Checkpoint(
        name=path.name,
        is_directory=False,
        stat=None,
        step=step_in_name(path.name) if parsed.step is None else parsed.step,
        files=(FileLayout(path.name, found.st_size, file_stat(path, found), parsed.holes),),
        tensors=parsed.tensors,
        optimizers=parsed.optimizers,
        source=source,
        updates=updates_in_name(path.name) if parsed.step is None else parsed.step,
    )
