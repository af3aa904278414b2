"""Archive one checkpoint: read, encode against the reference, write, prove in another process, publish.

    read_checkpoint -> reference_for -> Encoder -> STORE/tmp -> verifier [-> accept] -> publish -> cache
    [-> replace]

Nothing of it is visible before `publish`; whoever publishes second throws its own archive away.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ckzd import durable
from ckzd.access import Access, give
from ckzd.archive import Manifest, files_digest
from ckzd.base_models import files_of, require_plain_name, why_needed
from ckzd.chains import ArchiveRecord, is_intact, is_ruined, is_sound, is_whole, read_manifest, records_in, reference_of
from ckzd.checkpoint import Checkpoint
from ckzd.codec.analysis.nearness import changed_shape
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.codec.presets import PRESETS, Preset, preset_at
from ckzd.defaults import MAX_DEPTH, Effort
from ckzd.errors import (
    BadCheckpoint,
    CkzdError,
    ConfigError,
    CorruptArchive,
    MissingBaseModel,
    NoSpace,
    StoreLocked,
)
from ckzd.formats import KINDS, left_alone, looks_like_checkpoint, read_whole
from ckzd.formats.names import POINTER_NAME, step_in_name
from ckzd.operations.accept import Acceptance, require_accepted
from ckzd.operations.command import DEFAULT_SECONDS
from ckzd.operations.gain import too_little
from ckzd.operations.inspect import is_kept_exact, is_tightened
from ckzd.operations.originals import content_of
from ckzd.operations.placement import device_for
from ckzd.operations.pointer import large_files
from ckzd.operations.reconstruct import reconstruction_of
from ckzd.operations.reference import reference_for
from ckzd.operations.replace import empty_trash, recover, rescue
from ckzd.operations.replace import replace as replace_original
from ckzd.operations.room import FREE_CHECKPOINTS, make_room, space_needed
from ckzd.operations.slim import has_dropped_moments
from ckzd.operations.trained_from import trained_from, trained_from_again
from ckzd.operations.writing import Reference, Work, access_of, publish, temporary, write_and_prove
from ckzd.page_cache import forget_file
from ckzd.stages import OnStage, Stage
from ckzd.store import Store, default_store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CompressReport:
    """What became of a checkpoint."""

    checkpoint: str
    members: tuple[str, ...]  # the files, or the directory, that the archive is of
    archive: str
    reference: str | None
    preset: str
    effort: str
    original_bytes: int
    archive_bytes: int
    ratio: float
    seconds: float
    weight_error: float  # what the encoder saw of the loss; `ckzd inspect` shows it beside the preset's budget
    worst_tensor_error: float
    second_moment_ratio: float  # what a restore does to the optimizer, as factors of 1 or more
    update_length_ratio: float
    tightened: bool
    kept_exact: bool  # nothing was coded with a loss, though the preset may lose
    ruined: bool  # half of its numbers or more became NaN or infinite
    verified: bool
    accepted: bool | None  # None: no command was asked
    already: bool
    replaced: bool
    kept: str | None = None  # why the original stays, although it was to be replaced
    damaged: tuple[str, ...] = ()  # archives of the run that cannot be restored from any more
    without_base_model: str | None = None  # why it is a base, although a base model was named
    waiting: tuple[str, ...] = ()  # archives of the run that are whole, but whose base model is not here as it was

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def compress(
    path: Path | str,
    *,
    store: Path | str | None = None,
    preset: str = "resume",
    effort: str = Effort.BEST,
    stride: int = 1,
    max_depth: int = MAX_DEPTH,
    base_model: Path | str | None = None,
    replace: bool = False,
    device: str = "auto",
    accept_command: str | Sequence[str] | None = None,
    accept_seconds: float = DEFAULT_SECONDS,
    min_free: int | None = None,
    on_stage: OnStage | None = None,
) -> CompressReport:
    """Archive the checkpoint at `path` and prove the archive; the original stays unless `replace`.

    A checkpoint whose very bytes are archived already is left at that, if all that its archive needs is sound: else it
    is archived anew, as it was, and what hangs on a damaged archive of it can be restored again. With an
    `accept_command` an archive counts only if the command exits with 0 when it is given what the archive restores to:
    see `accept`. Where there is no archive to be a delta against, it is one against the `base_model`, if one is named
    that it was trained from; else the report says why not: see `operations.trained_from`. For the room that it takes,
    and `min_free` bytes beside it, replaced originals go early: see `room`. Raises any CkzdError; nothing is left
    behind then.
    """
    started = time.monotonic()
    path, tell = Path(path).absolute(), on_stage or (lambda _stage, _fraction: None)
    for name, named, names in (("preset", preset, list(PRESETS)), ("effort", effort, list(Effort))):
        if named not in names:
            raise ConfigError(name, f"expected one of {', '.join(names)}, got {named!r}")
    quality = preset_at(preset, Effort(effort))
    for name, value in (("stride", stride), ("max_depth", max_depth)):
        if value < 1:
            raise ConfigError(name, f"expected 1 or more, got {value}")
    acceptance = Acceptance.of(accept_command, accept_seconds) if accept_command is not None else None
    model = Path(base_model).absolute() if base_model is not None else None
    if model is not None:
        require_plain_name(model)
    device = device_for(quality, device)
    root = Path(store) if store is not None else default_store(path.parent)
    if replace:
        _require_known_whole(path)
    if replace and Store.is_at(root):
        recover(Store.open(root))  # an earlier run may have died with this very checkpoint in its hands
    tell(Stage.READ, 0.0)
    checkpoint = in_tiles(read_whole(path))
    with closing(checkpoint.source):
        durable.sweep_beside(path, but_with=POINTER_NAME)  # of restores that were killed
        opened = _opened(root, checkpoint)
        access = access_of(path, checkpoint, opened)
        free = min_free if min_free is not None else FREE_CHECKPOINTS * checkpoint.nbytes
        job = _Job(path, checkpoint, opened, quality, stride, max_depth, model, device, acceptance, tell, access, free)
        with opened.lock(shared=True):
            known = _known(job)
            already = known is not None and is_intact(known.path)
            without = None
            if known is not None and already:
                _ask_again(job, known)
                record = known
            else:
                record, without = _archive(job, known)
            damaged, waiting = opened.damaged(job.run), opened.waiting(job.run)
    kept = _why_kept(path, record, opened) if replace else None
    if replace and kept is None:
        replace_original(path, record.path, opened)
        _free_original(opened)
        tell(Stage.REPLACED, 1.0)
    report = _report(job, record, already=already, replaced=replace and kept is None)
    return dataclasses.replace(
        report,
        seconds=time.monotonic() - started,
        kept=kept,
        damaged=tuple(map(str, damaged)),
        waiting=tuple(map(str, waiting)),
        without_base_model=without,
    )


def _why_kept(path: Path, record: ArchiveRecord, store: Store) -> str | None:
    """Why the original stays, although it was to be replaced: what archives need of it, or how little it would give."""
    places = [path, *large_files(path, record.manifest)]
    why = why_needed(places, content_of(record.manifest), store.root, files_of(places))
    return why or too_little(record.manifest.original_bytes, record.path.stat().st_size)


def _require_known_whole(path: Path) -> None:
    """Raise BadCheckpoint for what must not be replaced in part: the others of its files would not go with it."""
    found = left_alone(path)
    hint = "leave --replace out to archive what can be read of it"
    if found is not None:
        whole, done = "" if found.path == path else f" it is a part of {found.path}:", "left alone whole"
        if found.path != path and looks_like_checkpoint(found.path):
            done, hint = "replaced whole", f"name {found.path}"
        raise BadCheckpoint(path, f"is not replaced:{whole} {KINDS[found.kind]} are {done}", hint=hint)
    is_known = looks_like_checkpoint(path) or os.path.lexists(path / POINTER_NAME)
    if path.is_dir() and not is_known:
        problem = (
            "is not replaced: neither a file nor a directory that a known framework writes: it is left alone whole"
        )
        raise BadCheckpoint(path, problem, hint=hint)


def _free_original(store: Store) -> None:
    """Give the space back now: only a daemon keeps originals for a while, and empties its store's trash itself."""
    try:
        with store.daemon_lock():
            rescue(store)
            empty_trash(store, 0.0, time.time())
    except StoreLocked:
        log.info("the daemon of this store frees the original later", extra={"store": str(store.root)})


