"""PyTorch Lightning: files of torch.save, directories of torch.distributed.checkpoint, callbacks that name the best.

What it writes is read by others' rules; what its callbacks say of checkpoints is read here, without unpickling.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from pathlib import Path

from ckzd.formats import torch_zip
from ckzd.formats.frameworks import dcp
from ckzd.formats.frameworks.framework import Framework, Says
from ckzd.formats.frameworks.markers import newest_first
from ckzd.formats.source import FileSource
from ckzd.formats.tree import Mapping


def best_models(file: Path) -> list[str]:
    """`best_model_path` of every callback in a Lightning checkpoint, as names; CkzdError if it cannot be read."""
    with closing(FileSource([file])) as source:
        root = torch_zip.small_mapping(source.view(0))
    callbacks = root.get("callbacks") if root is not None else None
    states = [state for _, state in callbacks.pairs] if isinstance(callbacks, Mapping) else []
    best = [state.get("best_model_path") for state in states if isinstance(state, Mapping)]
    return [Path(name).name for name in best if isinstance(name, str) and name]


def protected(_run: Path, checkpoints: Sequence[Path], says: Says) -> dict[str, str]:
    """What the callbacks in the newest readable checkpoint call their best model."""
    for path in newest_first(path for path in checkpoints if path.name.endswith(".ckpt")):
        said = says(path)
        if said is not None:
            return dict.fromkeys(said, "Lightning's best_model_path names it")
    return {}


def recognises(_path: Path, _names: AbstractSet[str], _folders: AbstractSet[str]) -> bool:
    """No directory: those that it writes are DCP's."""
    return False


LIGHTNING = Framework("lightning", recognises, dcp.require_complete, dcp.read, protected)
