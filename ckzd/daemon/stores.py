"""The stores that the daemon writes to: opened and locked once, cleaned after a crash, kept small, measured."""

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckzd import durable
from ckzd.chains import ArchiveRecord
from ckzd.config import WatchSettings
from ckzd.daemon.clock import Clock
from ckzd.daemon.jobs import Check, Clean, Job
from ckzd.daemon.scrub import Scrub
from ckzd.errors import CkzdError
from ckzd.operations.originals import of_base_models
from ckzd.operations.pointer import places_of, pointer_for, points_to
from ckzd.operations.trash import archives_in_trash
from ckzd.retention import Rules, kept_by
from ckzd.series import next_references
from ckzd.store import Store, default_store

log = logging.getLogger(__name__)

CLEAN_AGAIN_SECONDS = 60.0
PRUNE_SECONDS = 3600.0  # archives grow old without an event
PRUNE_AGAIN_SECONDS = 60.0  # after something has changed
MEASURE_SECONDS = 30.0  # walking a store with thousands of archives takes a moment


@dataclass
class _Opened:
    store: Store
    trash_seconds: float
    dirty: bool  # a replacement may be half-done: to be cleaned before anything else
    scrub: Scrub
    clean_not_before: float = 0.0
    prune_not_before: float = 0.0  # monotonic, like the one above
    over_quota_bytes: int = 0
    min_free: dict[Path, int] = field(default_factory=dict)  # run -> bytes

    @property
    def wanted_bytes(self) -> int:
        """Bytes that are to stay free."""
        return max(self.min_free.values(), default=0)


class Stores:
    """Every store is held by one daemon: opening one that another daemon holds raises StoreLocked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._locks = ExitStack()
        self._opened: dict[Path, _Opened] = {}
        self._sizes: dict[Path, dict[str, Any]] = {}
        self._measured = float("-inf")

    def open(self, run: Path, watch: WatchSettings) -> Path:
        """The root of the run's store, created, locked and ready."""
        root = watch.store if watch.store is not None else default_store(run)
        opened = self._opened.get(root)
        if opened is None:
            store = Store.open_or_create(root)
            self._locks.enter_context(store.daemon_lock())
            unclean = any(path for place in (store.trash, store.tmp) for path in place.iterdir())
            opened = _Opened(store, watch.trash_seconds, unclean, Scrub(store, self._clock))
            opened.prune_not_before = self._clock.monotonic()
            self._opened[root] = opened
        opened.trash_seconds = max(opened.trash_seconds, watch.trash_seconds)
        if run.is_dir():
            opened.store.of_an_earlier_directory(run)  # remembers which one this is
        return root

    def of_an_earlier_directory(self, root: Path, run: Path) -> set[Path]:
        """See the store."""
        return self._opened[root].store.of_an_earlier_directory(run)

    def close(self) -> None:
        """Give the locks back."""
        self._locks.close()
        self._opened.clear()

    def archives(self, root: Path, run: Path) -> list[ArchiveRecord]:
        """The archives of a run, in order."""
        return self._opened[root].store.archives(run)

    def is_dirty(self, root: Path) -> bool:
        """Whether a crash may have left something half-done: then nothing else is begun there."""
        return self._opened[root].dirty

    def mark_dirty(self, root: Path) -> None:
        """A replacement was interrupted."""
        self._opened[root].dirty = True

    def keep_free(self, root: Path, run: Path, nbytes: int) -> None:
        """For a run, so many bytes are to stay free on the store's file system."""
        self._opened[root].min_free[run] = nbytes

    def to_clean(self) -> list[Job]:
        """Of the stores that are dirty, hold trash that is old enough, or any while the disk is too full."""
        now = self._clock.monotonic()
        return [
            Clean(root, trash_seconds=opened.trash_seconds, min_free=opened.wanted_bytes)
            for root, opened in self._opened.items()
            if now >= opened.clean_not_before
            and (opened.dirty or self._has_old_trash(opened) or _is_short_of_space(opened))
        ]

    def cleaned(self, root: Path, freed_bytes: int) -> None:
        """A clean job ended well; what it left it had reasons to leave, so if that was all the next one waits."""
        self._opened[root].dirty = False
        if not freed_bytes:
            self.wait_with_cleaning(root)

    def wait_with_cleaning(self, root: Path) -> None:
        """Leave the store's trash alone for a while."""
        self._opened[root].clean_not_before = self._clock.monotonic() + CLEAN_AGAIN_SECONDS

    def to_check(self, percent_a_day: float, runs: Mapping[Path, Sequence[Path]], nbytes: int) -> Iterator[Check]:
        """Shares of stores that are due to be read back. `runs`: by store."""
        for root, opened in self._opened.items():
            if not opened.dirty and (due := opened.scrub.portion(percent_a_day, runs.get(root, ()), nbytes)):
                yield due

    def checked(self, root: Path, *, well: bool) -> None:
        """A check has ended."""
        self._opened[root].scrub.ended(well=well)

    def is_to_prune(self, root: Path, *, late_seconds: float = 0.0) -> bool:
        """Whether it is time to look what may go, since so long."""
        return self._clock.monotonic() >= self._opened[root].prune_not_before + late_seconds

    def pruned(self, root: Path, over_quota_bytes: int) -> None:
        """What could go has gone."""
        opened = self._opened[root]
        opened.prune_not_before = self._clock.monotonic() + PRUNE_SECONDS
        opened.over_quota_bytes = over_quota_bytes

    def prune_again(self, root: Path) -> None:
        """More may go than when it was last asked: in a while."""
        opened, soon = self._opened[root], self._clock.monotonic() + PRUNE_AGAIN_SECONDS
        opened.prune_not_before = min(opened.prune_not_before, soon)

    def wait_with_pruning(self, root: Path, *, shortly: bool) -> None:
        """It could not be done now: somebody held the store, or something is in the way that a person has to see."""
        wait = PRUNE_AGAIN_SECONDS if shortly else PRUNE_SECONDS
        self._opened[root].prune_not_before = self._clock.monotonic() + wait

    def drop(
        self, root: Path, run: Path, unwanted: Collection[Path], stride: int, rules: Rules | None = None
    ) -> list[Path]:
        """Delete those of the unwanted archives that nothing needs; what was deleted.

        Needed is what another archive is a delta against, what a pointer in the run names, what a base model may be
        restored from, and the newest `stride` archives of each series: the next checkpoint is a delta against one of
        them, so ruined ones do not count. What `rules` keep stays, too, and what an original in the trash has become.
        StoreLocked while somebody reads or writes.
        """
        store = self._opened[root].store
        dropped: list[Path] = []
        with store.lock(shared=False):
            unwanted = set(unwanted) - set(archives_in_trash(store))
            records = store.archives(run)
            by_rule = kept_by(rules, records).keys() if rules is not None else set()
            of_models = of_base_models(root, records)
            while True:
                references = {record.manifest.reference for record in records}
                kept = next_references(records, stride) | by_rule
                droppable = [
                    record
                    for record in records
                    if record.path in unwanted
                    and record.path not in kept
                    and record.manifest.reconstruction not in references
                    and record.path not in of_models
                    and not any(points_to(pointer_for(place), record.path) for place in places_of(run, record.manifest))
                ]
                if not droppable:
                    store.forget_unneeded_models()
                    return dropped
                for record in droppable:
                    log.info("archive dropped", extra={"archive": str(record.path)})
                    durable.remove(record.path)
                    dropped.append(record.path)
                records = [record for record in records if record.path not in dropped]

    def facts(self) -> list[dict[str, Any]]:
        """Sizes of each store, measured now and then."""
        now = self._clock.monotonic()
        if now - self._measured >= MEASURE_SECONDS or self._sizes.keys() != self._opened.keys():
            self._measured = now
            self._sizes = {
                root: measure(opened.store, opened.trash_seconds)
                | {"over_quota_bytes": opened.over_quota_bytes, "check": opened.scrub.facts()}
                for root, opened in self._opened.items()
            }
        return list(self._sizes.values())

    def measure_again(self) -> None:
        """Something was written, moved or deleted: the next facts are new."""
        self._measured = float("-inf")

    def _has_old_trash(self, opened: _Opened) -> bool:
        limit = self._clock.time() - opened.trash_seconds
        return any(verified <= limit for verified in _verified_at(opened.store.trash))


