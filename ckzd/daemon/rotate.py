"""on_rotate = "drop": archives of checkpoints that the framework itself has deleted."""

import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from ckzd.daemon.journal import Journal
from ckzd.daemon.metrics import Metrics
from ckzd.daemon.scan import Run
from ckzd.daemon.states import Row, State
from ckzd.daemon.stores import Stores
from ckzd.errors import CkzdError
from ckzd.operations.pointer import named_below
from ckzd.store import Store

log = logging.getLogger(__name__)

MIN_GONE_SECONDS = 300.0  # a directory that a file server hides for a while must not look like a deletion


def drop_rotated(
    runs: Iterable[Run],
    *,
    roots: Iterable[Path],
    busy: Collection[Path | None],
    journal: Journal,
    stores: Stores,
    metrics: Metrics,
    now: float,
) -> None:
    """Delete what `on_rotate` says and nothing needs; journal rows go with their archives.

    A pointer anywhere below `roots` keeps the archive that it names, and so does a run that was another directory when
    the archive was made.
    """
    named: set[Path] | None = None  # looked for when there is something to drop
    for run in runs:
        if run.watch.on_rotate != "drop" or run.path in busy or not run.checkpoints:
            continue  # a run in which nothing is left may only be out of sight
        rows = journal.rows(run=run.path)
        unwanted = _unwanted(rows, now, run.watch.scan_seconds)
        try:
            archives = set(unwanted)
            archives -= stores.of_an_earlier_directory(run.store, run.path)
            if not archives:
                continue
            named = named if named is not None else {archive for root in roots for archive in named_below(root)}
            archives -= named
            keep = run.watch.keep
            rules = keep.rules if keep is not None else None
            dropped = stores.drop(run.store, run.path, archives, run.watch.stride, rules)
        except (CkzdError, OSError) as error:  # locked by a reader: next time
            log.info("archives not dropped yet", extra={"run": str(run.path), "error": str(error)})
            continue
        for archive in dropped:
            for row in unwanted[archive]:
                journal.forget(row.number)
            metrics.checkpoints.labels("dropped").inc()


def forget_pruned(journal: Journal) -> None:
    """Rows of checkpoints that are gone with their archives: somebody has pruned beside the daemon."""
    for row in journal.rows(states={State.ROTATED}):
        if row.archive is not None and not os.path.lexists(row.archive) and Store.is_at(row.archive.parents[2]):
            journal.forget(row.number)


def _unwanted(rows: Collection[Row], now: float, scan_seconds: float) -> dict[Path, list[Row]]:
    """Archives of which all names are gone for a while, with their rows: a copy has a name of its own.

    Nothing that is still there was, or may turn out to be, made from them.
    """
    found: dict[Path, list[Row]] = defaultdict(list)
    for row in rows:
        if row.archive is not None:
            found[row.archive].append(row)
    unknown = {row.path for row in rows if row.state is not State.ROTATED and row.archive is None}
    seconds = max(MIN_GONE_SECONDS, 2 * scan_seconds)

    def is_gone(row: Row) -> bool:
        return row.state is State.ROTATED and row.path not in unknown and now - row.changed >= seconds

    return {archive: own for archive, own in found.items() if all(map(is_gone, own))}
