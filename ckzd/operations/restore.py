"""Give a checkpoint back: all files or none, with their modes, owners and times.

Everything is decoded into the store's (or the target's) file system first, hashed against the manifest while it is
written, and put in place by one rename: no reader ever sees half a checkpoint.
"""

import filecmp
import hashlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from fnmatch import filter as filter_by_name
from pathlib import Path
from typing import Any, Self

from ckzd import durable
from ckzd.access import Access, access_to, give
from ckzd.archive import ArchiveReader, FileModel, FolderModel, Manifest, StatModel
from ckzd.chains import ArchiveRecord, read_manifest
from ckzd.checkpoint import Bytes
from ckzd.errors import ConfigError, CorruptArchive, StoreLocked
from ckzd.file_marks import Mark, walk
from ckzd.formats.names import POINTER_NAME, order_of_leaving
from ckzd.operations.originals import marks_of
from ckzd.operations.pointer import (
    as_pointed,
    is_as_archived,
    large_files,
    pointer_for,
    pointer_text,
    points_to,
    read_pointer,
    resolve,
)
from ckzd.operations.reconstruct import OpenCheckpoint, reconstruction_of, store_of
from ckzd.operations.replace import LOCK_SECONDS, recover
from ckzd.operations.slim import require_moments
from ckzd.operations.trash import Entry, Intent
from ckzd.operations.undo import carry_over_what_came_later, end_restore
from ckzd.operations.weights import write_safetensors
from ckzd.store import Store

log = logging.getLogger(__name__)

PRUNING_SECONDS = 600.0  # reading some thousand manifests takes seconds

