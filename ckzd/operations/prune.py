"""Prune a store: delete what its retention rules let go, and say of every archive why it goes or stays.

    look at disk -> what is safe, whatever the rules say -> retention.judge -> withdraw, dependents first

What is safe: an archive whose original stands in its place, or lies in the trash; what a marker names; what a pointer
anywhere else names, for somebody copied or moved it; what was made of a directory that has been moved; and all of a run
in which an archive cannot be read or misses what it needs, or of which nothing is in sight. A pointer in a checkpoint's
own place does not protect it from the rules: it is the checkpoint that they speak of, and it goes with its archive.
"""

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from ckzd import durable
from ckzd.archive.dropping import may_drop_moments, moment_bytes
from ckzd.chains import ArchiveRecord, archive_files, decodable
from ckzd.errors import CkzdError
from ckzd.formats import list_checkpoints
from ckzd.operations.ledger import Ledger
from ckzd.operations.originals import OF_A_BASE_MODEL, of_base_models
from ckzd.operations.pointer import is_as_archived, large_files, named_below, places_of, pointer_for
from ckzd.operations.slim import drop_moments
from ckzd.operations.trash import archives_in_trash
from ckzd.operations.withdraw import standing, withdraw
from ckzd.retention import NO_QUOTA, Held, Plan, Quota, Rules, Shelf, Verdict, judge
from ckzd.series import next_references, written
from ckzd.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the store and what is to be kept of it; `rules` None: everything. `root`: the watched directory."""

    path: Path
    root: Path
    rules: Rules | None = None
    stride: int = 1


AskMarkers = Callable[[Run, Sequence[Path]], Mapping[Path, str]]  # of a run, checkpoints -> who holds which


@dataclass(frozen=True, slots=True)
class Judged:
    """An archive and what became of it, or would."""

    run: str
    checkpoint: str
    archive: str
    step: int | None
    nbytes: int  # on disk
    goes: bool
    why: str
    pointer: bool  # one stands in its checkpoint's place
    drops_moments: bool  # it stays, as weights alone

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What became of a store's archives."""

    store: str
    judged: tuple[Judged, ...]
    freed_bytes: int
    quota_bytes: int | None
    over_quota_bytes: int  # what the quota is still exceeded by: what is kept takes more
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """For --json: the sums, without every archive."""
        gone = sum(judged.goes for judged in self.judged)
        return {
            "store": self.store,
            "pruned": gone,
            "kept": len(self.judged) - gone,
            "moments_dropped": sum(judged.drops_moments for judged in self.judged),
            "freed_bytes": self.freed_bytes,
            "quota_bytes": self.quota_bytes,
            "over_quota_bytes": self.over_quota_bytes,
            "dry_run": self.dry_run,
        }


def prune(
    store: Store,
    runs: Sequence[Run],
    *,
    roots: Iterable[Path],
    now: float,
    quota: Quota = NO_QUOTA,
    markers: AskMarkers = lambda _run, _checkpoints: {},
    dry_run: bool = False,
) -> PruneReport:
    """Delete what the rules of the runs, and the quota of their store, let go; `dry_run` only says so.

    Pointers are looked for anywhere below `roots`: CkzdError if one of these cannot be looked at. Nothing else is done
    in the store meanwhile: StoreLocked if somebody reads or writes. OSError where something cannot be deleted; what was
    to go is gone in part then, and the next call goes on.
    """
    pointers = pointers_in_sight(runs, roots)  # it may take minutes, in which a restore need not wait
    with store.lock(shared=dry_run):
        if not dry_run:
            store.sweep_temps()  # of those that were killed
        look = Look(store, pointers, markers, dry_run, Ledger.read(store))
        shelves = {run.path: look.shelf(run) for run in runs}
        limit = quota.limit(durable.total_bytes(store.root))
        cache = _Cache.of(store, [(shelf.stride, shelf.held) for shelf in shelves.values()])
        beside = _bytes_beside(store, [held for shelf in shelves.values() for held in shelf.held])
        plan = judge(list(shelves.values()), now=now, max_bytes=limit, other_bytes=beside + cache.needed_bytes)
        run_of = {held.path: path for path, shelf in shelves.items() for held in shelf.held}
        room = None if limit is None else limit - beside - plan.kept_bytes
        going = plan.going()
        evicted = cache.beyond(room, {held.record.manifest.reconstruction for held in going} - plan.reconstructions)
        evicted_bytes = sum(map(disk_bytes, evicted))
        whole: set[Path] = set()  # whose moments were to go, and could not
        if not dry_run:
            for entry in evicted:
                durable.remove(entry)
            _delete(store, plan, run_of)
            store.forget_unneeded_models()
            whole = _slim(store, plan, time.strftime("%Y-%m-%d", time.localtime(now)))
        verdicts = [replace(v, drops_moments=False) if v.held.path in whole else v for v in plan.verdicts]
        freed = evicted_bytes + sum(verdict.held.nbytes - verdict.left_bytes for verdict in verdicts)
        told = tuple(_told(verdict, run_of[verdict.held.path]) for verdict in verdicts)
    return PruneReport(str(store.root), told, freed, limit, plan.over_bytes, dry_run)