def _opened(root: Path, checkpoint: Checkpoint) -> Store:
    if not root.exists():
        durable.require_space(root, checkpoint.nbytes)  # else a full disk gets an empty store
    store = Store.open_or_create(root)
    store.sweep_temps()  # of those that were killed
    return store


@dataclass(frozen=True, slots=True)
class _Job:
    """One checkpoint on its way into one store."""

    path: Path
    checkpoint: Checkpoint
    store: Store
    preset: Preset
    stride: int
    max_depth: int
    base_model: Path | None
    device: str
    acceptance: Acceptance | None
    tell: OnStage
    access: Access  # that its archive gets
    min_free: int

    @property
    def run(self) -> Path:
        return self.path.parent

    @property
    def work(self) -> Work:
        return Work(self.checkpoint, self.store, self.preset, self.device, self.tell)


def _report(job: _Job, record: ArchiveRecord, *, already: bool, replaced: bool) -> CompressReport:
    archive_bytes, quality = record.path.stat().st_size, record.manifest.quality
    return CompressReport(
        checkpoint=str(job.path),
        members=(str(job.path),) if job.checkpoint.is_directory else tuple(map(str, job.checkpoint.places(job.path))),
        archive=str(record.path),
        reference=_reference_path(job, record),
        preset=record.manifest.preset,
        effort=record.manifest.effort or Effort.BEST.value,
        original_bytes=job.checkpoint.nbytes,
        archive_bytes=archive_bytes,
        ratio=job.checkpoint.nbytes / archive_bytes,
        seconds=0.0,
        weight_error=quality.get("weight_error", 0.0),
        worst_tensor_error=quality.get("worst_tensor_error", 0.0),
        second_moment_ratio=quality.get("second_moment_ratio", 1.0),
        update_length_ratio=quality.get("update_length_ratio", 1.0),
        tightened=is_tightened(record.manifest),
        kept_exact=is_kept_exact(record.manifest),
        ruined=is_ruined(record),
        verified=True,
        accepted=True if job.acceptance is not None else None,
        already=already,
        replaced=replaced,
    )


