"""Directories of a step that hold several of torch.distributed.checkpoint: `step-10/model/`, `step-10/optimizer/`.

Nothing says that there will be no further one: time has to tell.
"""

import os
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from ckzd.formats.frameworks import dcp, hugging_face
from ckzd.formats.frameworks.framework import Framework, require_ends
from ckzd.formats.listing import Listing
from ckzd.formats.names import labelled_step
from ckzd.formats.source import FileView


def recognises(path: Path, _names: AbstractSet[str], folders: AbstractSet[str]) -> bool:
    """By its name, and since every directory in it is one of torch.distributed.checkpoint."""
    return labelled_step(path.name) is not None and bool(folders) and all(_is_part(path / name) for name in folders)


def _is_part(path: Path) -> bool:
    with os.scandir(path) as entries:
        folders = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    return dcp.recognises(path, folders.keys(), {name for name, is_folder in folders.items() if is_folder})


def require_complete(_listing: Listing, views: Sequence[FileView]) -> None:
    """What lies beside the directories has its end."""
    require_ends(views)


DCP_PARTS = Framework("dcp", recognises, require_complete, hugging_face.read)
