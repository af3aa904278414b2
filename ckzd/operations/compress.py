"""Archive one checkpoint: read, encode against the reference, write, prove in another process, publish.

    read_checkpoint -> store.reference_for -> Encoder -> STORE/tmp -> verify_in_child -> publish -> cache [-> replace]

Nothing of it is visible before `publish`; whoever publishes second throws its own archive away.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import torch

from ckzd import durable
from ckzd.archive import ArchiveWriter, FileModel, Manifest, StatModel, files_digest
from ckzd.checkpoint import STORED_AS, Checkpoint
from ckzd.codec.encode import Encoded, Encoder
from ckzd.codec.presets import PRESETS, Preset, Scheme
from ckzd.codec.reconstruction import Reconstruction
from ckzd.errors import ConfigError
from ckzd.formats import read_checkpoint
from ckzd.operations.reconstruct import as_tuple, malformed_as_corrupt, reconstruction_of, scratch_file
from ckzd.operations.replace import replace as replace_original
from ckzd.operations.verify import verify_in_child
from ckzd.store import ArchiveRecord, Store, default_store

log = logging.getLogger(__name__)

OnStage = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class CompressReport:
    """What became of a checkpoint."""

    checkpoint: str
    archive: str
    reference: str | None
    preset: str
    original_bytes: int
    archive_bytes: int
    ratio: float
    seconds: float
    verified: bool
    already: bool
    replaced: bool

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def compress(
    path: Path,
    *,
    store: Path | None = None,
    preset: str = "resume",
    stride: int = 1,
    replace: bool = False,
    device: str = "auto",
    on_stage: OnStage | None = None,
) -> CompressReport:
    """Archive the checkpoint at `path` and prove the archive; the original stays unless `replace`.

    A checkpoint whose very bytes are archived already is left at that. Raises any CkzdError; nothing is left behind then.
    """
    started = time.monotonic()
    tell = on_stage or (lambda _stage, _fraction: None)
    path = path.absolute()
    if preset not in PRESETS:
        raise ConfigError("preset", f"expected one of {', '.join(PRESETS)}, got {preset!r}")
    tell("read", 0.0)
    checkpoint = read_checkpoint(path)
    opened = Store.open_or_create(store if store is not None else default_store(path.parent))
    with opened.lock(shared=True):
        record = _known(opened, path, checkpoint)
        already = record is not None
        if record is None:
            record = _archive(opened, path, checkpoint, PRESETS[preset], stride, device, tell)
    replaced = False
    if replace:
        replace_original(path, record.path, opened)
        replaced = True
        tell("replaced", 1.0)
    archive_bytes = record.path.stat().st_size
    reference = _reference_path(opened, path.parent, record)
    return CompressReport(
        checkpoint=str(path),
        archive=str(record.path),
        reference=reference,
        preset=record.manifest.preset,
        original_bytes=checkpoint.nbytes,
        archive_bytes=archive_bytes,
        ratio=checkpoint.nbytes / archive_bytes,
        seconds=time.monotonic() - started,
        verified=True,
        already=already,
        replaced=replaced,
    )


def _known(store: Store, path: Path, checkpoint: Checkpoint) -> ArchiveRecord | None:
    """The archive of exactly these bytes, if there is one. Hashes them only if names and sizes allow it."""
    sizes = {layout.name: layout.size for layout in checkpoint.files}
    similar = [
        record
        for record in store.archives(path.parent)
        if record.manifest.name == checkpoint.name and {f.name: f.size for f in record.manifest.files} == sizes
    ]
    if not similar:
        return None
    return store.find_by_checkpoint(path.parent, checkpoint_digest(checkpoint))


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """What identifies the bytes of a checkpoint, as in `Manifest.checkpoint`."""
    rows = [(f.name, f.size, digest) for f, digest in zip(checkpoint.files, checkpoint.sha256(), strict=True)]
    return files_digest(rows)


def _reference_path(store: Store, run: Path, record: ArchiveRecord) -> str | None:
    wanted = record.manifest.reference
    paths = [r.path for r in store.archives(run) if r.manifest.reconstruction == wanted]
    return str(paths[0]) if wanted is not None and paths else None


def _archive(
    store: Store, path: Path, checkpoint: Checkpoint, preset: Preset, stride: int, device: str, tell: OnStage
) -> ArchiveRecord:
    reference = store.reference_for(path.parent, checkpoint.step, checkpoint.name, stride)
    with ExitStack() as stack:
        before = stack.enter_context(reconstruction_of(reference.path)) if reference is not None else None
        if before is not None and (changed := _changed_shape(checkpoint, before)):
            log.warning(
                "a tensor changed its shape: the archive becomes a new base",
                extra={"path": str(path), "tensor": changed},
            )
            reference = before = None
        durable.require_space(store.tmp, _space_needed(checkpoint, preset, is_base=before is None))
        temp, cache = (stack.enter_context(_temporary(store, suffix)) for suffix in (".ckz", ".rec"))
        with durable.as_no_space(store.tmp):
            manifest = _write(checkpoint, preset, reference, before, temp, cache, store, device, tell)
        tell("written", 1.0)
        verify_in_child(temp, reference.path if reference is not None else None)
        tell("verified", 1.0)
        target = store.archive_path(path.parent, checkpoint.name, manifest.checkpoint)
        durable.publish(temp, target)
        durable.publish(cache, store.cache_path(manifest.reconstruction))
        _forget_old_reconstructions(store, path.parent, stride)
    tell("publish", 1.0)
    return ArchiveRecord(target, manifest)


@contextmanager
def _temporary(store: Store, suffix: str) -> Iterator[Path]:
    """A path in the store's tmp/ that is gone afterwards, unless it was published."""
    path = store.new_temp(suffix)
    try:
        yield path
    finally:
        durable.remove(path)


