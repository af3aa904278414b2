"""What a checkpoint is a delta against: the archive before it in its series, or what is nearest where no name tells.

    step_300.pt        -> step_200.pt: what follows in a series is near, and nothing else is looked at
    last.pt, best.pt   -> whichever of their own last one and the newest of each other series is nearest
    ckpt_400.pt, first of its name, or far from the one before it -> the nearest of other series, if it is near

Others are looked at as far as their reconstructions are at hand, which those of live series are.
"""

import logging
from contextlib import suppress
from pathlib import Path

from ckzd.chains import ArchiveRecord
from ckzd.checkpoint import Checkpoint
from ckzd.codec.analysis.nearness import NEAR, nearness
from ckzd.codec.decode import MALFORMED
from ckzd.codec.records.reconstruction import Reconstruction
from ckzd.formats.names import step_in_name
from ckzd.store import Store

log = logging.getLogger(__name__)


def reference_for(checkpoint: Checkpoint, store: Store, run: Path, stride: int, max_depth: int) -> ArchiveRecord | None:
    """The archive that this checkpoint is a delta against; None makes it a base."""
    found = store.references_for(run, checkpoint.step, checkpoint.name, stride, max_depth)
    distance = None if found.own is None else _distance(checkpoint, found.own, store)
    name_tells = found.own is not None and step_in_name(checkpoint.name) is not None
    if name_tells and (distance is None or not distance >= NEAR):
        return found.own
    near = [] if found.own is None or distance is None else [(distance, found.own)]
    near += [(far, other) for other in found.others if (far := _distance(checkpoint, other, store)) is not None]
    near = [(far, record) for far, record in near if far < NEAR]
    chosen = min(near, key=lambda pair: pair[0])[1] if near else found.own
    if chosen is None:
        log.info("no reference: the archive becomes a base", extra={"checkpoint": checkpoint.name})
    return chosen


def _distance(checkpoint: Checkpoint, record: ArchiveRecord, store: Store) -> float | None:
    """See `nearness`; None where its reconstruction is not cached, or not as it should be.

    It is not hashed for this: whoever decodes with it does that. Damage could only lead to a worse choice.
    """
    with suppress(OSError, *MALFORMED), store.cache_path(record.manifest.reconstruction).open("rb") as file:
        return nearness(checkpoint, Reconstruction(file))
    return None
