"""Make a damaged archive again as it was, from what it was made of."""

import dataclasses
import os
from contextlib import ExitStack, closing
from pathlib import Path

from ckzd import durable
from ckzd.access import Access, give
from ckzd.archive import FileModel, FolderModel, Manifest, StatModel, files_digest
from ckzd.chains import ArchiveRecord, is_sound, records_in
from ckzd.checkpoint import Checkpoint, FileStat
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.codec.presets import preset_at
from ckzd.defaults import Effort
from ckzd.errors import MissingReference, SourceChanged, VerificationFailed
from ckzd.formats import read_checkpoint, read_whole
from ckzd.operations.ledger import Made
from ckzd.operations.reconstruct import reconstruction_of
from ckzd.operations.room import space_needed
from ckzd.operations.trained_from import trained_from_again
from ckzd.operations.writing import Reference, Work, access_of, publish, temporary, write_and_prove
from ckzd.store import Store, archive_name


def remake(source: Path, archive: Path, store: Store, run: Path, *, manifest: Manifest | None, made: Made) -> None:
    """Make a damaged archive of a run as it was, from what it was made of, under whatever name; prove it; publish it.

    `manifest` is what it says of itself, if that can be read; `made` says how it was made, as far as that is known (""
    is unknown). Whoever calls holds the store, so that nobody deletes archives meanwhile. Raises SourceChanged where
    `source` holds something else, MissingReference where what it is a delta against is not sound, MissingBaseModel
    where that is a model that is away, VerificationFailed where something else comes out than others need, as by
    another version's choices.
    """
    read = read_whole if manifest is not None and manifest.kind == "files" else read_checkpoint
    checkpoint = in_tiles(_renamed(read(source), manifest))
    with closing(checkpoint.source), ExitStack() as stack:
        _require_archived(checkpoint, source, archive, made)
        model = manifest.base_model if manifest is not None else None
        record = _exact_reference(archive, made.reference) if model is None else None
        preset = preset_at(made.preset, Effort(made.effort or Effort.BEST))
        access = Access.of(archive.stat()) if os.path.lexists(archive) else access_of(source, checkpoint, store)
        needed = space_needed(store, run, checkpoint, preset, restored=False, reference=record, as_base=record is None)
        durable.require_space(store.tmp, needed)
        reference = None
        if record is not None:
            reference = Reference.of_archive(record, stack.enter_context(reconstruction_of(record, store)))
        elif model is not None:
            found = stack.enter_context(trained_from_again(checkpoint, archive, model, store))
            reference = Reference.of_model(found, store, stack)
        temp, cache = (stack.enter_context(temporary(store, suffix)) for suffix in (".ckz", ".rec"))
        yields = write_and_prove(Work(checkpoint, store, preset), reference, temp, cache).reconstruction
        if made.reconstruction and yields != made.reconstruction:
            problem = f"made anew it yields reconstruction {yields}, expected {made.reconstruction}"
            hint = f"archive it anew: `ckzd compress {run / checkpoint.name}`"
            raise VerificationFailed(archive, problem, hint=hint)
        give(temp, access)
        if reference is not None:
            reference.require_in_place()
        publish(temp, archive, store)


def _renamed(checkpoint: Checkpoint, manifest: Manifest | None) -> Checkpoint:
    """As it was called, and with what a restore gives back, when it was archived."""
    if manifest is None or [file.size for file in checkpoint.files] != [file.size for file in manifest.files]:
        return checkpoint
    files = (
        dataclasses.replace(layout, name=file.name, stat=_stat(file))
        for layout, file in zip(checkpoint.files, manifest.files, strict=True)
    )
    directory = _stat(manifest.directory) if manifest.directory is not None else None
    folders = tuple((folder.name, _stat(folder)) for folder in manifest.folders)
    return dataclasses.replace(
        checkpoint, name=manifest.name, step=manifest.step, files=tuple(files), stat=directory, folders=folders
    )


def _stat(model: StatModel | FileModel | FolderModel) -> FileStat:
    return FileStat(model.mode, model.uid, model.gid, model.mtime_ns)


def _require_archived(checkpoint: Checkpoint, source: Path, archive: Path, made: Made) -> None:
    """Raise SourceChanged unless it holds the very bytes that the archive was made of."""
    rows = zip(checkpoint.files, checkpoint.sha256(), strict=True)
    found = files_digest((file.name, file.size, digest) for file, digest in rows)
    names = {archive_name(checkpoint.name, found, again) for again in ("", made.reconstruction)}
    if (made.checkpoint and found != made.checkpoint) or archive.name not in names:
        raise SourceChanged(source, "is not what the archive was made of")


def _exact_reference(archive: Path, reconstruction: str | None) -> ArchiveRecord | None:
    """A sound archive beside this one that yields what it is a delta against."""
    if reconstruction is None:
        return None
    for record in records_in(archive.parent):
        if record.manifest.reconstruction == reconstruction and record.path != archive and is_sound(record.path):
            return record
    raise MissingReference(
        archive,
        f"no sound archive yields its reference, reconstruction {reconstruction}",
        hint="heal that first: `ckzd check`",
    )
