"""Replace a checkpoint by a pointer to its archive, and clean up after those who died doing it.

At every instant, under any crash, the original or a verified archive with a pointer to it is on disk:

    file        intent -> pointer -> the file moves to the trash -> compared there -> verified
    files       that are one checkpoint likewise: all their pointers, then one after the other, the optimizer last
    directory   intent -> a directory is prepared (small files, pointer) -> it trades places -> compared -> verified
                without RENAME_EXCHANGE: intent -> pointer -> the large files move, the model first -> as above

Before "verified" everything is undone, after it the original may be deleted (`empty_trash`), or put back where its
archive was damaged meanwhile (`rescue`). `recover` brings what a crash left to one of the two ends. Steps are durable
in this order; `on_step(name)` is called after each.
"""

import errno
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace as with_fields
from pathlib import Path

from ckzd import durable
from ckzd.access import access_to, give
from ckzd.archive import Manifest
from ckzd.base_models import hashes_of, lost_models
from ckzd.chains import is_intact, read_manifest, require_sound
from ckzd.errors import BadCheckpoint, CkzdError, ConfigError, CorruptArchive, MissingBaseModel, SourceChanged
from ckzd.formats.names import order_of_leaving
from ckzd.operations import originals
from ckzd.operations.pointer import large_files, pointer_for, pointer_text, points_to, read_pointer, resolve
from ckzd.operations.slim import has_dropped_moments, require_moments
from ckzd.operations.trash import Beside, Entry, Intent
from ckzd.operations.undo import (
    end_restore,
    forget_prepared,
    holds_original,
    put_back,
    set_directory_time,
    stands,
)
from ckzd.store import Store

__all__ = ["empty_trash", "pointer_for", "recover", "replace", "require_replaceable", "resolve"]

log = logging.getLogger(__name__)

LOCK_SECONDS = 600.0  # replacing is hashing: one 100 GB checkpoint takes minutes
CLEANING_LOCK_SECONDS = 60.0  # who cleans up can come again

OnStep = Callable[[str], None]


def replace(checkpoint: Path, archive: Path, store: Store, *, on_step: OnStep = lambda _: None) -> int:
    """Replace the checkpoint by a pointer to `archive`, which was verified; bytes on disk that the original took.

    They are free once `empty_trash` has deleted it. Raises SourceChanged if the checkpoint is not what was archived
    any more, BadCheckpoint if it must not be replaced (links); on any error it is back in its place.
    """
    checkpoint = checkpoint.absolute()
    checkpoint, archive = checkpoint.parent.resolve() / checkpoint.name, archive.resolve()
    with store.lock(shared=True), store.replace_lock(wait_seconds=LOCK_SECONDS), store.reserve():
        manifest = _proven(archive)
        _settle_older(large_files(checkpoint, manifest) if manifest.kind == "files" else [checkpoint], store)
        if _is_replaced(checkpoint, archive, manifest):
            return 0
        manifest = originals.what_stands(checkpoint, manifest)
        with _named_errors(checkpoint, store):
            intent = _intent(checkpoint, archive, store, manifest)
            _close_to_others(archive, checkpoint, manifest)
            entry = Entry.begin(store, intent)
            with _put_back_on_error(entry):
                on_step("intent")
                entry = (_trade_directory if manifest.kind == "directory" else _move_files)(entry, manifest, on_step)
                return _compare_and_keep(entry, manifest, on_step)


def require_replaceable(checkpoint: Path, archive: Path, store: Store) -> None:
    """Raise what `replace` would, and touch nothing: asked of all files of one step before the first of them goes."""
    with store.lock(shared=True):
        manifest = originals.what_stands(checkpoint, _proven(archive.resolve()))
        originals.require_replaceable(checkpoint, manifest)
        originals.require_not_needed(checkpoint, manifest, store.root)
        originals.require_same_large_files(checkpoint, manifest)


def recover(store: Store) -> list[str]:
    """Finish or undo every replacement that a crash left half-done and remove dead temporary files; one line each.

    Whoever replaces or restores does it first: the daemon when it finds a store unclean, a command each time.
    """
    report = []
    with store.lock(shared=True), store.replace_lock(wait_seconds=CLEANING_LOCK_SECONDS):
        for root in sorted(store.trash.iterdir()):
            try:
                line = _recover_entry(store, root)
            except (CkzdError, OSError) as error:
                log.exception("a replacement cannot be recovered", extra={"path": str(root)})
                line = f"failed {root}: {error}"
            if line:
                report.append(line)
        report += [f"removed {path}" for path in store.sweep_temps()]
    for line in report:
        log.warning("recovered", extra={"store": str(store.root), "what": line})
    return report


