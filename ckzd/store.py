"""The store: archives by run, their chains, the cache of reconstructions, and the locks.

    STORE/store.json                     says that this is a store
    STORE/lock  daemon.lock  replace.lock  check.lock   flock'ed, never read
    STORE/claims/                        the same for hosts that flock does not reach: see `locks.claim`
    STORE/archives/<run>/<checkpoint>.<first 12 of its sha256>.ckz
    STORE/archives/<run>/run.json        which directory they are of, and where it is
    STORE/cache/<reconstruction id>.rec  evictable; a chain decodes without it
    STORE/base_models/                   notes of models that archives need and the store does not hold: `base_models`
    STORE/tmp/  trash/                   unfinished files; originals on their way out
    STORE/reserve                        bytes that are let go when something has to be replaced on a full disk
    STORE/checked.json                   when each archive was last read back: see `operations/ledger.py`

The archives are the truth. Nothing else here is needed to restore. A damaged archive that was archived anew, or healed,
lies beside its successor as `*.damaged`, for whoever wants to look into it, until `ckzd gc` deletes it after a month.
What each name means, who may change it and what becomes of it after a crash: `ckzd/DESIGN.md`, "On disk".
"""

import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, Final, Self

from ckzd import durable
from ckzd.access import Access, give, plain_mode
from ckzd.archive import Manifest
from ckzd.base_models import NOTES, forget_all_but
from ckzd.chains import (
    ARCHIVE_SUFFIX,
    ArchiveRecord,
    archive_files,
    decodable,
    intact,
    is_irreplaceable,
    is_ruined,
    records_in,
    sound,
)
from ckzd.defaults import MAX_DEPTH
from ckzd.errors import ConfigError, CorruptArchive, NoSpace
from ckzd.formats.foreign import json_object, read_small
from ckzd.formats.names import labelled_step
from ckzd.formats.units import MAX_ABOVE
from ckzd.locks import Process, locked
from ckzd.series import counted_as, in_order, next_references, split, within_depth, written

log = logging.getLogger(__name__)

STORE_NAME = ".ckzd"
STORE_VERSION: Final = 1
DAMAGED_SUFFIX = ".damaged"
RUN_FILE = "run.json"
MAX_RUN_BYTES = 64 * 1024 * 1024
MAX_NAME_BYTES = 255  # of one path component, on every file system that Linux knows
RESERVE_BYTES = 256 << 10  # some files and directories of one block each, and as much again
MAX_RUN_BELOW = MAX_ABOVE + 1  # a run lies at most so deep below the directory that its default store is in
MAX_OTHERS = 8  # series that are looked at where a name does not tell its own: the latest
_OWN_NAMES = frozenset({"archives", "cache", "claims", "tmp", "trash"})


def default_store(run: Path) -> Path:
    """The store of a run that was given none: `.ckzd` beside it, unless a framework would stumble over that.

    Raises ConfigError with a proposal where a store has to be chosen.
    """
    run = run.resolve()
    store = _outermost(run).parent / STORE_NAME
    for directory in dict.fromkeys((run, run.parent, store.parent)):
        if framework := _listed_by(directory):
            safe = next(parent for parent in directory.parents if _listed_by(parent) is None)
            problem = f"{framework} lists every name in {directory}, so ckzd does not choose the store itself"
            raise ConfigError(run, problem, hint=f"set store = {str(safe / STORE_NAME)!r}")
    if run.exists() and run.stat().st_dev != run.parent.stat().st_dev:
        problem = f"{run} is a mount point: a store beside it would be on another file system"
        raise ConfigError(run, problem, hint=f"set store = {str(run / STORE_NAME)!r}")
    return store


def _outermost(run: Path) -> Path:
    """The run, or the directory of a step that it lies in: what is in there goes when the step goes."""
    steps = [above for above in run.parents[:MAX_ABOVE] if labelled_step(above.name) is not None]
    return steps[-1] if steps and not Store.is_at(run.parent / STORE_NAME) else run


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


@dataclass(frozen=True, slots=True)
class References:
    """What a new archive may be a delta against: of its own series, if anything, and of others, the latest first."""

    own: ArchiveRecord | None
    others: tuple[ArchiveRecord, ...] = ()


