"""Frameworks, a file each: which directories are their checkpoints, finished, what is in them, which they hold."""

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from ckzd.formats.frameworks.accelerate import ACCELERATE
from ckzd.formats.frameworks.dcp import DCP
from ckzd.formats.frameworks.dcp_parts import DCP_PARTS
from ckzd.formats.frameworks.deepspeed import DEEPSPEED
from ckzd.formats.frameworks.framework import Framework
from ckzd.formats.frameworks.hugging_face import HUGGING_FACE
from ckzd.formats.frameworks.megatron import MEGATRON
from ckzd.formats.frameworks.model_index import MODEL_INDEX
from ckzd.formats.frameworks.step_files import STEP_FILES
from ckzd.formats.listing import is_replaced
from ckzd.formats.names import is_temporary

# the first that knows a directory reads it
FRAMEWORKS: Final = (DEEPSPEED, DCP, ACCELERATE, HUGGING_FACE, STEP_FILES, DCP_PARTS, MEGATRON, MODEL_INDEX)

__all__ = ["FRAMEWORKS", "Framework", "framework_by_names", "framework_of"]


def framework_of(path: Path) -> Framework | None:
    """Whose checkpoint a directory is, by its names; None where it is nobody's, or was replaced."""
    with contextlib.suppress(OSError, ValueError):
        if stat.S_ISDIR(os.lstat(path).st_mode) and not is_temporary(path.name) and not is_replaced(path):
            return framework_by_names(path)
    return None


def framework_by_names(path: Path) -> Framework | None:
    """Whose checkpoint a directory would be, replaced or not, or as a part of a larger one; OSError."""
    with os.scandir(path) as entries:
        folders = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    inside = frozenset(folders), frozenset(name for name, is_folder in folders.items() if is_folder)
    return next((framework for framework in FRAMEWORKS if framework.recognises(path, *inside)), None)