def empty_trash(
    store: Store,
    older_than_seconds: float,
    now: float,
    *,
    run: Path | None = None,
    until: Callable[[int], bool] = lambda _: False,
) -> int:
    """Delete originals (of a run) that have been in the trash for so long, the oldest first; bytes on disk freed.

    It ends early when `until`, given the bytes that are free already, says so.

    The archive that stands for each, and all that it needs, is read back before; if any of it is damaged or missing
    the original stays, and so does what may be the last of a base model.
    """
    freed = 0
    with store.lock(shared=True), store.replace_lock(wait_seconds=CLEANING_LOCK_SECONDS):
        verified = {root: root / "verified" for root in store.trash.iterdir() if (root / "verified").exists()}
        since = {root: file.stat().st_mtime for root, file in verified.items()}
        for root in sorted(since, key=lambda root: (since[root], root)):
            if now - since[root] < older_than_seconds or until(freed):
                break
            try:
                entry = Entry.load(store, root)
                if run is None or entry.checkpoint.parent == run:
                    freed += _delete(entry)
            except (MissingBaseModel, BadCheckpoint) as error:
                log.warning("an original stays in the trash", extra={"path": str(root), "why": str(error)})
            except (CkzdError, OSError) as error:
                log.exception("an original stays in the trash", extra={"path": str(root), "error": str(error)})
    return freed


def rescue(store: Store) -> list[Path]:
    """Put back every original in the trash whose archive cannot be restored from any more; where they stand again.

    To be archived anew: the damage heals as far as originals remain. What cannot be put back stays in the trash.
    """
    rescued = []
    with store.lock(shared=True), store.replace_lock(wait_seconds=CLEANING_LOCK_SECONDS):
        for root in sorted(store.trash.iterdir()):
            try:
                entry = Entry.load(store, root)
                if entry.is_verified and not _gives_all(entry.archive):
                    entry.set_unverified()
                    places = [piece.place for piece in entry.pieces]
                    if put_back(entry) is None:
                        rescued += places
                        fields = {"path": str(entry.checkpoint), "archive": str(entry.archive)}
                        log.error("its archive, or what that needs, is damaged: the original is put back", extra=fields)
            except (CkzdError, OSError) as error:
                log.exception("an original stays in the trash", extra={"path": str(root), "error": str(error)})
    return rescued


def _gives_all(archive: Path) -> bool:
    """Whether the whole checkpoint can be restored from it."""
    return is_intact(archive) and not has_dropped_moments(archive)


# The steps


def _settle_older(places: Collection[Path], store: Store) -> None:
    """Finish or undo what earlier attempts at a checkpoint left: undone after ours, it would undo ours."""
    for root in sorted(store.trash.iterdir()):
        try:
            entry = Entry.load(store, root)
        except CorruptArchive:  # `recover` says so
            continue
        concerns = any(place in places for place in (entry.checkpoint, *(piece.place for piece in entry.pieces)))
        if concerns and (line := _recover_entry(store, root)):
            log.warning("recovered", extra={"store": str(store.root), "what": line})


def _intent(checkpoint: Path, archive: Path, store: Store, manifest: Manifest) -> Intent:
    """Everything that is asked before anything is touched. The first of several files is the first that goes."""
    originals.require_replaceable(checkpoint, manifest)
    originals.require_not_needed(checkpoint, manifest, store.root)
    if checkpoint.lstat().st_dev != store.trash.lstat().st_dev:
        raise ConfigError(
            store.root, f"is not on the file system of {checkpoint}", hint="choose a store beside the run"
        )
    first, *others = [checkpoint] if manifest.kind == "directory" else large_files(checkpoint, manifest)
    return Intent(
        method="exchange" if manifest.kind == "directory" else "file",
        checkpoint=os.path.relpath(first, store.root),
        archive=os.path.relpath(archive, store.root),
        pointer_text=_pointer_text(first, archive),
        previous_pointer=_previous_pointer(first),
        original=originals.marks_of(first),
        prepared={},
        beside={
            path.name: Beside(_pointer_text(path, archive), _previous_pointer(path), originals.marks_of(path)[""])
            for path in others
        },
    )


