"""The store: archives by run, their chains, the cache of reconstructions, and the locks.

    STORE/store.json                     says that this is a store
    STORE/lock  daemon.lock  replace.lock   flock'ed, never read
    STORE/archives/<run>/<checkpoint>.<first 12 of its sha256>.ckz
    STORE/cache/<reconstruction id>.rec  evictable; a chain decodes without it
    STORE/tmp/  trash/                   unfinished files; originals on their way out

The archives are the truth. Nothing else here is needed to restore, and the functions that follow a chain look only at
an archive's neighbours: a folder to which somebody copied a chain works like a store.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import stat
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from ckzd import durable
from ckzd.access import Access, give
from ckzd.archive import ArchiveReader, Manifest
from ckzd.errors import ConfigError, CorruptArchive, MissingReference
from ckzd.locks import Process, flock

log = logging.getLogger(__name__)

STORE_NAME = ".ckzd"
STORE_VERSION: Final = 1
ARCHIVE_SUFFIX = ".ckz"
MAX_NAME_BYTES = 255  # of one path component, on every file system that Linux knows
_OWN_NAMES = frozenset({"archives", "cache", "tmp", "trash"})


@dataclass(frozen=True, slots=True)
class ArchiveRecord:
    """An archive and what it says of itself."""

    path: Path
    manifest: Manifest


def default_store(run: Path) -> Path:
    """The store of a run that was given none: `.ckzd` beside it, unless a framework would stumble over that.

    Raises ConfigError with a proposal where a store has to be chosen.
    """
    run = run.resolve()
    store = run.parent / STORE_NAME
    for directory in (run, run.parent):
        if framework := _listed_by(directory):
            safe = next(parent for parent in directory.parents if _listed_by(parent) is None)
            problem = f"{framework} lists every name in {directory}, so ckzd does not choose the store itself"
            raise ConfigError(run, problem, hint=f"set store = {str(safe / STORE_NAME)!r}")
    if run.exists() and run.stat().st_dev != run.parent.stat().st_dev:
        problem = f"{run} is a mount point: a store beside it would be on another file system"
        raise ConfigError(run, problem, hint=f"set store = {str(run / STORE_NAME)!r}")
    return store


def _listed_by(directory: Path) -> str | None:
    """The framework that lists this directory whole and trips over, counts or deletes what it does not know."""
    try:
        names = {path.name for path in directory.iterdir()}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    if directory.name == "checkpoints" and any(re.fullmatch(r"checkpoint_\d+", name) for name in names):
        return "Accelerate"
    if any(name.endswith("-unfinished") for name in names):
        return "NeMo"
    if "recipe_state" in names and any(re.fullmatch(r"epoch_\d+", name) for name in names):
        return "torchtune"
    return None


class Store:
    """One store. Its methods touch nothing outside `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"
        self.tmp = root / "tmp"
        self.trash = root / "trash"
        self._archives = root / "archives"

    @classmethod
    def open_or_create(cls, root: Path) -> Self:
        """Open the store at `root`; make one there first if there is nothing."""
        marker = root / "store.json"
        if not marker.exists():
            if root.exists() and not all(_is_of_a_store(path.name) for path in root.iterdir()):
                raise ConfigError(root, "is not empty and not a store", hint="name a new or empty directory")
            root.mkdir(mode=0o755, parents=True, exist_ok=True)
            for name in _OWN_NAMES:  # originals pass through here: nobody may read them who could not before
                (root / name).mkdir(mode=0o755 if name == "archives" else 0o700, exist_ok=True)
            with durable.write_atomically(marker) as file:
                file.write(json.dumps({"ckzd_store": STORE_VERSION}).encode() + b"\n")
            durable.fsync_dir(root.parent)
        return cls.open(root)

    @classmethod
    def open(cls, root: Path) -> Self:
        """Open the store at `root`; ConfigError if there is none, or one of a newer ckzd."""
        marker = root / "store.json"
        try:
            version = json.loads(marker.read_bytes()).get("ckzd_store")
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(root, "is no store: it has no store.json") from None
        except (ValueError, AttributeError):
            raise CorruptArchive(marker, "is not the JSON object that marks a store") from None
        if version != STORE_VERSION:
            raise ConfigError(root, f"store version {version!r}, expected {STORE_VERSION}", hint="use a newer ckzd")
        return cls(root.resolve())

    @staticmethod
    def is_at(root: Path) -> bool:
        """Whether there is a store, whole or not."""
        return os.path.lexists(root / "store.json")

    def is_writable(self) -> bool:
        """Whether this process may put files into tmp/: not on a read-only file system, nor in another user's store."""
        return os.access(self.tmp, os.W_OK | os.X_OK)

    # Places

    def run_directory(self, run: Path) -> Path:
        """Where a run's archives lie. Named by the run's path relative to the store, so that both can move together."""
        run = run.resolve()
        place = os.path.relpath(run, self.root)
        return self._archives / f"{_fitting(run.name, 9)}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"

    def archive_path(self, run: Path, name: str, checkpoint_sha: str) -> Path:
        """The one path of the archive of one checkpoint (by its sha256), in a directory as open as the run."""
        directory = self.run_directory(run)
        if not directory.exists():
            directory.mkdir(mode=0o700, exist_ok=True)
            status = run.stat()
            give(directory, Access(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)))
            durable.fsync_dir(directory.parent)
        suffix = f".{checkpoint_sha[:12]}{ARCHIVE_SUFFIX}"
        return directory / f"{_fitting(name, len(suffix))}{suffix}"

    def cache_path(self, reconstruction: str) -> Path:
        """Where the reconstruction with this id is kept, if it is."""
        return self.cache / f"{reconstruction}.rec"

    def new_temp(self, suffix: str) -> Path:
        """A fresh path in the store's tmp/, not yet created. Its name tells whose it is: see `sweep_temps`."""
        return self.tmp / f"{Process.this()}-{secrets.token_hex(6)}{suffix}"

    # Archives

    def archives(self, run: Path) -> list[ArchiveRecord]:
        """The archives of a run in order: by step, then what has none; equal steps as they were written.

        A corrupt one is left out with a warning.
        """
        return sorted(_records_in(self.run_directory(run)), key=_order)

    def find_by_checkpoint(self, run: Path, sha: str) -> ArchiveRecord | None:
        """The archive of exactly these bytes, be they an original or what a restore wrote."""
        matches = (r for r in self.archives(run) if sha in (r.manifest.checkpoint, r.manifest.restored))
        return next(matches, None)

    def reference_for(self, run: Path, step: int | None, name: str, stride: int) -> ArchiveRecord | None:
        """What a new checkpoint is a delta against: the archive `stride` steps back among those below it.

        Fewer back if there are not that many, None if there is none. Without a step it counts as the newest. Only an
        archive whose chain is whole is named. `name` is for the log only.
        """
        records = self.archives(run)
        decodable = _decodable(records)
        below = [record for record in records if _is_below(record.manifest, step)]
        candidates = {  # by step: one that was written twice counts once, as its newest
            r.path.name if r.manifest.step is None else r.manifest.step: r for r in below if r.path in decodable
        }
        newest_first = list(candidates.values())[::-1]
        if not newest_first:
            log.info("no reference: the archive becomes a base", extra={"checkpoint": name})
            return None
        return newest_first[min(stride, len(newest_first)) - 1]

    def reference_of(self, archive: Path) -> Path | None:
        """See the function of the same name."""
        return reference_of(archive)

    def chain(self, archive: Path) -> list[Path]:
        """See the function of the same name."""
        return chain(archive)

    # Locks

    def lock(self, *, shared: bool = True) -> AbstractContextManager[None]:
        """Hold the store: shared to add or read archives, exclusive to delete some. StoreLocked if it is taken."""
        return flock(self.root / "lock", fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait_seconds=0.0)

    def daemon_lock(self) -> AbstractContextManager[None]:
        """Be the only daemon on this store."""
        return flock(self.root / "daemon.lock", fcntl.LOCK_EX, wait_seconds=0.0)

    def replace_lock(self, *, wait_seconds: float) -> AbstractContextManager[None]:
        """Be the only one who moves originals: while held, all half-done work in trash/ is one's own or abandoned."""
        return flock(self.root / "replace.lock", fcntl.LOCK_EX, wait_seconds=wait_seconds)

    # Cleaning

    def sweep_temps(self, now: float | None = None) -> list[Path]:
        """Remove unfinished files of dead processes, anywhere in the store: see `durable.remove_abandoned`."""
        unfinished = f"{durable.TEMP_PREFIX}*{durable.TEMP_SUFFIX}"
        patterns = ("tmp/*", f"tmp/{unfinished}", unfinished, f"cache/{unfinished}", f"archives/*/{unfinished}")
        return durable.remove_abandoned((path for pattern in patterns for path in self.root.glob(pattern)), now)

    def evict_cache(self, keep: set[str], max_bytes: int) -> int:
        """Remove the longest untouched reconstructions, but no id in `keep`, down to `max_bytes`; bytes freed."""
        entries = [(path.stat(), path) for path in self.cache.glob("*.rec")]
        total = sum(status.st_size for status, _ in entries)
        freed = 0
        for status, path in sorted(entries, key=lambda entry: (entry[0].st_mtime_ns, entry[1])):
            if total - freed > max_bytes and path.stem not in keep:
                durable.remove(path)
                freed += status.st_size
        return freed


def _is_of_a_store(name: str) -> bool:
    """Whether somebody who died while he made a store may have left this."""
    return name in _OWN_NAMES or durable.is_temp(name)


def reference_of(archive: Path) -> Path | None:
    """The archive that this one is a delta against, among its neighbours; None for a base.

    Two neighbours may have one reconstruction (a checkpoint that did not change): any that is nearer to the base will
    do. Raises MissingReference naming the id.
    """
    manifest = read_manifest(archive)
    return _reference_among(_neighbours(archive), archive, manifest)


def chain(archive: Path) -> list[Path]:
    """The archive and all it needs, base first."""
    neighbours = _neighbours(archive)
    links = [archive]
    while (reference := _reference_among(neighbours, links[-1], read_manifest(links[-1]))) is not None:
        links.append(reference)
    return links[::-1]


def read_manifest(archive: Path) -> Manifest:
    """What an archive says of itself. Raises CorruptArchive."""
    with ArchiveReader(archive) as reader:
        return reader.manifest


def is_pointer(path: Path) -> bool:
    """Whether the file is a pointer rather than an archive: both may be called *.ckz."""
    with path.open("rb") as file:
        return file.read(1) == b"{"


def _records_in(directory: Path) -> list[ArchiveRecord]:
    """All readable archives of a directory; the others are logged and left out."""
    records = []
    for path in sorted(directory.glob(f"*{ARCHIVE_SUFFIX}")):
        try:
            if path.is_file() and not path.is_symlink() and not is_pointer(path):
                records.append(ArchiveRecord(path, read_manifest(path)))
        except FileNotFoundError:
            continue
        except (CorruptArchive, OSError) as error:
            log.warning("archive left out: it cannot be read", extra={"path": str(path), "error": str(error)})
    return records


def _neighbours(archive: Path) -> list[ArchiveRecord]:
    return [record for record in _records_in(archive.parent) if record.path.name != archive.name]


def _reference_among(records: list[ArchiveRecord], archive: Path, manifest: Manifest) -> Path | None:
    if manifest.reference is None:
        return None
    for record in records:  # depth falls along a chain: no circle, even where two have one reconstruction
        if record.manifest.reconstruction == manifest.reference and record.manifest.depth < manifest.depth:
            return record.path
    problem = f"needs the archive with reconstruction {manifest.reference}, which is not in {archive.parent}"
    raise MissingReference(archive, problem, hint="copy the whole chain to one folder")


def _decodable(records: list[ArchiveRecord]) -> set[Path]:
    """Those whose chains are whole."""
    whole: dict[str, int] = {}  # reconstruction id -> smallest depth that yields it
    decodable = set()
    for record in sorted(records, key=lambda record: record.manifest.depth):
        manifest = record.manifest
        if manifest.reference is None or whole.get(manifest.reference, manifest.depth) < manifest.depth:
            whole.setdefault(manifest.reconstruction, manifest.depth)
            decodable.add(record.path)
        else:
            log.warning("archive left out: its reference is missing", extra={"path": str(record.path)})
    return decodable


def _is_below(manifest: Manifest, step: int | None) -> bool:
    return step is None or (manifest.step is not None and manifest.step < step)


def _order(record: ArchiveRecord) -> tuple[bool, int, int, str]:
    """By step; what has no step comes last, by time; a step written twice in the order of writing."""
    manifest = record.manifest
    written = max(file.mtime_ns for file in manifest.files)
    return manifest.step is None, manifest.step or 0, written, record.path.name


def _fitting(name: str, suffix_bytes: int) -> str:
    """`name`, shortened so that it and a suffix are one path component."""
    return os.fsdecode(os.fsencode(name)[: MAX_NAME_BYTES - suffix_bytes])