def _write(
    checkpoint: Checkpoint,
    preset: Preset,
    reference: ArchiveRecord | None,
    before: Reconstruction | None,
    temp: Path,
    cache: Path,
    store: Store,
    device: str,
    tell: OnStage,
) -> Manifest:
    """Encode into `temp` and the reconstruction into `cache`; both are on disk when this returns."""
    tell("encode", 0.0)
    torch.set_num_threads(1)  # the LSTM is small: more threads cost more than they give, and disturb training
    with temp.open("xb") as archive_file, cache.open("x+b") as cache_file, scratch_file(store) as scratch:
        writer = ArchiveWriter(archive_file)
        failed_at = reference.path if reference is not None else Path(checkpoint.name)
        with malformed_as_corrupt(failed_at):
            encoder = Encoder(
                checkpoint,
                before,
                preset,
                put=lambda kind, data: as_tuple(writer.put(kind, data)),
                add=writer.add,
                reconstruction=cache_file,
                scratch=scratch,
                device=_device(device),
                progress=lambda fraction: tell("encode", fraction),
            )
            encoded = encoder.encode()
        manifest = writer.finish(_manifest(checkpoint, preset, reference, encoded))
        for file in (archive_file, cache_file):
            file.flush()
            os.fsync(file.fileno())
    return manifest


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device", f"expected a device that is there, got {name!r}", hint="use --device cpu")
    return name


def _manifest(checkpoint: Checkpoint, preset: Preset, reference: ArchiveRecord | None, encoded: Encoded) -> Manifest:
    hashes = zip(checkpoint.files, encoded.original_sha256, encoded.restored_sha256, strict=True)
    files = [
        FileModel(
            name=layout.name,
            size=layout.size,
            **asdict(layout.stat),
            original_sha256=original,
            sha256=restored,
            tensors=len(layout.holes),
        )
        for layout, original, restored in hashes
    ]
    return Manifest(
        preset=preset.name,
        name=checkpoint.name,
        kind="directory" if checkpoint.is_directory else "file",
        directory=StatModel(**asdict(checkpoint.stat)) if checkpoint.stat is not None else None,
        step=checkpoint.step,
        checkpoint=files_digest((f.name, f.size, f.original_sha256) for f in files),
        restored=files_digest((f.name, f.size, f.sha256) for f in files),
        reconstruction=encoded.reconstruction,
        reference=reference.manifest.reconstruction if reference is not None else None,
        depth=reference.manifest.depth + 1 if reference is not None else 0,
        original_bytes=checkpoint.nbytes,
        parameters=encoded.parameters,
        parts=encoded.parts,
        coders=encoded.coders,
        quality=encoded.quality,
        tools={"numpy": np.__version__, "torch": torch.__version__, "constriction": _version(constriction)},
        files=files,
    )


def _version(module: object) -> str:
    return str(getattr(module, "__version__", "unknown"))


def _changed_shape(checkpoint: Checkpoint, before: Reconstruction) -> str | None:
    """The path of a tensor that the reference holds in another shape or dtype."""
    for tensor in checkpoint.tensors:
        form = before.form(tensor.path, "weights")
        if form is not None and form != (STORED_AS.get(tensor.dtype), tensor.shape):
            return "/".join(tensor.path)
    return None


def _space_needed(checkpoint: Checkpoint, preset: Preset, *, is_base: bool) -> int:
    """An upper estimate of what the encoder writes: archive, reconstruction and scratch."""
    if preset.scheme is Scheme.EXACT:
        return 2 * checkpoint.nbytes
    return checkpoint.nbytes if is_base else (checkpoint.nbytes * 3) // 4


def _forget_old_reconstructions(store: Store, run: Path, stride: int) -> None:
    """Keep what the next checkpoints of this run are deltas against; the rest can be decoded again."""
    for record in store.archives(run)[:-stride]:
        durable.remove(store.cache_path(record.manifest.reconstruction))
