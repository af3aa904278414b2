"""Where archives lie: what a user means by a store, a run, a directory of runs, a folder of archives."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckzd import formats
from ckzd.chains import archive_files
from ckzd.errors import CkzdError, ConfigError
from ckzd.operations.pointer import pointed_in
from ckzd.operations.reconstruct import store_of
from ckzd.store import STORE_NAME, Store, default_store

MAX_RUN_DEPTH = 3  # below a directory of runs: lightning_logs/version_0/checkpoints


@dataclass(frozen=True, slots=True)
class Asked:
    """A path that somebody names, or has watched, and the store that goes with it, if that is said."""

    path: Path
    store: Path | None = None
    is_watched: bool = False  # it, or what is below: then there may be nothing yet


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of archives, that of one run; each of the three may be unknown, but not all of them."""

    archives: Path | None  # None: the run has none yet
    store: Store | None  # None: a folder of copied archives, or there is none yet
    run: Path | None  # None: it is not there any more, or under another name


def places(asked: Iterable[Asked]) -> list[Place]:
    """All that is meant, each once: of `list`, `check`, `prune` and `gc` alike.

    Raises ConfigError for what is neither a directory nor a store, or holds nothing of either kind and is not watched,
    and for a store that is named and is none.
    """
    found: dict[Path, Place] = {}
    for each in asked:
        for place in _meant_by(each):
            key = place.archives or place.run or (place.store.root if place.store is not None else None)
            assert key is not None, "one of the three is known"
            if key not in found or found[key].run is None:
                found[key] = place
    archived = {place.run for place in found.values() if place.archives is not None}
    once = [place for place in found.values() if place.archives is not None or place.run not in archived - {None}]
    return sorted(once, key=lambda place: (str(place.run or ""), str(place.archives or "")))


def _meant_by(asked: Asked) -> list[Place]:
    path = Path(os.path.abspath(asked.path))  # noqa: PTH100  # `..` goes, symbolic links stay: as for what is watched
    if Store.is_at(path):
        return places_in(Store.open(path), [below.path for below in look_below(path.parent)])
    contents = list(look_below(path)) if path.is_dir() else []
    folders = [below.path for below in contents] or [path]
    found = list(_in_stores(path, folders, asked))
    found += _pointed(folders, {place.archives for place in found})
    found += [Place(path, None, None)] if archive_files(path) else []
    known = {place.run for place in found}
    runs = [below.path for below in contents if below.is_run and below.path not in known]
    found += [Place(None, _store_to_be(run, asked.store), run) for run in runs]
    if not path.is_dir() and not found:
        problem = "expected a run, a directory of runs or a store, got what is no directory"
        raise ConfigError(path, problem, hint="`ckzd inspect` and `ckzd verify` take a single archive or checkpoint")
    if not found and not asked.is_watched:
        where = "no store of it is found" if asked.store is None else f"nothing of it is in {asked.store}"
        hint = "name a run, one above, a store, or with --store where it is"
        raise ConfigError(path, f"holds neither archives nor checkpoints, and {where}", hint=hint)
    return found


IsMeant = Callable[[Path | None], bool]  # of archives whose run is not in sight: where it was, if that is known


def _in_stores(path: Path, folders: Sequence[Path], asked: Asked) -> Iterator[Place]:
    """What is meant by a directory, and those below it, in the store that was named, or in all that are found."""

    def was_below(run: Path | None) -> bool:
        return run is not None and run.is_relative_to(path.resolve())

    if asked.store is not None:
        if Store.is_at(asked.store):
            yield from _of_store(Store.open(asked.store), folders, lambda run: run is None or was_below(run))
        elif not asked.is_watched:
            problem = "is no store: it has no store.json"
            raise ConfigError(asked.store, problem, hint="name the directory that archives were written to")
        return
    within = [folder / STORE_NAME for folder in folders]
    for root in filter(Store.is_at, within):
        yield from places_in(Store.open(root), folders)
    with suppress(CkzdError):
        if (beside := default_store(path)) not in within and Store.is_at(beside):
            yield from _of_store(Store.open(beside), folders, was_below)


def _store_to_be(run: Path, named: Path | None) -> Store | None:
    """Where a run without archives will have them, if that is there already."""
    with suppress(CkzdError):
        return Store.open(named if named is not None else default_store(run))
    return None


def places_in(store: Store, runs: Iterable[Path]) -> list[Place]:
    """All of a store, some of whose runs are known."""
    return list(_of_store(store, runs, lambda _: True)) or [Place(None, store, None)]


def _of_store(store: Store, folders: Iterable[Path], is_meant: IsMeant) -> Iterator[Place]:
    runs = {store.run_directory(folder): folder for folder in folders if folder.is_dir()}
    for directory in store.run_directories():
        remembered = store.run_of(directory) if directory not in runs else None
        if directory in runs or is_meant(remembered):
            is_there = remembered is not None and remembered.is_dir()
            yield Place(directory, store, runs.get(directory) or (remembered if is_there else None))


def _pointed(folders: Iterable[Path], known: set[Path | None]) -> Iterator[Place]:
    """Where pointers lead to: a store that nobody named."""
    for run in folders:
        for directory in sorted({archive.parent for archive in pointed_in(run)} - known):
            yield Place(directory, store_of(directory / "x"), run)


def look_below(root: Path) -> Iterator[formats.Contents]:
    """What is in a directory and in those below that are, or may become, runs: not in stores or checkpoints."""
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        contents = formats.look_into(folder)
        yield contents
        if depth < MAX_RUN_DEPTH:
            inner = (path for path in reversed(contents.folders) if not Store.is_at(path))
            pending += [(path, depth + 1) for path in inner]