# What is on disk


@dataclass(frozen=True, slots=True)
class Look:
    """What one call sees of everything that is not the store's own."""

    store: Store
    pointers: Mapping[Path, Collection[Path]]  # archive -> pointers to it, anywhere
    markers: AskMarkers
    dry_run: bool
    ledger: Ledger  # what checks have found

    def shelf(self, run: Run) -> Shelf:
        """The archives of a run with what protects them."""
        records = self.store.archives(run.path)
        safe = _Safe()
        if run.rules is not None and records:
            self._protect(run, records, safe)
        held = tuple(
            Held(
                record,
                disk_bytes(record.path),
                _since(record),
                safe.why.get(record.path, ""),
                bool(standing(run.path, record)),
                _moments(record),
            )
            for record in records
        )
        return Shelf(run.rules, run.stride, held)

    def _protect(self, of: Run, records: list[ArchiveRecord], safe: "_Safe") -> None:
        run = of.path
        if why := self._why_nothing_goes(run, records):
            safe.add([record.path for record in records], why)
            return
        _protect_originals(run, records, safe)
        safe.add(archives_in_trash(self.store), "its original is still in the trash")
        safe.add(of_base_models(self.store.root, records), OF_A_BASE_MODEL)
        pointed = {record.path for record in records if standing(run, record)}
        earlier = self.store.of_an_earlier_directory(run, own=pointed, remember=not self.dry_run)
        safe.add(earlier, "it is of another directory that stood here before")
        self._protect_named(run, records, safe)
        places = {record.path: places_of(run, record.manifest) for record in records}
        names = [name for some in places.values() for name in some]
        told = self.markers(of, list(dict.fromkeys([*names, *list_checkpoints(run)])))
        for record in records:
            for marked in filter(None, map(told.get, places[record.path])):
                safe.add([record.path], marked)

    def _why_nothing_goes(self, run: Path, records: list[ArchiveRecord]) -> str:
        """Where not all is known nothing is deleted: what cannot be seen may need anything."""
        there = decodable(records, lambda record: not self.ledger.problem_of(record.path))
        for archive in archive_files(self.store.run_directory(run)):
            if archive not in there:
                return f"{archive.name} is damaged, or what it needs is missing: bring it back, or move it elsewhere"
        if not run.is_dir():
            return "its run is not there"
        if not list_checkpoints(run) and not any(standing(run, record) for record in records):
            return "nothing of its run is in sight"
        return ""

    def _protect_named(self, run: Path, records: list[ArchiveRecord], safe: "_Safe") -> None:
        """A pointer that is not in its checkpoint's own place is somebody's wish."""
        for record in records:
            own = {_place(pointer_for(place)) for place in standing(run, record)}
            for pointer in self.pointers.get(record.path.resolve(), ()):
                if _place(pointer) not in own:
                    safe.add([record.path], f"{pointer} names it")


class _Safe:
    """Archive -> why it stays: the first reason that was found."""

    def __init__(self) -> None:
        self.why: dict[Path, str] = {}

    def add(self, archives: Iterable[Path], why: str) -> None:
        """These stay."""
        for archive in archives:
            self.why.setdefault(archive, why)


def pointers_in_sight(runs: Iterable[Run], roots: Iterable[Path]) -> dict[Path, set[Path]]:
    """All pointers in sight, by the archive that they name."""
    named: dict[Path, set[Path]] = defaultdict(set)
    ruled = [run.path for run in runs if run.rules is not None and run.path.is_dir()]
    for root in dict.fromkeys((*roots, *ruled)) if ruled else ():
        try:
            found = named_below(root)
        except OSError as error:
            problem = f"cannot be looked at ({error.strerror}): a pointer there may name any archive"
            raise CkzdError(error.filename, problem, hint="nothing was deleted") from error
        for archive, pointers in found.items():
            named[archive].update(pointers)
    return named


def _place(pointer: Path) -> Path:
    """Where it stands, however one got there; a link is not what it leads to."""
    return pointer.parent.resolve() / pointer.name


