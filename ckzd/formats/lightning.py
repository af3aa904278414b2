"""What PyTorch Lightning's callbacks in a checkpoint say of others. Read without unpickling."""

from contextlib import closing
from pathlib import Path

from ckzd.formats import inert_pickle
from ckzd.formats.source import FileSource
from ckzd.formats.tree import Mapping
from ckzd.formats.zip_records import read_records

MAX_PICKLE_BYTES = 16 << 20  # larger ones take seconds to read, and hold no Lightning callbacks


def best_models(file: Path) -> list[str]:
    """`best_model_path` of every callback in a Lightning checkpoint, as names; CkzdError if it cannot be read."""
    with closing(FileSource([file])) as source:
        view = source.view(0)
        pickles = [record for record in read_records(view) if record.name.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].nbytes > MAX_PICKLE_BYTES:
            return []
        root = inert_pickle.load(view.read(pickles[0].offset, pickles[0].nbytes), str(file))
    callbacks = root.get("callbacks") if isinstance(root, Mapping) else None
    states = [state for _, state in callbacks.pairs] if isinstance(callbacks, Mapping) else []
    best = [state.get("best_model_path") for state in states if isinstance(state, Mapping)]
    return [Path(name).name for name in best if isinstance(name, str) and name]
