"""What an archive says of itself, without decoding it."""

from pathlib import Path
from typing import Any

from ckzd.archive import ArchiveReader, Manifest
from ckzd.chains import ArchiveRecord
from ckzd.codec.presets import PRESETS, Scheme
from ckzd.codec.records.index import Method
from ckzd.defaults import Effort
from ckzd.operations.pointer import resolve

_EXACT = frozenset({Method.COPY, Method.SAME, Method.EXACT, Method.DELTA, Method.ULPS})

KEPT_EXACT = "no weights are known in it: kept exact"
RUINED = "half of its numbers or more became NaN or infinite: no later one is compressed against it"


def inspect(path: Path | str) -> dict[str, Any]:
    """The manifest's fields and what follows from them: size, ratio, bits a parameter by part, container overhead.

    `promise` is what its preset says today, `tightened` whether bits were spent to keep to the budget in `quality`.
    `carries` names the checkpoints that were merged into it: it holds their weights for itself and what hangs on it.
    """
    record = resolve(Path(path))
    if not record.manifest.is_of_all_files:  # one of several is named
        record = ArchiveRecord.read(record.path)
    manifest, archive_bytes = record.manifest, record.path.stat().st_size
    fields = manifest.model_dump(mode="json")
    parts = {**manifest.parts, "container": archive_bytes - sum(manifest.parts.values())}
    return {
        "archive": str(record.path),
        "archive_bytes": archive_bytes,
        "ratio": manifest.original_bytes / archive_bytes,
        **{name: value for name, value in fields.items() if name != "parts"},
        "effort": manifest.effort or Effort.BEST.value,
        "promise": PRESETS[manifest.preset].promise if manifest.preset in PRESETS else None,
        "tightened": is_tightened(manifest),
        "kept_exact": KEPT_EXACT if is_kept_exact(manifest) else "no",
        "carries": _carried_by(record),
        "parts": parts,
        "bits_per_parameter": {
            part: 8 * nbytes / manifest.parameters for part, nbytes in parts.items() if manifest.parameters
        },
    }


def _carried_by(record: ArchiveRecord) -> list[str]:
    if not record.manifest.carried:
        return []
    with ArchiveReader(record.path) as reader:
        return [link.manifest.name for link in reader.carried()]


def is_tightened(manifest: Manifest) -> bool:
    """Whether weights were coded finer than their preset's step, or exactly, to keep to its budget."""
    return any(manifest.quality.get(name, 0) for name in ("tightened_tensors", "exact_tensors"))


def is_kept_exact(manifest: Manifest) -> bool:
    """Whether a preset that may lose found nothing that it knows how to lose: no weight with its moments."""
    may_lose = manifest.preset in PRESETS and PRESETS[manifest.preset].scheme is not Scheme.EXACT
    lossy = any(count for coder, count in manifest.coders.items() if coder not in _EXACT)
    return may_lose and manifest.parameters > 0 and not lossy