def _known(job: _Job) -> ArchiveRecord | None:
    """The archive of exactly these bytes, sound or not; of a file under any name, if sound: last.pt may be a copy.

    They are hashed only if names, sizes and times allow that there is one.
    """
    checkpoint = job.checkpoint
    if not any(_may_be_of(record.manifest, checkpoint) for record in job.store.archives(job.run)):
        return None
    hashes = checkpoint.sha256()
    rows = [(file.name, file.size, digest) for file, digest in zip(checkpoint.files, hashes, strict=True)]
    found = job.store.find_by_checkpoint(job.run, files_digest(rows))
    if found is None and not checkpoint.is_directory and len(hashes) == 1:
        found = job.store.find_by_content(job.run, checkpoint.name, hashes[0])
    return found


def _may_be_of(manifest: Manifest, checkpoint: Checkpoint) -> bool:
    """Under another name only where one has no number or both have one time: a run's files may be of one size."""
    sizes = {file.name: file.size for file in checkpoint.files}
    if manifest.kind == "files" or manifest.name == checkpoint.name:
        archived = {file.name: file.size for file in manifest.files}
        return sizes == archived or (manifest.kind == "files" and len(sizes) == 1 and sizes.items() <= archived.items())
    if manifest.kind != "file" or checkpoint.is_directory or manifest.original_bytes != checkpoint.nbytes:
        return False
    is_marker = step_in_name(checkpoint.name) is None or step_in_name(manifest.name) is None
    return is_marker or manifest.files[0].mtime_ns == checkpoint.files[0].stat.mtime_ns


