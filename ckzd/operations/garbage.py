"""Garbage: what in a store, and beside its runs' checkpoints, nothing needs.

Unfinished files of dead processes; reconstructions of archives that are gone; damaged archives that were set aside long
ago; directories without archives. Archives of a run whose directory is gone are only named, unless they are asked for,
and what a pointer anywhere in sight names, or a base model may be restored from, stays even then, with all that they
need.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckzd import durable
from ckzd.archive import Manifest
from ckzd.chains import ArchiveRecord, archive_files, decodable, is_whole, read_manifest, records_in
from ckzd.defaults import DAMAGED_DAYS
from ckzd.errors import CorruptArchive
from ckzd.formats.names import POINTER_NAME
from ckzd.operations.ledger import Ledger
from ckzd.operations.originals import OF_A_BASE_MODEL, allocated_bytes, of_base_models
from ckzd.operations.pointer import named_below
from ckzd.operations.trash import archives_in_trash
from ckzd.retention import DAY_SECONDS, Held, needed_by
from ckzd.store import DAMAGED_SUFFIX, MAX_RUN_BELOW, RUN_FILE, Store, archive_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Garbage:
    """One thing, and why it goes or stays."""

    path: str
    what: str
    nbytes: int  # on disk
    goes: bool
    why: str

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much is asked to go. `gone_runs`: archives of runs whose directories are gone."""

    damaged_days: float = DAMAGED_DAYS
    gone_runs: bool = False


def collect(
    store: Store, runs: Sequence[Path], *, roots: Iterable[Path], now: float, wanted: Wanted, dry_run: bool = False
) -> list[Garbage]:
    """Find it, and delete what goes unless `dry_run`. Pointers are looked for below `roots` and beside the store.

    Nothing else is done in the store meanwhile: StoreLocked if somebody reads or writes.
    """
    with store.lock(shared=dry_run):
        found = [
            *_unfinished(store, runs, now),
            *_reconstructions(store),
            *_set_aside(store, wanted.damaged_days, now),
            *_of_gone_runs(store, (*roots, store.root.parent), wanted),
        ]
        if not dry_run:
            for garbage in found:
                if garbage.goes:
                    _delete(Path(garbage.path))
                    log.info("garbage deleted", extra={"path": garbage.path, "what": garbage.what})
            store.forget_unneeded_models()
        found += _empty_directories(store, {garbage.path for garbage in found if garbage.goes}, dry_run=dry_run)
    return found


def _unfinished(store: Store, runs: Sequence[Path], now: float) -> Iterator[Garbage]:
    beside = (path for run in runs for path in durable.abandoned_beside(run / "any", but_with=POINTER_NAME))
    for path in (*durable.abandoned(store.temps(), now), *beside):
        yield _garbage(path, "an unfinished file", "who made it has died")


def _reconstructions(store: Store) -> Iterator[Garbage]:
    """One whose archive cannot be read may be what its dependents are restored from: then all stay."""
    known: set[str] = set()
    for directory in store.run_directories():
        records = records_in(directory)
        if len(records) != len(archive_files(directory)):
            return
        known.update(record.manifest.reconstruction for record in records)
        known.update(record.manifest.reference for record in records if record.manifest.reference is not None)
    for path in sorted(store.cache.glob("*.rec")):
        if path.stem not in known:
            yield _garbage(path, "a cached reconstruction", "its archive is gone")


def _set_aside(store: Store, days: float, now: float) -> Iterator[Garbage]:
    for path in sorted(place for d in store.run_directories() for place in d.glob(f"*{DAMAGED_SUFFIX}")):
        status = path.lstat()
        age = (now - max(status.st_mtime, status.st_ctime)) / DAY_SECONDS  # a rename sets the one, nothing both back
        why = f"set aside {age:.1f} days ago"
        if age >= days and _is_on_its_way(path):
            yield _garbage(path, "an archive", "it is whole: `ckzd check` brings it back", goes=False)
        else:
            yield _garbage(path, "a damaged archive", why, goes=age >= days)