def _pointer_text(checkpoint: Path, archive: Path) -> str:
    """By what the whole archive says: of several files, whose the pointer is."""
    return pointer_text(pointer_for(checkpoint), checkpoint, archive, read_manifest(archive))


def _previous_pointer(checkpoint: Path) -> str | None:
    pointer = pointer_for(checkpoint)
    if not pointer.exists():
        return None
    read_pointer(pointer)  # anything but a pointer of ours is not ours to overwrite
    return pointer.read_text()


def _close_to_others(archive: Path, checkpoint: Path, manifest: Manifest) -> None:
    """The checkpoint may have been made more private since it was archived."""
    files = [checkpoint / file.name for file in manifest.files] if manifest.kind == "directory" else None
    access = access_to(files or large_files(checkpoint, manifest), place=archive.parent)
    if archive.stat().st_mode & 0o777 & ~access.mode:
        give(archive, access)


def _move_files(entry: Entry, _manifest: Manifest, on_step: OnStep) -> Entry:
    """All pointers are there before the first file goes; the model goes before the optimizer, as in a directory."""
    pieces = entry.pieces
    for piece in pieces:
        _publish_pointer(entry.store, piece.pointer, piece.pointer_text, piece.previous_pointer, [piece.place])
        on_step("pointer" if len(pieces) == 1 else f"pointer {piece.place.name}")
    for piece in pieces:
        durable.take(piece.place, piece.held)
        on_step("moved" if len(pieces) == 1 else f"moved {piece.place.name}")
    return entry


def _trade_directory(entry: Entry, manifest: Manifest, on_step: OnStep) -> Entry:
    originals.copy_small_files(entry.checkpoint, entry.held, manifest)
    pointer = entry.held / entry.pointer.name
    with durable.write_atomically(pointer, mode=0o600) as file:
        file.write(entry.intent.pointer_text.encode())
    give(pointer, access_to(large_files(entry.checkpoint, manifest), place=entry.checkpoint))
    originals.copy_directory_stats(entry.checkpoint, entry.held)
    durable.fsync_tree(entry.held)
    entry = entry.update(with_fields(entry.intent, prepared=originals.marks_of(entry.held)))
    on_step("prepared")
    try:
        durable.exchange(entry.held, entry.checkpoint)
    except OSError as error:
        if not durable.exchange_unsupported(error):
            raise
        return _move_pieces(entry, manifest, on_step)
    on_step("exchanged")
    originals.require_unmarked(entry.held, entry.intent.original)
    return entry


def _move_pieces(entry: Entry, manifest: Manifest, on_step: OnStep) -> Entry:
    """Without exchange: the model goes first, so that no framework finds weights without their optimizer."""
    entry = forget_prepared(entry)
    durable.remove_tree(entry.held)
    entry = entry.update(with_fields(entry.intent, method="pieces"))
    intent, files = entry.intent, large_files(entry.checkpoint, manifest)
    _publish_pointer(entry.store, entry.pointer, intent.pointer_text, intent.previous_pointer, files)
    set_directory_time(entry)
    on_step("pointer")
    names = [str(path.relative_to(entry.checkpoint)) for path in files]
    for name in sorted(names, key=order_of_leaving):
        (entry.held / name).parent.mkdir(parents=True, exist_ok=True)
        durable.take(entry.checkpoint / name, entry.held / name)
        set_directory_time(entry)
        on_step(f"moved {name}")
    originals.require_same_small_files(entry.checkpoint, manifest)
    return entry


def _compare_and_keep(entry: Entry, manifest: Manifest, on_step: OnStep) -> int:
    """Compare what is in the trash now with what was archived; from then on it may be deleted.

    Whoever makes an archive of it as a base model notes that before, and looks last if it stands in its place: asked
    once more here, where it has left that, one of the two sees the other.
    """
    originals.require_same_large_files(entry.held, manifest)
    originals.require_not_needed(entry.checkpoint, manifest, entry.store.root)
    on_step("checked")
    nbytes = originals.allocated_bytes(list(large_files(entry.held, manifest)))
    entry.set_verified()
    on_step("verified")
    return nbytes