class Store:
    """One store. Its methods touch nothing outside `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"
        self.tmp = root / "tmp"
        self.trash = root / "trash"
        self.claims = root / "claims"
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
        store = cls.open(root)
        store.hold_reserve()
        return store

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

    def run_directories(self) -> list[Path]:
        """Where archives lie, of every run that has or had some."""
        return sorted(path for path in self._archives.iterdir() if path.is_dir() and not path.is_symlink())

    def run_of(self, directory: Path) -> Path | None:
        """The run whose archives lie in a directory of `run_directories`, there or not; None if it does not say so."""
        place = _known_run(directory / RUN_FILE).get("place")
        run = Path(os.path.normpath(self.root / place)) if isinstance(place, str) and "\0" not in place else None
        return run if run is not None and self.run_directory(run) == directory else None

    def archive_path(self, run: Path, name: str, checkpoint_sha: str, *, again: str = "") -> Path:
        """The one path of the archive of one checkpoint (by its sha256), in a directory as open as the run.

        `again` (its reconstruction) tells one apart whose first archive is in the way: see `compress`.
        """
        directory = self.run_directory(run)
        if not directory.exists():
            directory.mkdir(mode=0o700, exist_ok=True)
            status = run.stat()
            give(directory, Access(status.st_uid, status.st_gid, plain_mode(run, status)))
            durable.fsync_dir(directory.parent)
        self.of_an_earlier_directory(run)  # remembers which one this is
        return directory / archive_name(name, checkpoint_sha, again)

    def supplant(self, healed: Path, archive: Path) -> Path:
        """A whole archive takes the place of a damaged one, which is not deleted; where it lies then.

        At every instant one of the two has the name, and the other lies beside it as `*.damaged`. Where the file system
        knows no exchange both lie there for a moment: `check` finds the whole one.
        """
        aside = _aside(archive)
        durable.publish(healed, aside)
        try:
            durable.exchange(aside, archive)
        except OSError as error:
            if not durable.exchange_unsupported(error):
                raise
            whole, aside = aside, _aside(archive)
            durable.rename(archive, aside)
            durable.rename(whole, archive)
        return aside

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

        def left_out(path: Path, error: Exception) -> None:
            log.warning("archive left out: it cannot be read", extra={"path": str(path), "error": str(error)})

        return sorted(records_in(self.run_directory(run), left_out), key=in_order)

    def find_by_checkpoint(self, run: Path, sha: str) -> ArchiveRecord | None:
        """The archive of exactly these bytes, be they an original or what a restore wrote; an intact one if any."""
        records = self.archives(run)
        matches = [r for r in records if sha in (r.manifest.checkpoint, r.manifest.restored) and _has_all(r)]
        return _best(matches, records) or next(iter(matches), None)

    def find_by_content(self, run: Path, name: str, sha: str) -> ArchiveRecord | None:
        """An intact archive of a file with these bytes, as they were or as they are restored.

        Of one file whatever its name; of several, where one of them has this name.
        """
        records = self.archives(run)

        def is_meant(record: ArchiveRecord) -> bool:
            kind, files = record.manifest.kind, record.manifest.files
            candidates = files if kind == "file" else [f for f in files if kind == "files" and f.name == name]
            return any(sha in (file.original_sha256, file.sha256) for file in candidates)

        matches = [record for record in records if is_meant(record) and _has_all(record)]
        return _best(matches, records)

    def damaged(self, run: Path) -> list[Path]:
        """The archives of a run that cannot be restored from: they, or what they need, are damaged or missing."""
        whole = intact(self.archives(run))
        return [path for path in archive_files(self.run_directory(run)) if path not in whole]

    def waiting(self, run: Path) -> list[Path]:
        """The archives of a run that are whole, as is all that they need, but for a base model that is not here."""
        records = self.archives(run) if self._notes_models() else []
        return sorted(intact(records) - sound(records))

    def _notes_models(self) -> bool:
        """Whether archives of it are, or were, deltas against base models."""
        return any(self.root.glob(f"{NOTES}/*.json"))

    def references_for(
        self, run: Path, step: int | None, name: str, stride: int = 1, max_depth: int = MAX_DEPTH
    ) -> References:
        """What a new checkpoint may be a delta against, in its own series and in others.

        In its own: the archive `stride` steps back among those below it. Fewer back if there are not that many, None if
        there is none; further back, or None, where its chain would be deeper than `max_depth` (`series.within_depth`).
        Without a step it counts as the newest. Only an archive whose whole chain is sound is named, read back from
        disk; nothing is referred to across one that is not, for that would be a delta to a checkpoint of long ago, and
        then no other series is named either. Ruined ones are passed over, as if they were not there.
        In each other series it is the newest, if sound, whatever its step: only what it holds tells if it is near.
        """
        records = [record for record in self.archives(run) if not is_ruined(record)]
        there, whole = decodable(records), sound(records)
        for record in records:
            if record.path not in there:
                log.warning("archive left out: its reference is missing", extra={"path": str(record.path)})
        own, others = split([record for record in records if record.path in there], name, step)
        below = [record for record in own if _is_below(record.manifest, step)]
        newest_first = [  # by step: one that was written twice counts once, as its newest
            next((record for record in steps if record.path in whole), None)
            for steps in (list(group) for _, group in groupby(reversed(below), key=counted_as))
        ]
        nearest = [record for record in takewhile(bool, newest_first[:stride]) if record is not None]
        if newest_first and not nearest:
            fields = {"checkpoint": name, "archive": str(below[-1].path)}
            if below[-1].path in intact(records):
                log.warning(
                    "the newest archive waits for its base model: this checkpoint becomes a new base", extra=fields
                )
            else:
                log.error(
                    "the chain of the newest archive is damaged: this checkpoint becomes a new base", extra=fields
                )
            return References(None)

        def bounded(record: ArchiveRecord) -> ArchiveRecord | None:
            return within_depth(record, [r for r in records if r.path in there], max_depth)

        newest = (series[-1] for series in others if series[-1].path in whole)
        latest = sorted(newest, key=written, reverse=True)
        return References(
            bounded(nearest[-1]) if nearest else None,
            tuple(other for record in latest[:MAX_OTHERS] if (other := bounded(record)) is not None),
        )

    def of_an_earlier_directory(self, run: Path, *, own: Collection[Path] = (), remember: bool = True) -> set[Path]:
        """Archives of a directory that stood at the run's path before this one: it may live on under another name.

        Which directory stands there is remembered beside the archives: ask at every look at the run. `own` are archives
        that are known to be of this one, as a copy of a directory that came back from a backup has its pointers.
        """
        directory, status = self.run_directory(run), run.stat()
        if not directory.is_dir():
            return set()
        known = _known_run(directory / RUN_FILE)
        earlier = [str(name) for name in known.get("earlier", ())]
        if known.get("inode") != status.st_ino:
            earlier = [path.name for path in archive_files(directory)] if known else []
        earlier = [name for name in earlier if directory / name not in own]
        now = {"inode": status.st_ino, "place": os.path.relpath(run.resolve(), self.root), "earlier": earlier}
        if remember and now != known:
            with suppress(NoSpace), durable.write_atomically(directory / RUN_FILE) as out:  # the next look does it
                out.write(json.dumps(now).encode())
        return {directory / name for name in earlier}

    # Locks

    def lock(self, *, shared: bool = True, wait_seconds: float = 0.0) -> AbstractContextManager[None]:
        """Hold the store: shared to add or read archives, exclusive to delete some. StoreLocked if it is taken."""
        return locked(self.root / "lock", self.claims, shared=shared, wait_seconds=wait_seconds)

    def check_lock(self) -> AbstractContextManager[None]:
        """Be the only one who heals archives here, and writes down what was read back."""
        return locked(self.root / "check.lock", self.claims, shared=False, wait_seconds=0.0)

    def daemon_lock(self) -> AbstractContextManager[None]:
        """Be the only daemon on this store."""
        return locked(self.root / "daemon.lock", self.claims, shared=False, wait_seconds=0.0)

    def replace_lock(self, *, wait_seconds: float) -> AbstractContextManager[None]:
        """Be the only one who moves originals: while held, all half-done work in trash/ is one's own or abandoned."""
        return locked(self.root / "replace.lock", self.claims, shared=False, wait_seconds=wait_seconds)

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Let go of what is held back meanwhile: on a full disk it is room for an intent and a pointer."""
        with suppress(OSError):
            os.truncate(self.root / "reserve", 0)
        try:
            yield
        finally:
            self.hold_reserve()

    def hold_reserve(self) -> None:
        """Take room for the next time, if there is some."""
        with suppress(OSError):  # no room, or not our store: then there is none
            descriptor = os.open(self.root / "reserve", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)

    # Cleaning

    def forget_unneeded_models(self) -> None:
        """Forget base models that no archive names any more: what holds the lock exclusively has dropped some.

        One archive that cannot be read may name any of them.
        """
        if not self._notes_models():
            return
        unread: list[Path] = []
        records = [
            record
            for run in self._archives.iterdir()
            for record in records_in(run, lambda path, _: unread.append(path))
        ]
        if not unread:
            named = [record.manifest.base_model for record in records if record.manifest.base_model is not None]
            forget_all_but(self.root, named)

    def sweep_temps(self, now: float | None = None) -> list[Path]:
        """Remove unfinished files of dead processes, anywhere in the store: see `durable.remove_abandoned`.

        Their claims go too, and are not told of: nothing was unfinished.
        """
        durable.remove_abandoned(self.claims.glob("*"), now)
        return durable.remove_abandoned(self.temps(), now)

    def temps(self) -> Iterator[Path]:
        """All unfinished files in the store, whoever's they are."""
        unfinished = f"{durable.TEMP_PREFIX}*{durable.TEMP_SUFFIX}"
        places = ("tmp/", "", "cache/", "archives/*/", f"{NOTES}/")
        patterns = ("tmp/*", *(f"{place}{unfinished}" for place in places))
        return (path for pattern in patterns for path in self.root.glob(pattern))

    def evict_cache(self, keep: set[str], max_bytes: int) -> int:
        """Remove the longest untouched reconstructions, but no id in `keep`, down to `max_bytes`; bytes freed.

        What no archive can be decoded to any more stays: see `chains.is_irreplaceable`.
        """
        entries = [(path.stat(), path) for path in self.cache.glob("*.rec")]
        total = sum(status.st_size for status, _ in entries)
        freed, runs = 0, [records_in(directory) for directory in self.run_directories()] if total > max_bytes else []
        for status, path in sorted(entries, key=lambda entry: (entry[0].st_mtime_ns, entry[1])):
            if total - freed <= max_bytes or path.stem in keep:
                continue
            if not any(is_irreplaceable(path.stem, records) for records in runs):
                durable.remove(path)
                freed += status.st_size
        return freed

    def forget_reconstruction(self, identity: str) -> None:
        """Remove one that is cached, unless no archive that is wanted can be decoded to it any more."""
        path = self.cache_path(identity)
        if path.exists() and not any(is_irreplaceable(identity, records_in(place)) for place in self.run_directories()):
            durable.remove(path)

    def forget_reconstructions(self, run: Path, stride: int) -> None:
        """Keep what the next checkpoints of a run are deltas against; the rest, if it can, is decoded again."""
        records = self.archives(run)
        references = next_references(records, stride)
        kept = {record.manifest.reconstruction for record in records if record.path in references}
        for identity in {record.manifest.reconstruction for record in records} - kept:
            path = self.cache_path(identity)
            if path.exists() and not is_irreplaceable(identity, records):
                durable.remove(path)


