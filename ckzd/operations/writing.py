"""Write one archive into a store's tmp/, and prove it: the encoder and the verifier work beside each other.

    Encoder -> STORE/tmp/*.ckz, *.rec -> verifier -> publish

Nothing of it is visible before `publish`.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, Self

from ckzd import __version__, durable
from ckzd.access import Access, access_to
from ckzd.archive import ArchiveWriter, FileModel, FolderModel, Manifest, StatModel, files_digest
from ckzd.chains import ArchiveRecord, is_whole
from ckzd.checkpoint import Checkpoint, tiles_of
from ckzd.codec.ahead import Listener
from ckzd.codec.encode import Encoded, Encoder
from ckzd.codec.presets import Preset, Scheme
from ckzd.codec.records.reconstruction import Reconstruction
from ckzd.defaults import Effort
from ckzd.errors import SourceChanged
from ckzd.operations.base_model import ENTRY
from ckzd.operations.reconstruct import malformed_as_corrupt, scratch_file
from ckzd.operations.slim import has_dropped_moments
from ckzd.operations.trained_from import TrainedFrom
from ckzd.operations.verify import Task, verifier
from ckzd.page_cache import forget
from ckzd.stages import OnStage, Stage
from ckzd.store import Store

log = logging.getLogger(__name__)

_TOOLS = ("numpy", "constriction", "zstandard")
_PAPER_TOOLS = ("torch", "scikit-learn")  # of codebooks and the LSTM, which other presets have not


@dataclass(frozen=True, slots=True)
class Work:
    """What is encoded, how, and on what device."""

    checkpoint: Checkpoint
    store: Store
    preset: Preset
    device: str = "cpu"
    tell: OnStage = lambda *_: None


@dataclass(frozen=True, slots=True)
class Reference:
    """What a checkpoint is a delta against: an archive, or a base model."""

    source: ArchiveRecord | TrainedFrom
    identity: str
    reconstruction: Reconstruction

    @property
    def archive(self) -> Path | None:
        """Its archive, if it has one."""
        return self.source.path if isinstance(self.source, ArchiveRecord) else None

    @property
    def depth(self) -> int:
        """Archives that it needs, itself among them; a base model counts for one."""
        return self.source.manifest.depth + 1 if isinstance(self.source, ArchiveRecord) else 1

    @classmethod
    def of_archive(cls, record: ArchiveRecord, reconstruction: Reconstruction) -> Self:
        """An archive whose reconstruction was opened."""
        return cls(record, record.manifest.reconstruction, reconstruction)

    @classmethod
    def of_model(cls, model: TrainedFrom, store: Store, stack: ExitStack) -> Self:
        """A base model, whose reconstruction is written into a file that `stack` closes. Raises NoSpace."""
        file = stack.enter_context(scratch_file(store))
        with durable.as_no_space(store.tmp):
            return cls(model, model.tensors.write(file), Reconstruction(file))

    def require_in_place(self) -> None:
        """A model must be where it was: looked at last before the archive that names it is published."""
        if isinstance(self.source, TrainedFrom):
            self.source.require_in_place()


@contextmanager
def temporary(store: Store, suffix: str) -> Iterator[Path]:
    """A path in the store's tmp/ that is gone afterwards, unless it was published."""
    path = store.new_temp(suffix)
    try:
        yield path
    finally:
        durable.remove(path)


def write_and_prove(work: Work, reference: Reference | None, temp: Path, cache: Path) -> Manifest:
    """Encode into `temp` and the reconstruction into `cache`; both are on disk and proven when this returns.

    The process that proves them works beside the encoder, on what that announces: it has its two files open, too.
    """
    work.tell(Stage.ENCODE, 0.0)
    with ExitStack() as held:
        with durable.as_no_space(work.store.tmp), ExitStack() as written:
            reconstruction = written.enter_context(durable.create(cache))
            scratch = written.enter_context(scratch_file(work.store))
            announced = (reconstruction.fileno(), scratch.fileno())
            before = reference.archive if reference is not None else None
            proving = held.enter_context(verifier(Task(temp, before, work.store.root, announced)))
            archive = written.enter_context(durable.create(temp))
            manifest = _write(work, reference, _Files(archive, reconstruction, scratch), proving)
        work.tell(Stage.WRITTEN, 1.0)
        proving.finish()
    return manifest