def _publish_pointer(store: Store, pointer: Path, text: str, previous: str | None, files: Iterable[Path]) -> None:
    """Put the pointer in its place, whole and durable, without ever overwriting what is not the one we know of.

    It may be read by whoever may read all of `files`.
    """
    temp = store.new_temp(".pointer")
    try:
        with durable.write_atomically(temp, mode=0o600) as file:
            file.write(text.encode())
        give(temp, access_to(files, place=pointer.parent))
        if previous is not None:
            durable.overwrite(temp, pointer)
        elif not durable.publish(temp, pointer):
            raise SourceChanged(pointer, "appeared while the checkpoint was replaced")
    finally:
        durable.remove(temp)


@contextmanager
def _put_back_on_error(entry: Entry) -> Iterator[None]:
    """Undo on any error; where that fails too, `recover` does it later."""
    try:
        yield
    except BaseException:
        try:
            put_back(Entry.load(entry.store, entry.root))
        except (CkzdError, OSError):
            log.exception("the original could not be put back yet", extra={"path": str(entry.root)})
        raise


@contextmanager
def _named_errors(checkpoint: Path, store: Store) -> Iterator[None]:
    """Training may delete the checkpoint at any instant; bind mounts and quotas can part two places of one device."""
    try:
        yield
    except FileNotFoundError as error:
        raise SourceChanged(error.filename or checkpoint, "is gone") from error
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        problem = f"nothing can be renamed between it and {checkpoint}: {error.strerror}"
        raise ConfigError(store.root, problem, hint="choose a store on the same mount") from error


# What is true now


def _proven(archive: Path) -> Manifest:
    """Make sure that the archive is durable, and that it and all it needs hold their checksums, read back from disk."""
    durable.fsync_file(archive)
    durable.fsync_dir(archive.parent)
    require_sound(archive)
    manifest = read_manifest(archive)
    require_moments(archive, manifest)
    return manifest


def _is_replaced(checkpoint: Path, archive: Path, manifest: Manifest) -> bool:
    gone = not any(os.path.lexists(path) for path in large_files(checkpoint, manifest))
    return gone and points_to(pointer_for(checkpoint), archive)


def _recover_entry(store: Store, root: Path) -> str | None:
    if not (root / "intent.json").exists() and not any((root / "held").glob("*")):
        durable.remove_tree(root)
        return None
    entry = Entry.load(store, root)
    if entry.is_verified:
        return None
    if entry.intent.method == "restore":
        end_restore(entry)
        return f"ended the restore of {entry.checkpoint}"
    if entry.is_kept:
        return f"kept {entry.held}: {(root / 'kept').read_text().strip()}"
    if holds_original(entry) and _can_be_finished(entry):
        entry.set_verified()
        return f"finished {entry.checkpoint}"
    kept = put_back(entry)
    return f"kept {entry.held}: {kept}" if kept else f"undone {entry.checkpoint}"


def _can_be_finished(entry: Entry) -> bool:
    """Whether the crash came so late that only the last comparison was missing."""
    try:
        manifest = _proven(entry.archive)
        if manifest.kind == "files":
            manifest = manifest.of_files([piece.place.name for piece in entry.pieces])
        if entry.intent.method == "exchange":
            originals.require_unmarked(entry.held, entry.intent.original)
        if entry.intent.method == "pieces" and stands(entry):
            originals.require_same_small_files(entry.checkpoint, manifest)
        originals.require_same_large_files(entry.held, manifest)
        originals.require_not_needed(entry.checkpoint, manifest, entry.store.root)
        if entry.intent.method == "pieces" and stands(entry):
            set_directory_time(entry)
    except (CkzdError, OSError) as error:
        log.warning("undone", extra={"path": str(entry.checkpoint), "reason": str(error)})
        return False
    return True


def _delete(entry: Entry) -> int:
    manifest = _proven(entry.archive)
    if not originals.content_of(manifest).isdisjoint(hashes_of(lost_models(entry.store.root))):
        raise BadCheckpoint(
            entry.held, "is a base model that archives need, and is away", hint="take it out of the trash"
        )
    held = [path for path in large_files(entry.held, manifest) if os.path.lexists(path)]
    nbytes = originals.allocated_bytes(held)
    entry.discard()
    return nbytes