OnProgress = Callable[[float], None]
MAX_NAMED = 50  # names of files in an error


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What was given back."""

    checkpoint: str
    archive: str
    restored_bytes: int
    seconds: float
    files: int

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def restore(
    path: Path | str,
    *,
    output: Path | str | None = None,
    only: Sequence[str] | str = (),
    weights_only: bool = False,
    on_progress: OnProgress | None = None,
) -> RestoreReport:
    """Restore the checkpoint that `path` (an archive, a pointer or a replaced checkpoint) stands for.

    `output` names the file or directory to create; without it the original place is filled. With `only`, patterns as of
    a shell, `output` gets those files of a directory whose names match one, and a pointer for the others; only what
    they need is decoded. With `weights_only` a safetensors file of all tensors but the optimizer's is written to
    `output`. Raises any CkzdError, and writes nothing then.
    """
    started = time.monotonic()
    path, output, only = Path(path), None if output is None else Path(output), [only] if isinstance(only, str) else only
    if only and (output is None or weights_only):
        problem = "gives some files of a checkpoint, which must not stand where all of it is looked for"
        raise ConfigError("--only", problem, hint="add -o DIRECTORY, and leave --weights-only out")
    record = resolve(path)
    archive, store = record.path, store_of(record.path)
    ours = store if store is not None and store.is_writable() else None  # the same, if we may write to it
    if output is None:
        _recover(ours)
    if not weights_only and not only:  # a file without moments is there as it was
        require_moments(archive, record.manifest)
    target = _target(path.absolute(), archive, ours, output, weights_only=weights_only)
    tell = on_progress or (lambda _: None)
    with _not_pruned_meanwhile(store), ArchiveReader(archive) as reader:
        whole = reader.manifest if output is None else record.manifest
        manifest = _all_that_is_replaced(target, record, whole) if output is None else _chosen(whole, only, archive)
        durable.require_space(target.parent, sum(file.size for file in manifest.files))
        with (
            reconstruction_of(record, store, _numbers(reader.manifest, manifest) if only else None) as own,
            durable.as_no_space(target.parent),
            _staging(ours, target) as staged,
        ):
            checkpoint = OpenCheckpoint(reader, own)
            if weights_only:
                written = write_safetensors(staged, checkpoint)
                give(staged, access_to([archive], place=target.parent))
                _publish_file(staged, target)
                files = 1
            else:
                written = write_files(checkpoint, manifest, staged, tell)
                files = len(manifest.files)
                if only:
                    _publish_part(staged, target, archive, whole)
                elif manifest.kind == "file":
                    _publish_file(staged, target)
                elif manifest.kind == "directory" or output is not None:
                    _publish_directory(staged, target, archive, ours)
                else:
                    _publish_files(staged, target, manifest)
                if not only:
                    places = large_files(target, whole) if output is None and whole.kind == "files" else [target]
                    _remove_pointers(target, places, archive, whole)
    return RestoreReport(str(target), str(archive), written, time.monotonic() - started, files)


def _not_pruned_meanwhile(store: Store | None) -> AbstractContextManager[None]:
    """Nobody deletes an archive while it, or what hangs on it, is restored; who is just at it is waited for."""
    return nullcontext() if store is None else store.lock(shared=True, wait_seconds=PRUNING_SECONDS)


def _all_that_is_replaced(target: Path, record: ArchiveRecord, manifest: Manifest) -> Manifest:
    """What the archive says of the file at `target` and of all that was replaced with it, each as it stood there.

    A model that came back alone would be resumed with an optimizer that begins anew.
    """
    if manifest.kind != "files":
        return record.manifest
    names = {target.name}
    files = []
    for place, file in large_files(target, manifest).items():
        pointer = pointer_for(place)
        if place == target:
            files += record.manifest.files
        elif not os.path.lexists(place) and points_to(pointer, record.path):
            names.add(file.name)
            files += as_pointed(manifest, read_pointer(pointer)).files
    return manifest.of_files(names).model_copy(update={"files": files})


def _recover(ours: Store | None) -> None:
    """What a crash left of a replacement may be the original itself: exact, and no longer to be decoded."""
    if ours is not None:
        try:
            recover(ours)
        except StoreLocked as error:  # whoever is at work there does it, or did it
            log.info("not recovered before a restore", extra={"store": str(ours.root), "error": str(error)})


def _finish_killed_restore(target: Path, archive: Path, ours: Store | None) -> None:
    """One that died between the file and its pointer left both; a replacement leaves both only under its lock."""
    if target.is_file() and ours is not None:
        with suppress(StoreLocked), ours.replace_lock(wait_seconds=0.0):
            manifest = read_manifest(archive)  # again: what was read before the lock proves nothing
            pointer = pointer_for(target)
            if points_to(pointer, archive) and is_as_archived(target, as_pointed(manifest, read_pointer(pointer))):
                durable.remove(pointer)


def _target(path: Path, archive: Path, ours: Store | None, output: Path | None, *, weights_only: bool) -> Path:
    """What is to be created. Raises ConfigError if that is not clear or already there."""
    if output is not None:
        target = output.absolute()
        if os.path.lexists(target):
            raise ConfigError(target, "exists already", hint="name a path that does not, or leave -o out")
        if not target.parent.is_dir():
            raise ConfigError(target.parent, "is not a directory", hint="create it first")
        return target
    if weights_only:
        raise ConfigError("--weights-only", "writes a safetensors file and needs its name", hint="add -o FILE")
    if path.name == POINTER_NAME:
        return path.parent
    if path == archive:
        raise ConfigError(path, "is an archive in a store: the original place is not clear", hint="add -o PATH")
    target = path.with_suffix("") if path == pointer_for(path.with_suffix("")) and path.is_file() else path
    if os.path.lexists(target) and not (target / POINTER_NAME).exists():
        _finish_killed_restore(target, archive, ours)
        raise ConfigError(target, "is there: nothing to restore", hint="use -o PATH to write a copy elsewhere")
    return target


@contextmanager
def _staging(ours: Store | None, target: Path) -> Iterator[Path]:
    """A path on the target's file system, in the store's tmp/ if that is on it; whatever is left there is removed."""
    if ours is not None and ours.tmp.stat().st_dev == target.parent.stat().st_dev:
        ours.sweep_temps()  # of those that were killed: a full copy each
        staged = ours.new_temp(".restore")
    else:
        durable.sweep_beside(target, but_with=POINTER_NAME)
        staged = durable.temp_beside(target)
    try:
        yield staged
    finally:
        if not staged.is_dir():
            durable.remove(staged)
        elif not (staged / POINTER_NAME).exists():  # else it made way, and not all of it was carried over
            durable.remove_tree(staged)


def _chosen(manifest: Manifest, only: Sequence[str], archive: Path) -> Manifest:
    """What it says of the files whose name, or its last part, matches; ConfigError where a pattern matches none."""
    if not only:
        return manifest
    if manifest.kind != "directory":
        problem = f"chooses among the files of a directory: {archive} is of none"
        raise ConfigError("--only", problem, hint="leave it out: it is restored whole")
    names = [file.name for file in manifest.files]
    found: set[int] = set()
    for pattern in only:
        tails = [{name, name.rpartition("/")[2]} for name in names]
        matching = {number for number, some in enumerate(tails) if filter_by_name(some, pattern)}
        if not matching:
            more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
            hint = f"it holds {', '.join(sorted(names)[:MAX_NAMED])}{more}"
            raise ConfigError(f"--only {pattern!r}", f"matches no file of {manifest.name}", hint=hint)
        found |= matching
    return manifest.model_copy(update={"files": [manifest.files[number] for number in sorted(found)]})


def _numbers(manifest: Manifest, part: Manifest) -> list[int]:
    """The numbers that files of a part have in all of it."""
    names = {file.name for file in part.files}
    return [number for number, file in enumerate(manifest.files) if file.name in names]


def write_files(checkpoint: OpenCheckpoint, manifest: Manifest, staged: Path, tell: OnProgress = lambda _: None) -> int:
    """Write the manifest's files below `staged` (or `staged` itself) and check their sha256; bytes written."""
    archive, nbytes = checkpoint.archive, sum(file.size for file in manifest.files)
    written = 0
    numbers = _numbers(checkpoint.manifest, manifest)
    if manifest.kind != "file":
        _make_folders(staged, manifest, is_whole=len(manifest.files) == len(checkpoint.manifest.files))
    models = {file.name: file for file in manifest.files}
    in_order = [models[checkpoint.manifest.files[number].name] for number in numbers]
    paths = [staged if manifest.kind == "file" else staged / model.name for model in in_order]
    with _Files(paths) as opened:
        for place, piece in checkpoint.files(numbers):
            written += opened.write(place, piece)
            tell(written / max(nbytes, 1))
    for model, path, digest in zip(in_order, paths, opened.digests, strict=True):
        if digest.hexdigest() != model.sha256:
            problem = f"file {model.name}: decodes to sha256 {digest.hexdigest()}, expected {model.sha256}"
            raise CorruptArchive(archive, problem, hint="`ckzd check --deep` tells which of its chain is damaged")
        durable.fsync_file(path)
        _set_stat(path, model)
    for folder in reversed(manifest.folders):
        if (staged / folder.name).is_dir():
            _set_stat(staged / folder.name, folder)
    if manifest.directory is not None:
        _set_stat(staged, manifest.directory)
    return written