def _is_short_of_space(opened: _Opened) -> bool:
    """Whether the disk is too full, and there is something of ours that may go."""
    store = opened.store
    with suppress(OSError):
        if durable.free_bytes(store.root) < opened.wanted_bytes:
            return any(_verified_at(store.trash)) or any(store.cache.glob("*.rec"))
    return False


def _verified_at(trash: Path) -> Iterator[float]:
    """When each original in the trash was found to be what its archive stands for."""
    with suppress(OSError):  # the store is out of sight: a scan will say so
        for entry in trash.iterdir():
            with suppress(OSError):  # not there: half-done, or just gone
                yield (entry / "verified").stat().st_mtime


def measure(store: Store, trash_seconds: float | None) -> dict[str, Any]:
    """What is on disk of a store, and how long the last of its trash stays there if there is room; None: not known."""
    try:
        free = durable.free_bytes(store.root)
    except (OSError, CkzdError):
        free = 0
    last = max(_verified_at(store.trash), default=None)
    return {
        "store": str(store.root),
        "free_bytes": free,
        "archive_bytes": _tree_bytes(store.root / "archives"),
        "cache_bytes": _tree_bytes(store.cache),
        "trash_bytes": _tree_bytes(store.trash),
        "trash_until": None if trash_seconds is None or last is None else last + trash_seconds,
    }


def _tree_bytes(place: Path) -> int:
    """Bytes on disk of the files under a directory; what vanishes meanwhile does not count."""
    total, folders = 0, [str(place)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += durable.disk_bytes(entry.stat(follow_symlinks=False))
        except OSError:
            continue
    return total