def _protect_originals(run: Path, records: list[ArchiveRecord], safe: _Safe) -> None:
    """What stands there would only be archived again. Of several versions the newest counts, and what is as it was."""
    newest: dict[str, ArchiveRecord] = {}
    for record in sorted(records, key=written):
        newest[record.manifest.name] = record
    for record in records:
        checkpoint = run / record.manifest.name
        if any(os.path.lexists(path) for path in large_files(checkpoint, record.manifest)):
            is_newest = newest[record.manifest.name] is record
            if is_newest or is_as_archived(checkpoint, record.manifest) or standing(run, record):
                safe.add([record.path], "its original stands")


def _since(record: ArchiveRecord) -> float:
    """A run that was copied here keeps its checkpoints' times: what counts is what was later."""
    return max(record.path.stat().st_mtime, written(record) / 1e9)


def _moments(record: ArchiveRecord) -> int:
    """Bytes that may be dropped; on a disk that compresses, no more than all of it takes."""
    return min(moment_bytes(record.manifest), disk_bytes(record.path)) if may_drop_moments(record.manifest) else 0


def disk_bytes(path: Path) -> int:
    """What it takes; 0 of what is gone."""
    try:
        return durable.disk_bytes(path.stat())
    except FileNotFoundError:
        return 0


def _bytes_beside(store: Store, shelved: Sequence[Held]) -> int:
    """What lies beside the archives that are judged: those of other runs, what was set aside."""
    known = {held.path for held in shelved}
    beside = (path for place in store.run_directories() for path in place.iterdir() if path not in known)
    return sum(map(disk_bytes, beside))


@dataclass(frozen=True, slots=True)
class _Cache:
    """The reconstructions in the cache: they are for speed, and those that the next archives need go last."""

    needed: frozenset[Path]
    others: tuple[Path, ...]  # the longest untouched first

    @classmethod
    def of(cls, store: Store, shelves: Iterable[tuple[int, Sequence[Held]]]) -> Self:
        """What there is. Of runs that are not judged all is needed."""
        judged: dict[Path, bool] = {}
        for stride, shelved in shelves:
            lineage = next_references([held.record for held in shelved], stride)
            for held in shelved:
                entry = store.cache_path(held.record.manifest.reconstruction)
                judged[entry] = judged.get(entry, False) or held.path in lineage
        there = sorted(store.cache.glob("*.rec"), key=lambda path: path.stat().st_mtime_ns)
        return cls(
            frozenset(path for path in there if judged.get(path, True)),
            tuple(path for path in there if not judged.get(path, True)),
        )

    @property
    def needed_bytes(self) -> int:
        """Of what stays in any case."""
        return sum(map(disk_bytes, self.needed))

    def beyond(self, room: int | None, gone: Collection[str]) -> list[Path]:
        """What goes: that of archives that are `gone`, and what has no `room`, in bytes, beside what is needed."""
        evicted = [path for path in (*self.needed, *self.others) if path.stem in gone]
        left = [path for path in self.others if path.stem not in gone]
        over = sum(map(disk_bytes, left)) + self.needed_bytes - room if room is not None else 0
        for path in left:
            if over <= 0:
                break
            over -= disk_bytes(path)
            evicted.append(path)
        return evicted


# What goes


def _delete(store: Store, plan: Plan, run_of: Mapping[Path, Path]) -> None:
    why = {verdict.held.path: verdict.why for verdict in plan.verdicts}
    for held in plan.going():
        run = run_of[held.path]
        withdraw(store, run, held.record)
        checkpoint = str(run / held.record.manifest.name)
        log.info("pruned", extra={"checkpoint": checkpoint, "archive": str(held.path), "why": why[held.path]})


def _slim(store: Store, plan: Plan, day: str) -> set[Path]:
    """Archives whose moments stay, because they are damaged or there is no room for what is left of them."""
    failed: set[Path] = set()
    for held in plan.slimming():
        try:
            freed = drop_moments(store, held.path, day)
        except (CkzdError, OSError) as error:
            failed.add(held.path)
            log.warning("moments stay", extra={"archive": str(held.path), "error": str(error)})
        else:
            log.info("moments dropped", extra={"archive": str(held.path), "freed": freed})
    return failed


def _told(verdict: Verdict, run: Path) -> Judged:
    held, manifest = verdict.held, verdict.held.record.manifest
    return Judged(
        str(run), str(run / manifest.name), str(held.path), manifest.step, held.nbytes, verdict.goes, verdict.why,
        held.is_pointed, verdict.drops_moments,
    )  # fmt: skip