def _make_folders(staged: Path, manifest: Manifest, *, is_whole: bool) -> None:
    """The directory, and those in it: of some of its files, those that these are in."""
    staged.mkdir(mode=0o700)
    for folder in manifest.folders:
        if is_whole or any(file.name.startswith(f"{folder.name}/") for file in manifest.files):
            (staged / folder.name).mkdir(mode=0o700)


class _Files:
    """New files that are written in turns, and hashed meanwhile. One is open at a time: there may be thousands."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._number, self._file = -1, ExitStack()  # of the one that is open
        self.digests = [hashlib.sha256() for _ in paths]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.create(path).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, number: int, piece: Bytes) -> int:
        """Append to one of them; bytes written."""
        if number != self._number:
            self._file.close()
            self._number, self._out = number, self._file.enter_context(self._paths[number].open("ab"))
        self.digests[number].update(piece)
        return self._out.write(piece)


def _set_stat(path: Path, recorded: FileModel | FolderModel | StatModel) -> None:
    """Mode, owner (where we may give it away) and time."""
    give(path, Access(recorded.uid, recorded.gid, recorded.mode & 0o7777))
    os.utime(path, ns=(recorded.mtime_ns, recorded.mtime_ns))


def _publish_file(staged: Path, target: Path) -> None:
    """Put the file in its place."""
    if not durable.publish(staged, target):
        raise ConfigError(target, "appeared while it was restored", hint="nothing was overwritten")


def _publish_part(staged: Path, target: Path, archive: Path, manifest: Manifest) -> None:
    """Some files of a directory, with a pointer for the others: nobody takes it for a checkpoint, and it can be one."""
    pointer = staged / POINTER_NAME
    with durable.write_atomically(pointer, mode=0o600) as file:
        file.write(pointer_text(target / POINTER_NAME, target, archive, manifest).encode())
    give(pointer, access_to([archive], place=target.parent))
    try:
        durable.fsync_tree(staged)
        durable.rename(staged, target)
    except BaseException:
        durable.remove(pointer)  # so that what is staged is nobody's
        raise


def _publish_files(staged: Path, target: Path, manifest: Manifest) -> None:
    """Put several files in their places, the model last: no trainer finds one without its optimizer.

    What dies in between is finished by the next restore: the pointers of all stand until the last file does.
    """
    for file in reversed(manifest.files):
        _publish_file(staged / file.name, target.with_name(file.name))


def _remove_pointers(target: Path, places: Iterable[Path], archive: Path, manifest: Manifest) -> None:
    """Of what was restored, and of others that a restore that was killed had put in their places before."""
    for place in places:
        pointer = pointer_for(place)
        if not os.path.lexists(place) or not points_to(pointer, archive):
            continue
        if place == target or is_as_archived(place, as_pointed(manifest, read_pointer(pointer))):
            durable.remove(pointer)


def _publish_directory(staged: Path, target: Path, archive: Path, ours: Store | None) -> None:
    """Trade places with the directory that holds the pointer, keeping what was put there or changed there since."""
    if not target.exists():
        durable.fsync_tree(staged)
        durable.rename(staged, target)
        return
    times, marks = _times_of_folders(staged), marks_of(target)
    for path in target.iterdir():
        if path.name != POINTER_NAME:
            _carry_over(path, staged / path.name)
    _set_times(staged, times)
    durable.fsync_tree(staged)
    with _on_record(staged, target, archive, marks, ours) as ready:
        try:
            durable.exchange(ready, target)
        except OSError as error:
            if not durable.exchange_unsupported(error):
                raise
            _fill_directory(ready, target)
    _set_times(target, times)


def _times_of_folders(place: Path) -> dict[str, int]:
    """When the directory and those in it were changed, by relative name: what is put into one changes that."""
    return {name: status.st_mtime_ns for name, status in walk(place) if stat.S_ISDIR(status.st_mode)}


def _set_times(place: Path, times: Mapping[str, int]) -> None:
    """Those that are there still."""
    for name, mtime_ns in times.items():
        with suppress(FileNotFoundError):
            os.utime(place / name, ns=(mtime_ns, mtime_ns))


@contextmanager
def _on_record(staged: Path, target: Path, archive: Path, marks: dict[str, Mark], ours: Store | None) -> Iterator[Path]:
    """Where the restored directory lies to trade places from; afterwards what came later moves from what made way.

    It is a record in the store's trash, so that this is done after a crash too.
    """
    if ours is None or staged.parent != ours.tmp:
        _require_pointer(target, archive)
        yield staged
        if (staged / POINTER_NAME).exists():
            carry_over_what_came_later(staged, marks, target)
            durable.remove(staged / POINTER_NAME)  # now there is nothing left in it that is anybody's
        return
    with ours.lock(shared=True, wait_seconds=PRUNING_SECONDS), ours.replace_lock(wait_seconds=LOCK_SECONDS):
        _require_pointer(target, archive)
        intent = Intent(
            method="restore",
            checkpoint=os.path.relpath(target, ours.root),
            archive=os.path.relpath(archive, ours.root),
            pointer_text=(target / POINTER_NAME).read_text(),
            previous_pointer=None,
            original=marks,
            prepared={},
        )
        entry = Entry.begin(ours, intent)
        try:
            durable.rename(staged, entry.held)
            yield entry.held
        finally:
            end_restore(entry)


def _require_pointer(target: Path, archive: Path) -> None:
    """What stands there now is still what the restored one is to take the place of."""
    if not points_to(target / POINTER_NAME, archive):
        raise ConfigError(target, "was restored by another process meanwhile", hint="nothing was overwritten")


def _carry_over(path: Path, target: Path) -> None:
    """Copy what stands in the directory now, links as links; small files stayed there and may have been edited."""
    if path.is_dir() and not path.is_symlink():
        if not target.is_dir():
            shutil.copytree(path, target, symlinks=True)
            return
        for inner in path.iterdir():
            _carry_over(inner, target / inner.name)
    elif not (path.is_file() and target.is_file() and filecmp.cmp(path, target, shallow=False)):
        durable.remove(target)
        shutil.copy2(path, target, follow_symlinks=False)


def _fill_directory(staged: Path, target: Path) -> None:
    """Without exchange: the model comes last, without which frameworks refuse to load; then the pointer goes."""
    names = [str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()]
    for name in sorted(names, key=order_of_leaving, reverse=True):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # it stayed, or another host that restores the same was faster
            durable.rename(staged / name, target / name)
    durable.remove(target / POINTER_NAME)
