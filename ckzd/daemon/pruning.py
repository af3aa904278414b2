"""What the daemon, `ckzd prune` and `ckzd merge` do alike: ask the markers of a store's runs, and prune or merge."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ckzd.config import Settings, WatchSettings
from ckzd.daemon.protect import Protection
from ckzd.daemon.settle import FormatsRule
from ckzd.errors import CkzdError, ConfigError
from ckzd.formats.names import POINTER_NAME
from ckzd.operations.merge import Merged, merge
from ckzd.operations.places import Place, places
from ckzd.operations.pointer import resolve
from ckzd.operations.prune import AskMarkers, PruneReport, Run, prune
from ckzd.operations.reconstruct import store_of
from ckzd.retention import NO_QUOTA, Quota
from ckzd.store import Store, default_store


@dataclass
class Ruled:
    """A store, its runs, and what its quota is."""

    runs: list[Run] = field(default_factory=list)
    quota: Quota = NO_QUOTA

    def add(self, run: Path, watch: WatchSettings | None, root: Path | None = None) -> None:
        """One more run; of several quotas the smallest holds. `root`: where to look for what names it, if no watch."""
        keep = watch.keep if watch is not None else None
        root, stride = (watch.path, watch.stride) if watch is not None else (root or run, 1)
        self.runs.append(Run(run, root, keep.rules if keep else None, stride))
        self.quota = self.quota.and_also(keep.quota) if keep else self.quota


def prune_store(
    root: Path, runs: Sequence[Run], *, roots: Iterable[Path], quota: Quota, dry_run: bool = False
) -> PruneReport:
    """Prune a store now; what markers name in the runs and above them, up to the watched directories, stays."""
    store = Store.open(root)
    return prune(store, runs, roots=roots, now=time.time(), quota=quota, markers=_markers(), dry_run=dry_run)


@dataclass(frozen=True, slots=True)
class Wish:
    """A run of a store, and the archives of it that a user wants merged; none: what its rules let go."""

    root: Path
    run: Run
    named: tuple[Path, ...] = ()


def wishes(settings: Settings, paths: Sequence[Path]) -> list[Wish]:
    """What a user means by archives, what stands for them, or as of `ruled`. Raises ConfigError of what is neither."""
    single = [path for path in paths if not path.is_dir() or os.path.lexists(path / POINTER_NAME)]
    below = [path for path in paths if path not in single]
    found = []
    if below or not paths:
        of_stores = ruled(settings, places(settings.asked(below)))
        found = [Wish(root, run) for root, of_store in of_stores.items() for run in of_store.runs]
    named: dict[Path, list[Path]] = {}
    for archive in dict.fromkeys(resolve(path).path for path in single):
        named.setdefault(archive.parent, []).append(archive)
    for directory, archives in named.items():
        store = store_of(archives[0])
        run = store.run_of(directory) if store is not None else None
        if store is None or run is None:
            problem = "lies in no store, or its run is not known: who needs it cannot be told"
            raise ConfigError(archives[0], problem, hint="name an archive in a store")
        (own,) = ruled(settings, [Place(directory, store, run)])[store.root].runs
        found.append(Wish(store.root, own, tuple(archives)))
    return found


def merge_run(wish: Wish, *, roots: Iterable[Path], dry_run: bool = False) -> Iterator[Merged]:
    """Fulfil it now; raises as `merge` does. Pointers are looked for below `roots` and the run's own root."""
    now, store = time.time(), Store.open(wish.root)
    day, seen = time.strftime("%Y-%m-%d", time.localtime(now)), (*roots, wish.run.root)
    return merge(store, wish.run, wish.named, day=day, now=now, roots=seen, markers=_markers(), dry_run=dry_run)


def _markers() -> AskMarkers:
    protection = Protection(FormatsRule())

    def markers(run: Run, checkpoints: Sequence[Path]) -> Mapping[Path, str]:
        return protection.held_where_they_stood(run.root, run.path, checkpoints)

    return markers


def ruled(settings: Settings, found_places: Iterable[Place]) -> dict[Path, Ruled]:
    """The stores that places are in, each with the runs of it that are in sight. What is not watched has no rules."""
    found: dict[Path, Ruled] = {}
    for place in found_places:
        if place.store is not None:
            of_store = found.setdefault(place.store.root, Ruled())
            if place.run is not None and place.archives in {None, place.store.run_directory(place.run)}:
                run, watch = _watch_of(settings, place.run, place.store)
                of_store.add(run, watch, _around(run, place.store))
    return found


def _around(run: Path, store: Store) -> Path:
    """Where somebody may have moved pointers to of a run that is not watched: where its store stands, or beside it."""
    place = store.root.parent
    return place if run.is_relative_to(place) else run.parent


def _watch_of(settings: Settings, run: Path, store: Store) -> tuple[Path, WatchSettings | None]:
    """A run, as it is called below the watch that it is in, and that watch if its archives are in this store."""
    for watch in settings.watch:
        if run.resolve().is_relative_to(watch.path.resolve()):
            run = watch.path / run.resolve().relative_to(watch.path.resolve())
            with suppress(CkzdError):
                own = watch.store if watch.store is not None else default_store(run)
                return run, watch if own.resolve() == store.root else None
    return run, None
