"""What savers that keep only their best checkpoints say of them, in each checkpoint: Lightning's and timm's.

They delete a file that falls behind, and miss it where a pointer stands for it. What they would have deleted is told
from what they say: read without unpickling.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckzd.formats import torch_zip, tree
from ckzd.formats.source import FileSource, FileView
from ckzd.formats.zip_records import Record, read_records

SUFFIXES: Final = (".ckpt", ".pth.tar")  # of files that may say so
MAX_RANKED = 10_000
_SCALARS: Final = {"float16": "<e", "float32": "<f", "float64": "<d", "int32": "<i", "int64": "<q"}


@dataclass(frozen=True, slots=True)
class Ranking:
    """The checkpoints that one saver keeps: names and scores, the higher the better."""

    saver: str
    scores: Mapping[str, float]


def rankings(file: Path) -> list[Ranking]:
    """What the savers in a checkpoint keep, that one as the last; CkzdError if it cannot be read."""
    with closing(FileSource([file])) as source:
        view = source.view(0)
        root = torch_zip.small_mapping(view)
        if root is None:
            return []
        scalar = _Scalars(view, {record.name: record for record in read_records(view)})
        return [*_of_lightning(root.get("callbacks"), file, scalar), *_of_timm(root.get("saver"))]


def let_go(told: Sequence[Sequence[Ranking]]) -> set[str]:
    """Names of what the savers of the newest checkpoint have kept and would have deleted since.

    `told` is what each checkpoint says, the oldest first. Such a name is in no list any more; the list of its saver is
    no shorter than one that it was in, and has nothing worse. Lists are of one saver as long as each has something of
    the next, name and score: a run that begins anew or resumed from an older checkpoint, another fold or seed, knows
    nothing of what was before, and would delete none of it.
    """
    newest = {ranking.saver: ranking.scores for ranking in (told[-1] if told else ())}
    kept = {name for scores in newest.values() for name in scores}
    found: set[str] = set()
    for saver, now in newest.items():
        later = now
        for some in reversed(told[:-1]):
            before = next((ranking.scores for ranking in some if ranking.saver == saver), None)
            if before is None:
                continue
            if not before.items() & later.items():
                break
            if len(now) >= len(before):
                found |= {name for name, score in before.items() if all(other >= score for other in now.values())}
            later = before
    return found - kept


class _Scalars:
    """Reads the value of a number, or of a tensor of one element."""

    def __init__(self, view: FileView, records: Mapping[str, Record]) -> None:
        self._view, self._records = view, records
        self._prefix = next(iter(records), "").split("/", 1)[0]

    def __call__(self, node: tree.Node) -> float | None:
        if type(node) in (int, float):
            return float(node)  # type: ignore[arg-type]  # it is one of them
        if not isinstance(node, tree.TensorRef) or node.dtype not in _SCALARS or any(size != 1 for size in node.shape):
            return None
        record = self._records.get(f"{self._prefix}/data/{node.storage.key}")
        at, nbytes = node.offset * node.element_bytes, node.element_bytes
        if record is None or record.is_deflated or at + nbytes > record.nbytes:
            return None
        return float(struct.unpack(_SCALARS[node.dtype], self._view.read(record.offset + at, nbytes))[0])


def _of_lightning(callbacks: tree.Node, file: Path, scalar: _Scalars) -> Iterator[Ranking]:
    """`best_k_models` of every ModelCheckpoint, whose key says how it compares; of those in this directory."""
    for key, state in callbacks.pairs if isinstance(callbacks, tree.Mapping) else ():
        models = state.get("best_k_models") if isinstance(state, tree.Mapping) else None
        if not isinstance(models, tree.Mapping) or type(key) is not str or len(models.pairs) > MAX_RANKED:
            continue
        scores = {Path(name): scalar(value) for name, value in models.pairs if type(name) is str}
        here = all(name.parent.name == file.parent.name for name in scores)
        known = {name.name: score for name, score in scores.items() if score is not None}
        if here and len(known) == len(models.pairs):
            sign = -1.0 if "'mode': 'min'" in key else 1.0
            yield Ranking(key, {name: sign * score for name, score in known.items()})


def _of_timm(saver: tree.Node) -> Iterator[Ranking]:
    """`checkpoint_files`, the best first, without the one that is being saved; nothing where some have no metric."""
    files = saver.get("checkpoint_files") if isinstance(saver, tree.Mapping) else None
    if not isinstance(files, list) or len(files) > MAX_RANKED:
        return
    found = [tuple(one) for one in files if isinstance(one, (tuple, list)) and len(one) == 2]
    known = [(name, float(metric)) for name, metric in found if type(name) is str and type(metric) in (int, float)]
    if known and len(known) == len(files):
        sign = -1.0 if known[0][1] < known[-1][1] else 1.0
        yield Ranking("timm", {name: sign * metric for name, metric in known})
