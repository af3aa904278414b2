"""Room on the disk: what an archive takes while it is made, and what goes for it.

What has been replaced lies in the trash for a while, and may be fetched back from there as long as nobody needs the
room: it is emptied, the oldest first, when the disk gets full, and as soon as ckzd would have added more to the disk
than it has given back. So a run with ckzd takes no more than without, but for its first archives.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ckzd import durable
from ckzd.chains import ArchiveRecord
from ckzd.checkpoint import Checkpoint
from ckzd.codec.presets import Preset, Scheme
from ckzd.errors import CkzdError, StoreLocked
from ckzd.meanwhile import repeated
from ckzd.operations.originals import allocated_bytes
from ckzd.operations.pointer import pointer_for, points_to
from ckzd.operations.replace import empty_trash
from ckzd.operations.trash import Entry
from ckzd.series import split
from ckzd.store import Store

FREE_CHECKPOINTS = 2  # of the run's size: what stays free if nobody says how much, for the trainer's next ones
LOOK_SECONDS = 2.0  # between two looks at the disk while something else is done
_MARGIN = 1.1  # of what the last ones took
_FIRST_ARCHIVE = 0.5  # of a checkpoint, where nothing is known of the run; a base takes a fifteenth
_WIDEST = 4.2  # bytes an element of a base's reconstruction: float32, and scales
_LEVELS = 6.0  # bytes an element of the encoder's scratch: levels of a weight and its moments (measured: 4.0 to 4.5)
_BASES = 2.25  # times as large is that of a delta, with adaptive bases of 4 bytes an element (measured: 2.17)


def make_room(store: Store, run: Path, nbytes: int, min_free: int) -> None:
    """Have `nbytes` free and `min_free` beside them, and the run no larger than without us, as far as trash can do it.

    Then, for the bytes alone, reconstructions go that other runs' archives would be faster with. Raises NoSpace unless
    they fit at last.
    """
    run = run.resolve()
    excess = added_bytes(store, run) + nbytes
    with suppress(StoreLocked):  # somebody replaces or cleans: without what is in the trash, then
        if excess > 0:
            empty_trash(store, 0.0, time.time(), run=run, until=lambda freed: freed >= excess)
        _empty_until_free(store, nbytes + min_free)
    if durable.free_bytes(store.tmp) < nbytes:
        own = {record.manifest.reconstruction for record in store.archives(run)}
        store.evict_cache(own, 0)
    durable.require_space(store.tmp, nbytes)


def keep_free(store: Store, min_free: int) -> int:
    """Empty the trash and then the cache until so much is free, or both are empty; bytes that this freed."""
    freed = _empty_until_free(store, min_free)
    return freed if durable.free_bytes(store.tmp) >= min_free else freed + store.evict_cache(set(), 0)


@contextmanager
def watch_room(root: Path, min_free: int) -> Iterator[None]:
    """Meanwhile, empty the trash of the store at `root`, if there is one, whenever less is free: work may take long."""

    def look() -> None:
        with suppress(CkzdError, OSError):  # whoever needs the room says so
            if Store.is_at(root):
                _empty_until_free(Store.open(root), min_free)

    with repeated(look, LOOK_SECONDS, "ckzd-room"):
        yield


def _empty_until_free(store: Store, nbytes: int) -> int:
    if durable.free_bytes(store.tmp) >= nbytes:
        return 0
    return empty_trash(store, 0.0, time.time(), until=lambda _: durable.free_bytes(store.tmp) >= nbytes)


def added_bytes(store: Store, run: Path) -> int:
    """What ckzd holds for the checkpoints of a run that are still there, less what it has deleted of them."""
    added, records = 0, store.archives(run)
    for record in records:
        checkpoint = run / record.manifest.name
        replaced = points_to(pointer_for(checkpoint), record.path)
        if replaced or checkpoint.exists():
            added += record.path.stat().st_size - (record.manifest.original_bytes if replaced else 0)
    for cache in {store.cache_path(record.manifest.reconstruction) for record in records}:
        added += cache.stat().st_size if cache.exists() else 0
    for entry in Entry.all_of(store):
        if entry.checkpoint.parent == run:
            held = (entry.root / "held").rglob("*")
            added += allocated_bytes([path for path in held if os.path.lexists(path) and not path.is_dir()])
    return added


def space_needed(
    store: Store,
    run: Path,
    checkpoint: Checkpoint,
    preset: Preset,
    *,
    restored: bool,
    reference: ArchiveRecord | None = None,
    as_base: bool = False,
) -> int:
    """What is written until the archive is there: it, its reconstruction, and the encoder's scratch.

    What loses nothing has no scratch, but the verifier makes a reconstruction of its own: nothing is restored ahead.

    As much as the last archives of its series took, or of the run, for their checkpoints' sizes; the codec's bounds
    where there are none. `restored`: the accept command gets a copy. `reference`: what it is a delta against, if not
    the newest. `as_base`: without a reference, though the run may have one.
    """
    archives = [record for record in store.archives(run) if record.manifest.preset == preset.name]
    records = split(archives, checkpoint.name, checkpoint.step)[0] or archives
    records = [record for record in records if not record.manifest.depth] if as_base else records
    sizes = [record.path.stat().st_size / record.manifest.original_bytes for record in records]
    exact = preset.scheme is Scheme.EXACT
    archive = max(sizes) * checkpoint.nbytes if sizes else checkpoint.nbytes * (1.0 if exact else _FIRST_ARCHIVE)
    rest = checkpoint.nbytes if restored else 0
    elements = _kept_elements(checkpoint)
    reconstruction, scratch, files = _WIDEST * elements, 0.0 if exact else _LEVELS * elements, 2 if exact else 1
    if as_base:
        return int(_MARGIN * (archive + files * reconstruction + scratch)) + rest
    reconstruction *= _BASES if records and not exact else 1.0
    for record in records:  # the newest that is cached
        cache = store.cache_path(record.manifest.reconstruction)
        if cache.exists():
            growth = 1.0 if exact or record.manifest.depth else _BASES
            reconstruction = growth * cache.stat().st_size * checkpoint.nbytes / record.manifest.original_bytes
    before = reference or (records[-1] if records else None)
    is_decoded = before is not None and not store.cache_path(before.manifest.reconstruction).exists()
    files = 4 if is_decoded else files  # the reference's, decoded from its own by both
    return int(_MARGIN * (archive + files * reconstruction + scratch)) + rest


def _kept_elements(checkpoint: Checkpoint) -> int:
    """Of the tensors that a dependent needs: those that are no optimizer's state."""
    states = [(*optimizer.path, "state") for optimizer in checkpoint.optimizers]
    return sum(
        tensor.elements
        for tensor in checkpoint.tensors
        if not any(tensor.path[: len(state)] == state for state in states)
    )