def _is_on_its_way(aside: Path) -> bool:
    """Whether a crash left a whole archive aside, and what has its name is damaged, or nothing."""
    with suppress(CorruptArchive, OSError):
        manifest = read_manifest(aside)
        names = {archive_name(manifest.name, manifest.checkpoint, again) for again in ("", manifest.reconstruction)}
        return is_whole(aside) and not any(_gives_as_much(aside.with_name(name), manifest) for name in names)
    return False


def _gives_as_much(archive: Path, manifest: Manifest) -> bool:
    """Whether it is whole, and has moments if what says this has some."""
    return is_whole(archive) and (
        read_manifest(archive).moments_dropped is None or manifest.moments_dropped is not None
    )


def _of_gone_runs(store: Store, roots: Iterable[Path], wanted: Wanted) -> Iterator[Garbage]:
    """Of each run, dependents before what they need."""
    homeless = {directory: records_in(directory) for directory in _without_run(store)}
    if not any(homeless.values()):
        return
    ledger = Ledger.read(store)
    out_of_sight, named = "", set(archives_in_trash(store))
    try:
        named.update(archive for root in dict.fromkeys(roots) for archive in named_below(root))
    except OSError as error:
        out_of_sight = f"{error.filename} cannot be looked at: a pointer there may name it"
    for directory, records in homeless.items():
        run = store.run_of(directory)
        of_models = of_base_models(store.root, records)
        stays = of_models | {record.path for record in records if record.path.resolve() in named}
        needed = needed_by([Held(record, 0, 0.0) for record in records], stays)
        for record in sorted(records, key=lambda record: record.manifest.depth, reverse=True):
            why = _why_it_stays(run, directory, records, ledger) or out_of_sight
            why = "a pointer names it" if record.path in stays else why
            why = OF_A_BASE_MODEL if record.path in of_models else why
            why = f"needed by {needed[record.path]}" if record.path in needed.keys() - stays else why
            goes = wanted.gone_runs and not why
            yield _garbage(record.path, "an archive", why or f"its run {run} is gone", goes=goes)


def _why_it_stays(run: Path | None, directory: Path, records: list[ArchiveRecord], ledger: Ledger) -> str:
    """Why an archive of a run that is not there stays even if it was asked for; "" if it may go."""
    if run is None:
        return f"no run in sight is its own: delete {directory} by hand if it is not wanted"
    if not run.parent.is_dir():
        return f"{run.parent} is out of sight: delete {directory} by hand if it is not wanted"
    if set(archive_files(directory)) - decodable(records, lambda record: not ledger.problem_of(record.path)):
        return f"{directory} holds damaged archives"
    return ""


def _without_run(store: Store) -> list[Path]:
    """Directories of archives whose run is not where it was."""
    unknown, homeless = [], []
    for directory in store.run_directories():
        run = store.run_of(directory)
        if run is None:
            unknown.append(directory)
        elif not run.is_dir():
            homeless.append(directory)
    in_sight = {store.run_directory(place) for place in _folders(store.root.parent)} if unknown else set()
    return [*homeless, *(directory for directory in unknown if directory not in in_sight)]


def _folders(root: Path) -> Iterator[Path]:
    for place, folders, _ in os.walk(root):
        if Store.is_at(Path(place)) or len(Path(place).relative_to(root).parts) >= MAX_RUN_BELOW:
            folders.clear()
        yield from (Path(place, folder) for folder in folders)


def _empty_directories(store: Store, gone: set[str], *, dry_run: bool) -> list[Garbage]:
    """Of archives that are gone; what else is there is not ours to judge."""
    found = []
    for directory in _without_run(store):
        left = {path.name for path in directory.iterdir() if str(path) not in gone}
        if left <= {RUN_FILE}:
            found.append(_garbage(directory, "a directory of archives", "there are none, nor their run"))
            if not dry_run:
                durable.remove(directory / RUN_FILE)
                durable.remove_empty_directory(directory)
    return found


def _delete(path: Path) -> None:
    (durable.remove_tree if path.is_dir() and not path.is_symlink() else durable.remove)(path)


def _garbage(path: Path, what: str, why: str, *, goes: bool = True) -> Garbage:
    places = [path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())]
    return Garbage(str(path), what, allocated_bytes(places), goes, why)
