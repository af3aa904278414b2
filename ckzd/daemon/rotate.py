"""on_rotate = "drop": archives of checkpoints that the framework itself has deleted."""

import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from ckzd.daemon.journal import Journal
from ckzd.daemon.metrics import Metrics
from ckzd.daemon.scan import Run
from ckzd.daemon.states import Row, State
from ckzd.daemon.stores import Stores
from ckzd.errors import CkzdError
from ckzd.operations.pointer import named_below

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
        unwanted = {row.archive: row for row in rows if _is_unwanted(row, rows, now, run.watch.scan_seconds)}
        try:
            archives = {archive for archive in unwanted if archive is not None}
            archives -= stores.of_an_earlier_directory(run.store, run.path)
            if not archives:
                continue
            named = named if named is not None else set().union(*map(named_below, roots))
            archives -= named
            dropped = stores.drop(run.store, run.path, archives, run.watch.stride)
        except (CkzdError, OSError) as error:  # locked by a reader: next time
            log.info("archives not dropped yet", extra={"run": str(run.path), "error": str(error)})
            continue
        for archive in dropped:
            journal.forget(unwanted[archive].number)
            metrics.checkpoints.labels("dropped").inc()


def _is_unwanted(row: Row, rows: Collection[Row], now: float, scan_seconds: float) -> bool:
    """Gone for a while, and nothing that is still there was, or may turn out to be, made from its archive."""
    if row.state is not State.ROTATED or row.archive is None:
        return False
    here = [other for other in rows if other.state is not State.ROTATED]
    shared = any(other.archive == row.archive or (other.path == row.path and other.archive is None) for other in here)
    return not shared and now - row.changed >= max(MIN_GONE_SECONDS, 2 * scan_seconds)