def _reference_path(job: _Job, record: ArchiveRecord) -> str | None:
    if record.manifest.base_model is not None:
        return record.manifest.base_model.path
    wanted = record.manifest.reference
    paths = [r.path for r in job.store.archives(job.run) if r.manifest.reconstruction == wanted]
    return str(paths[0]) if wanted is not None and paths else None


def _archive(job: _Job, damaged: ArchiveRecord | None) -> tuple[ArchiveRecord, str | None]:
    """Write, prove and publish the archive; in the place of one that is damaged as it was, by the same preset.

    Encoding is deterministic: what was a delta against the damaged one is a delta against this one too. Beside it, why
    it is no delta against the base model, if one is named and might have been its reference.
    """
    store, run = job.store, job.run
    if damaged is not None:
        fields = {"checkpoint": str(job.path), "archive": str(damaged.path)}
        log.error("the archive, or what it needs, is damaged: the checkpoint is archived anew", extra=fields)
        job = dataclasses.replace(job, preset=preset_of(damaged.manifest))
    record = _reference_record(job, damaged)
    has_room = _has_room_for_delta(job, record)
    with ExitStack() as stack:
        reference, without = _usable_reference(job, record, stack) if has_room else None, None
        if record is None:
            reference, without = _base_model(job, damaged, stack)
        temp, cache = (stack.enter_context(temporary(store, suffix)) for suffix in (".ckz", ".rec"))
        before = reference.archive if reference is not None else None
        manifest = write_and_prove(job.work, reference, temp, cache)
        job.tell(Stage.VERIFIED, 1.0)
        _ask(job, ArchiveRecord(temp, manifest), before, hint="the original is untouched, the archive was thrown away")
        give(temp, job.access)
        give(cache, job.access)
        if reference is not None:
            reference.require_in_place()
        published = ArchiveRecord(_place_of(job, manifest), manifest)
        if publish(temp, published.path, store):
            durable.publish(cache, store.cache_path(manifest.reconstruction))
            forget_file(store.cache_path(manifest.reconstruction))  # it is read with the next checkpoint
        else:  # another machine was first: its archive stays, ours goes
            published = ArchiveRecord.read(published.path)
            _ask_again(job, published)
        store.forget_reconstructions(run, job.stride)
    job.tell(Stage.PUBLISH, 1.0)
    return published, without


def preset_of(manifest: Manifest) -> Preset:
    """What an archive was made by."""
    return preset_at(manifest.preset, Effort(manifest.effort or Effort.BEST))


def _has_room_for_delta(job: _Job, reference: ArchiveRecord | None) -> bool:
    """Make room for a delta; for a base where there is none for what deltas learn, or no reference. Raises NoSpace.

    A reference that is not cached, as where a branch begins, is decoded first: that takes room of its own.
    """
    needed = partial(space_needed, job.store, job.run, job.checkpoint, job.preset, restored=job.acceptance is not None)
    if reference is None:
        make_room(job.store, job.run, needed(as_base=True), job.min_free)
        return False
    try:
        make_room(job.store, job.run, needed(reference=reference), job.min_free)
    except NoSpace:
        if needed(as_base=True) >= needed(reference=reference):
            raise
        make_room(job.store, job.run, needed(as_base=True), job.min_free)
        log.warning("no room for a delta: the archive becomes a new base", extra={"checkpoint": str(job.path)})
        return False
    return True


def _place_of(job: _Job, manifest: Manifest) -> Path:
    """Where the archive is to lie: a damaged one makes way if this one yields what others need of it.

    One that is whole, but needs what is damaged, stays beside it: once that is archived anew it may be all that others
    can be decoded with. So may a damaged one, of which they need only a part, or when it can be made as it was. One
    that gives weights alone stays as well, unless this one yields the same.
    """
    place = partial(job.store.archive_path, job.run, job.checkpoint.name, manifest.checkpoint)
    target = place()
    if not os.path.lexists(target):
        return target
    whole = is_whole(target)
    if whole and not is_intact(target):
        return place(again=manifest.reconstruction)
    if whole and has_dropped_moments(target):
        is_same = read_manifest(target).reconstruction == manifest.reconstruction
        return target if is_same else place(again=manifest.reconstruction)
    return target if whole or not _is_needed(target, manifest) else place(again=manifest.reconstruction)


