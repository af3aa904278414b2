"""What a worker does with a job: the real operations. Loaded by worker processes only, because it loads torch."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckzd.daemon.jobs import Check, Clean, Compress, Job, Prune, Replace, Tell
from ckzd.daemon.pruning import prune_store
from ckzd.operations.check import Options, check
from ckzd.operations.compress import compress
from ckzd.operations.places import places_in
from ckzd.operations.replace import empty_trash, recover, replace, require_replaceable, rescue
from ckzd.operations.room import keep_free, watch_room
from ckzd.pace import unpaced
from ckzd.store import Store


def perform(job: Job, device: str, tell: Tell) -> dict[str, Any]:
    """Do one job; the report as a dict."""
    match job:
        case Compress():
            with watch_room(job.store, job.min_free):
                report = compress(
                    job.checkpoint,
                    store=job.store,
                    preset=job.preset,
                    effort=job.effort,
                    stride=job.stride,
                    max_depth=job.max_depth,
                    base_model=job.base_model,
                    device=device,
                    accept_command=job.accept_command,
                    accept_seconds=job.accept_seconds,
                    min_free=job.min_free,
                    on_stage=tell,
                )
            return report.to_dict()
        case Replace():
            return {"reclaimed_bytes": _replace(job, tell)}
        case Clean():
            with unpaced():
                return _clean(job)
        case Prune():
            with unpaced():
                return _prune(job)
        case Check():
            return check_share(job, tell)
    raise AssertionError(job.kind)


def _replace(job: Replace, tell: Tell) -> int:
    store = Store.open(job.store)
    for archive, checkpoint in {archive: checkpoint for checkpoint, archive in job.beside}.items():
        require_replaceable(checkpoint, archive, store)  # once where several files are of one archive
    return replace(job.checkpoint, job.archive, store, on_step=lambda step: tell(f"replace: {step}", 0.0))


def check_share(job: Check, tell: Tell, clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """Counts of what was found of the archives, and all that cannot be restored from."""
    places = places_in(Store.open(job.store), job.runs)
    options = Options(job.percent, seconds=job.seconds)
    outcomes = list(check(places, options, on_archive=lambda _: tell("check", 0.0), clock=clock))
    gone = [outcome for outcome in outcomes if outcome.outcome in {"damaged", "missing"}]
    return {
        "outcomes": dict(Counter(outcome.outcome for outcome in outcomes)),
        "damaged": sorted({archive for outcome in gone for archive in (outcome.archive, *outcome.lost)}),
    }


def _clean(job: Clean) -> dict[str, Any]:
    store = Store.open(job.store)
    recover(store)
    rescued = rescue(store)
    freed = empty_trash(store, job.trash_seconds, time.time()) + keep_free(store, job.min_free)
    return {"freed_bytes": freed, "rescued": [str(path) for path in rescued]}


def _prune(job: Prune) -> dict[str, Any]:
    report = prune_store(job.store, job.runs, roots=job.roots, quota=job.quota)
    slim = [judged.archive for judged in report.judged if judged.drops_moments]
    return report.to_dict() | {
        "archives": [judged.archive for judged in report.judged if judged.goes],
        "slimmed": {archive: Path(archive).stat().st_size for archive in slim},
    }
