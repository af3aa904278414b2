"""A directory that is named after a step and holds the files of one checkpoint: step_10/net.pt and step_10/optim.pt.

Nobody says when such a one is finished but its files, each of which has its end, and the time that it rests.
"""

import os
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path

from ckzd.formats.frameworks import hugging_face
from ckzd.formats.frameworks.framework import Framework, ParsedDirectory, parse_file, together
from ckzd.formats.names import (
    CHECKPOINT_SUFFIXES,
    TENSOR_SUFFIXES,
    TRACKER,
    is_only_numbers,
    is_temporary,
    labelled_step,
    series_in_name,
    shard_number,
    without_numbers,
)
from ckzd.formats.parsed import unique_paths
from ckzd.formats.source import FileView

_ACCELERATES = re.compile(r"(optimizer|scheduler|sampler|dl_state_dict)(_\d+)?\.bin|pytorch_model(_\d+)?\.bin")


def recognises(path: Path, names: AbstractSet[str], folders: AbstractSet[str]) -> bool:
    """By its name, and two files at least that hold tensors by theirs, none of which bears another step or a rank.

    What Megatron tracks, and what Accelerate has not finished, is not ours. Nor is one whose name is numbers alone:
    000100 may be a step, 2024-01-31 or 1337 is a run that saves over its files.
    """
    found = [name for name in names - folders if name.endswith(TENSOR_SUFFIXES) and not is_temporary(name)]
    if folders or len(found) < 2 or os.path.lexists(path.parent / TRACKER):
        return False
    if not all(name.endswith(CHECKPOINT_SUFFIXES) for name in found):
        return False
    if any(_ACCELERATES.fullmatch(name) or shard_number(name) is not None for name in found):
        return False
    step = None if is_only_numbers(path.name) else labelled_step(path.name)
    if step is None or len({without_numbers(name)[0] for name in found}) < len(found):
        return False  # what differs in numbers alone are parts
    return all(labelled_step(name) in (None, step) for name in found)


def read(views: Sequence[FileView]) -> ParsedDirectory:
    """Each file on its own, under what its name has in common from step to step."""
    hugging_face.require_parts(views)
    parsed = [parse_file(view) for view in views]
    step = next((one.step for one in parsed if one.step is not None), None)
    found = together([series_in_name(view.name) for view in views], parsed)
    return replace(found, tensors=tuple(unique_paths(found.tensors)), step=step)


STEP_FILES = Framework("step_files", recognises, hugging_face.require_files, read)
