"""Where archives lie: what a user means by a store, a run, a directory of runs, a folder of archives."""

from collections.abc import Iterable, Iterator
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
class Place:
    """A directory of archives, that of one run; each of the three may be unknown, but not all of them."""

    archives: Path | None  # None: the run has none yet
    store: Store | None  # None: a folder of copied archives
    run: Path | None  # None: it is not there any more, or under another name


def places(paths: Iterable[tuple[Path, Path | None]]) -> list[Place]:
    """All that is meant by some paths and the stores that were named with them, each once.

    Raises ConfigError for what is neither a directory nor a store, or holds nothing of either kind.
    """
    found: dict[Path, Place] = {}
    for path, store in paths:
        for place in _meant_by(path.absolute(), store):
            key = place.archives or place.run
            assert key is not None, "one of the two is known"
            if key not in found or found[key].run is None:
                found[key] = place
    return sorted(found.values(), key=lambda place: (str(place.run or ""), str(place.archives or "")))


def _meant_by(path: Path, named: Path | None) -> list[Place]:
    if not path.is_dir():
        problem = "expected a run, a directory of runs or a store, got what is no directory"
        raise ConfigError(path, problem, hint="`ckzd inspect` and `ckzd verify` take a single archive or checkpoint")
    if Store.is_at(path):
        return places_in(Store.open(path), [below.path for below in look_below(path.parent)])
    contents = list(look_below(path))
    folders = [below.path for below in contents]
    found = [
        place for root, whole in _stores_of(path, folders, named) for place in _of_store(root, folders, whole=whole)
    ]
    found += _pointed(folders, {place.archives for place in found})
    found += [Place(path, None, None)] if archive_files(path) else []
    known = {place.run for place in found}
    found += [Place(None, None, below.path) for below in contents if below.is_run and below.path not in known]
    if not found and named is None:
        problem = "holds neither archives nor checkpoints, and no store of it is found"
        raise ConfigError(path, problem, hint="name the store, or with --store where it is")
    return found


def _stores_of(path: Path, folders: Iterable[Path], named: Path | None) -> Iterator[tuple[Store, bool]]:
    """The stores of what is below a directory, and whether all that is in them is of it."""
    roots = {named.absolute(): True} if named is not None else {}
    if named is None:
        roots |= {folder / STORE_NAME: True for folder in folders}
        with suppress(CkzdError):
            roots.setdefault(default_store(path), False)
    for root, whole in roots.items():
        if Store.is_at(root):
            yield Store.open(root), whole


def places_in(store: Store, runs: Iterable[Path]) -> list[Place]:
    """All of a store, some of whose runs are known."""
    return list(_of_store(store, runs, whole=True))


def _of_store(store: Store, folders: Iterable[Path], *, whole: bool) -> Iterator[Place]:
    runs = {store.run_directory(folder): folder for folder in folders}
    for directory in store.run_directories():
        if whole or directory in runs:
            yield Place(directory, store, runs.get(directory) or _remembered(store, directory))


def _remembered(store: Store, directory: Path) -> Path | None:
    """The run that a store says archives are of, if it is there."""
    run = store.run_of(directory)
    return run if run is not None and run.is_dir() else None


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