def _best(matches: list[ArchiveRecord], records: list[ArchiveRecord]) -> ArchiveRecord | None:
    """Of archives among `records` one that is sound, or at least intact."""
    for found in (sound(records), intact(records)) if matches else ():
        for record in matches:
            if record.path in found:
                return record
    return None


def _is_of_a_store(name: str) -> bool:
    """Whether somebody who died while he made a store may have left this."""
    return name in _OWN_NAMES or durable.is_temp(name)


def _known_run(file: Path) -> dict[str, Any]:
    """What a run.json says, if there is one; that it is of another directory if it cannot be read: in doubt all is."""
    data = read_small(file, MAX_RUN_BYTES)
    try:
        return json_object(data or b"") if data is not None or os.path.lexists(file) else {}
    except ValueError:
        return {"inode": None}


def _has_all(record: ArchiveRecord) -> bool:
    """Whether a checkpoint can be restored from it, and not only its weights."""
    return record.manifest.moments_dropped is None


def _is_below(manifest: Manifest, step: int | None) -> bool:
    return step is None or (manifest.step is not None and manifest.step < step)


def archive_name(name: str, checkpoint_sha: str, again: str = "") -> str:
    """How the archive of a checkpoint of this name and sha256 is called; `again`: see `Store.archive_path`."""
    suffix = f".{checkpoint_sha[:12]}{'.' if again else ''}{again[:8]}{ARCHIVE_SUFFIX}"
    return f"{_fitting(name, len(suffix))}{suffix}"


def _aside(archive: Path) -> Path:
    """A fresh name beside an archive for one that is not it, or no more."""
    suffix = f".{secrets.token_hex(4)}{DAMAGED_SUFFIX}"
    return archive.with_name(f"{_fitting(archive.name, len(suffix))}{suffix}")


def _fitting(name: str, suffix_bytes: int) -> str:
    """`name`, shortened so that it and a suffix are one path component."""
    return os.fsdecode(os.fsencode(name)[: MAX_NAME_BYTES - suffix_bytes])
