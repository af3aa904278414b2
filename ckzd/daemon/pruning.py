"""What the daemon and `ckzd prune` do alike: ask the markers of a store's runs, and prune it."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ckzd.config import Settings, WatchSettings
from ckzd.daemon.protect import Protection
from ckzd.daemon.settle import FormatsRule
from ckzd.errors import CkzdError
from ckzd.operations.places import Place
from ckzd.operations.prune import PruneReport, Run, prune
from ckzd.retention import NO_QUOTA, Quota
from ckzd.store import Store, default_store


@dataclass
class Ruled:
    """A store, its runs, and what its quota is."""

    runs: list[Run] = field(default_factory=list)
    quota: Quota = NO_QUOTA

    def add(self, run: Path, watch: WatchSettings | None) -> None:
        """One more run; of several quotas the smallest holds."""
        keep = watch.keep if watch is not None else None
        root, stride = (watch.path, watch.stride) if watch is not None else (run, 1)
        self.runs.append(Run(run, root, keep.rules if keep else None, stride))
        self.quota = self.quota.and_also(keep.quota) if keep else self.quota


def prune_store(
    root: Path, runs: Sequence[Run], *, roots: Iterable[Path], quota: Quota, dry_run: bool = False
) -> PruneReport:
    """Prune a store now; what markers name in the runs and above them, up to the watched directories, stays."""
    protection = Protection(FormatsRule())

    def markers(run: Run, checkpoints: Sequence[Path]) -> Mapping[Path, str]:
        return protection.held_where_they_stood(run.root, run.path, checkpoints)

    store = Store.open(root)
    return prune(store, runs, roots=roots, now=time.time(), quota=quota, markers=markers, dry_run=dry_run)


def ruled(settings: Settings, places: Iterable[Place]) -> dict[Path, Ruled]:
    """The stores that places are in, each with the runs of it that are in sight. What is not watched has no rules."""
    found: dict[Path, Ruled] = {}
    for place in places:
        if place.store is not None:
            of_store = found.setdefault(place.store.root, Ruled())
            if place.run is not None and place.archives in {None, place.store.run_directory(place.run)}:
                of_store.add(*_watch_of(settings, place.run, place.store))
    return found


def _watch_of(settings: Settings, run: Path, store: Store) -> tuple[Path, WatchSettings | None]:
    """A run, as it is called below the watch that it is in, and that watch if its archives are in this store."""
    for watch in settings.watch:
        if run.resolve().is_relative_to(watch.path.resolve()):
            run = watch.path / run.resolve().relative_to(watch.path.resolve())
            with suppress(CkzdError):
                own = watch.store if watch.store is not None else default_store(run)
                return run, watch if own.resolve() == store.root else None
    return run, None
