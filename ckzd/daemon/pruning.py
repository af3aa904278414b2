"""What the daemon and `ckzd prune` do alike: ask the markers of a store's runs, and prune it."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ckzd.config import Settings, WatchSettings
from ckzd.daemon.protect import Protection
from ckzd.daemon.settle import FormatsRule
from ckzd.errors import CkzdError, ConfigError
from ckzd.operations.places import look_below
from ckzd.operations.prune import PruneReport, Run, prune
from ckzd.retention import NO_QUOTA, Quota
from ckzd.store import STORE_NAME, Store, default_store


@dataclass
class Ruled:
    """A store, its runs, and what its quota is."""

    runs: list[Run] = field(default_factory=list)
    quota: Quota = NO_QUOTA

    def add(self, run: Path, watch: WatchSettings) -> None:
        """One more run; of several quotas the smallest holds."""
        keep = watch.keep
        self.runs.append(Run(run, watch.path, keep.rules if keep else None, watch.stride))
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


def meant(settings: Settings, paths: Sequence[Path], *, lenient: bool = False) -> dict[Path, Ruled]:
    """The stores that a user means by stores, runs and directories of runs, or all that are watched, with their runs.

    What is not watched has no rules. Raises ConfigError for a path under which nothing is archived, unless `lenient`.
    """
    if not settings.watch and not paths:
        raise ConfigError("watch", "nothing is watched", hint="name a run or a store, or add --config FILE")
    watched = list(_runs(settings.watch))
    found: dict[Path, Ruled] = {}
    for run, watch, root in watched if not paths else ():
        found.setdefault(root, Ruled()).add(run, watch)
    for path in map(Path.absolute, paths):
        chosen = [each for each in watched if _is_meant(path, each[0], each[2])]
        if not chosen and path.is_dir():
            chosen = list(_runs([WatchSettings(path=path, replace=False)]))
        if not chosen and not lenient:
            raise ConfigError(path, "nothing is archived of a run there", hint="name a run, its store, or one above")
        for run, watch, root in chosen:
            ruled = found.setdefault(root, Ruled())
            if run not in {known.path for known in ruled.runs}:
                ruled.add(run, watch)
    return found


def stores_meant(settings: Settings, paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """The stores that a user means, or all that are watched, even if no run of theirs is in sight; with their runs."""
    found = {root: [run.path for run in ruled.runs] for root, ruled in meant(settings, paths, lenient=True).items()}
    places = [path.absolute() for path in paths] or [watch.path for watch in settings.watch]
    named = [watch.store for watch in settings.watch if watch.store is not None and not paths]
    for root in (*named, *(place / name for place in places for name in (".", STORE_NAME))):
        if Store.is_at(root) and not any(root.samefile(known) for known in found):
            found[root] = []
    for place in places:
        if not any(root.is_relative_to(place) or runs for root, runs in found.items()):
            raise ConfigError(place, "there is no store", hint="name a store, a run, or a directory of runs")
    return found


def _runs(watches: Iterable[WatchSettings]) -> Iterator[tuple[Path, WatchSettings, Path]]:
    """Every run in sight that has archives, its watch, and its store."""
    for watch in watches:
        for contents in look_below(watch.path):
            if contents.is_run:
                with suppress(CkzdError):
                    root = watch.store if watch.store is not None else default_store(contents.path)
                    if Store.open(root).run_directory(contents.path).is_dir():
                        yield contents.path, watch, root


def _is_meant(path: Path, run: Path, root: Path) -> bool:
    return run.is_relative_to(path) or root == path