def _is_needed(archive: Path, manifest: Manifest) -> bool:
    """Whether others are deltas against what a damaged archive yielded, and this is not what its successor yields."""
    with suppress(CorruptArchive):
        yielded = read_manifest(archive).reconstruction
        dependents = (record.manifest.reference for record in records_in(archive.parent))
        return yielded != manifest.reconstruction and yielded in dependents
    return False


def _ask(job: _Job, archive: ArchiveRecord, reference: Path | None, *, hint: str) -> None:
    """Raises NotAccepted if there is a command and it refuses what `archive` restores to."""
    if job.acceptance is not None:
        job.tell(Stage.ACCEPT, 0.0)
        require_accepted(job.acceptance, archive, reference, original=job.path, store=job.store, hint=hint)
        job.tell(Stage.ACCEPTED, 1.0)


def _ask_again(job: _Job, archive: ArchiveRecord) -> None:
    """Of an archive in the store: nobody may have asked about it yet. Others may need it, so it stays in any case."""
    reference = reference_of(archive) if job.acceptance is not None else None
    before = reference.path if reference is not None else None
    _ask(job, archive, before, hint="the original is untouched; the archive was there before, and stays")


def _reference_record(job: _Job, damaged: ArchiveRecord | None) -> ArchiveRecord | None:
    """What the store names; for one that is archived anew what it was a delta against, if that is sound."""
    if damaged is not None and (damaged.manifest.reference is None or damaged.manifest.base_model is not None):
        return None
    if damaged is not None:
        with suppress(CkzdError):  # it is read again below: for what needs it, not for itself
            before = reference_of(damaged)
            if before is not None and is_sound(before.path):
                return before
    return reference_for(job.checkpoint, job.store, job.run, job.stride, job.max_depth)


def _usable_reference(job: _Job, record: ArchiveRecord | None, stack: ExitStack) -> Reference | None:
    """The archive to take deltas against, its reconstruction opened in `stack`; None makes this one a base."""
    if record is None:
        return None
    reconstruction = stack.enter_context(reconstruction_of(record, job.store))
    changed = changed_shape(job.checkpoint, reconstruction)
    if changed is not None:
        fields = {"path": str(job.path), "tensor": changed}
        log.warning("a tensor changed its shape: the archive becomes a new base", extra=fields)
        return None
    return Reference.of_archive(record, reconstruction)


def _base_model(job: _Job, damaged: ArchiveRecord | None, stack: ExitStack) -> tuple[Reference | None, str | None]:
    """The base model, its reconstruction opened in `stack`; None and why not, if one is named that is none to it.

    What is archived anew takes the one that it was made against, or none: MissingBaseModel where that is away.
    """
    named = damaged.manifest.base_model if damaged is not None else None
    try:
        if damaged is not None:
            if named is None:
                return None, None
            found = stack.enter_context(trained_from_again(job.checkpoint, damaged.path, named, job.store))
        elif job.base_model is None:
            return None, None
        else:
            found = stack.enter_context(trained_from(job.checkpoint, job.path, job.base_model, job.store))
        _make_room_beside_base(job)  # for what is made of it, here and by the verifier
        return Reference.of_model(found, job.store, stack), None
    except MissingBaseModel:
        raise
    except (CkzdError, OSError) as error:
        why = f"{error.subject}: {error.problem}" if isinstance(error, CkzdError) else str(error)
        log.warning("no delta against the base model", extra={"checkpoint": str(job.path), "why": why})
        return None, why


def _make_room_beside_base(job: _Job) -> None:
    needed = space_needed(
        job.store, job.run, job.checkpoint, job.preset, restored=job.acceptance is not None, as_base=True
    )
    make_room(job.store, job.run, needed + 2 * job.checkpoint.nbytes, job.min_free)