@dataclass(frozen=True, slots=True)
class _Files:
    """What an encoder writes."""

    archive: BinaryIO
    reconstruction: BinaryIO
    scratch: BinaryIO


def _write(work: Work, reference: Reference | None, files: _Files, listener: Listener) -> Manifest:
    """Encode into the files; archive and reconstruction are on disk when this returns."""
    writer = ArchiveWriter(files.archive)
    source = reference.source if reference is not None else None
    model = source if isinstance(source, TrainedFrom) else None  # it is read when the archive names it, not before
    with malformed_as_corrupt((reference.archive if reference is not None else None) or Path(work.checkpoint.name)):
        encoded = Encoder(
            work.checkpoint,
            reference.reconstruction if reference is not None else None,
            work.preset,
            put=writer.put,
            add=writer.add,
            reconstruction=files.reconstruction,
            scratch=files.scratch,
            device=work.device,
            progress=lambda fraction: work.tell(Stage.ENCODE, fraction),
            listener=listener if model is None else None,
        ).encode()
    if model is not None:
        writer.add(ENTRY, model.tensors.entry())
    manifest = writer.finish(_manifest(work, reference, encoded))
    for file in (files.archive, files.reconstruction):
        file.flush()
        os.fsync(file.fileno())
    forget(files.archive.fileno())  # who proves it reads it from the disk
    return manifest


def _manifest(work: Work, reference: Reference | None, encoded: Encoded) -> Manifest:
    checkpoint, stat = work.checkpoint, work.checkpoint.stat
    files = _files(checkpoint, encoded)
    source = reference.source if reference is not None else None
    return Manifest(
        preset=work.preset.name,
        effort="fast" if work.preset.effort is Effort.FAST else None,
        name=checkpoint.name,
        kind="directory" if checkpoint.is_directory else "file" if len(files) == 1 else "files",
        directory=StatModel(**asdict(stat)) if stat is not None else None,
        folders=[FolderModel(name=name, **asdict(found)) for name, found in checkpoint.folders],
        step=checkpoint.step,
        checkpoint=files_digest((f.name, f.size, f.original_sha256) for f in files),
        restored=files_digest((f.name, f.size, f.sha256) for f in files),
        reconstruction=encoded.reconstruction,
        reference=reference.identity if reference is not None else None,
        base_model=source.named if isinstance(source, TrainedFrom) else None,
        depth=reference.depth if reference is not None else 0,
        original_bytes=checkpoint.nbytes,
        parameters=encoded.parameters,
        parts=encoded.parts,
        coders=encoded.coders,
        quality=encoded.quality,
        tools={"ckzd": __version__} | {name: version(name) for name in _tools(work.preset)},
        files=files,
    )


def _tools(preset: Preset) -> tuple[str, ...]:
    """What takes part in an archive of this preset."""
    return (*_TOOLS, *(_PAPER_TOOLS if preset.scheme is Scheme.KMEANS else ()))


def _files(checkpoint: Checkpoint, encoded: Encoded) -> list[FileModel]:
    hashes = zip(checkpoint.files, encoded.original_sha256, encoded.restored_sha256, strict=True)
    tiles = tiles_of(checkpoint.files, checkpoint.tiled)
    tensor_of = {tile: first for first, own in tiles.items() for tile in own}
    return [
        FileModel(
            name=layout.name,
            size=layout.size,
            **asdict(layout.stat),
            original_sha256=original,
            sha256=restored,
            tensors=len({tensor_of[hole.tensor] for hole in layout.holes}),
        )
        for layout, original, restored in hashes
    ]


def publish(temp: Path, target: Path, store: Store) -> bool:
    """Whether the archive lies at `target` now; False if a whole one does that gives as much."""
    if os.path.lexists(target) and not is_whole(target):
        log.warning("damaged archive set aside", extra={"path": str(store.supplant(temp, target))})
        return True
    if os.path.lexists(target) and has_dropped_moments(target):
        durable.overwrite(temp, target)  # all of it again, and more
        return True
    return durable.publish(temp, target)


def access_of(path: Path, checkpoint: Checkpoint, store: Store) -> Access:
    """An archive holds all files of a checkpoint: it is as private as the most private of them."""
    try:
        return access_to(checkpoint.places(path), place=store.root)
    except FileNotFoundError as error:
        raise SourceChanged(error.filename or path, "is gone") from error
