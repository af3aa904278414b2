"""Models that archives are deltas against and no archive holds: whether they are as they were, and who needs them.

    STORE/base_models/<id>.json           a model that archives of the store name, with the marks of its files when read
    STATE/base_models/<id>-<store>.json   the same, for whoever works in other stores: nobody may replace it

Archives say themselves what they need. The notes say it to whoever is about to replace or drop something, and spare
reading again gigabytes that did not change.
"""

import hashlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from ckzd import durable
from ckzd.archive import NamedFile, NamedModel
from ckzd.checkpoint import sha256_of
from ckzd.errors import BadCheckpoint, CkzdError, ConfigError, MissingBaseModel
from ckzd.file_marks import Mark, walk
from ckzd.formats.foreign import json_file
from ckzd.formats.listing import is_text
from ckzd.formats.source import OPEN_FLAGS, as_ckzd_errors, regular_file
from ckzd.pace import blocks
from ckzd.page_cache import forget
from ckzd.state_dir import state_dirs

log = logging.getLogger(__name__)

NOTES = "base_models"  # of a store, and of a state directory
READ_AGAIN_SECONDS = 24 * 3600.0  # a disk may rot under a file that nobody touches: so often it is read anew
_MAX_PATH, _MAX_PART = 4096, 255  # bytes, as Linux has it
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MAX_NOTES = 4096  # that are remembered

Inode = tuple[int, int]  # with its device


@dataclass(frozen=True, slots=True)
class Note:
    """A model that archives of a store need, and when all of its files were read last, with what marks."""

    store: Path
    model: NamedModel
    marks: tuple[Mark, ...]
    read_at: float  # seconds since 1970

    @classmethod
    def of_json(cls, said: dict[str, Any]) -> Self:
        """What `to_json` wrote; ValueError, KeyError or TypeError for anything else."""
        model = NamedModel.model_validate(said["model"])
        marks = tuple(Mark(*(int(number) for number in mark)) for mark in said["marks"])
        if len(marks) != len(model.files):
            raise ValueError("a mark for each file was expected")
        return cls(Path(str(said["store"])), model, marks, float(said["read_at"]))

    def to_json(self) -> bytes:
        """One object."""
        model = self.model.model_dump(mode="json")
        said = {"store": str(self.store), "model": model, "marks": self.marks, "read_at": self.read_at}
        return json.dumps(said).encode() + b"\n"

    def is_recent(self) -> bool:
        """Whether what was read then is believed now, of files that have the same marks."""
        return 0 <= time.time() - self.read_at < READ_AGAIN_SECONDS


def require_plain_name(path: Path) -> None:
    """Raise ConfigError for a path that no archive can name."""
    text, problem = str(path), ""
    if not is_text(text) or _CONTROL.search(text):
        problem = f"expected a path of plain text, got {text!a}"
    elif len(os.fsencode(text)) > _MAX_PATH or any(len(os.fsencode(part)) > _MAX_PART for part in path.parts):
        problem = f"expected at most {_MAX_PATH} bytes, {_MAX_PART} between slashes, got {text[:80]!a}..."
    if problem:
        raise ConfigError("base_model", problem, hint="link to the model under a plain name, and name that")


# Notes


def note(store: Path, model: NamedModel, marks: Sequence[Mark]) -> None:
    """Say durably that archives of the store at `store` need the model: before the first of them is there.

    Raises OSError or NoSpace where no place takes the note: then nothing may be made against the model.
    """
    written = Note(store, model, tuple(marks), time.time())
    name = f"{_id_of(model)}-{hashlib.sha256(os.fsencode(store)).hexdigest()[:16]}.json"
    failed: list[Exception] = []
    for place in (places := state_dirs()):  # who replaces may see another one of them than who writes next
        try:
            _write(place / NOTES / name, written)
        except (OSError, CkzdError) as error:
            failed.append(error)
    if len(failed) == len(places):
        raise failed[0]
    _write(store / NOTES / f"{_id_of(model)}.json", written)


def _write(path: Path, written: Note) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.sweep(path.parent)
    with durable.write_atomically(path) as file:
        file.write(written.to_json())


def _id_of(model: NamedModel) -> str:
    return hashlib.sha256(model.model_dump_json().encode()).hexdigest()[:32]


def notes_in(place: Path) -> list[tuple[Path, Note]]:
    """All notes of a store or a state directory with where they lie; one that cannot be read is said and left out."""
    found = []
    for path in sorted((place / NOTES).glob("*.json")):
        with suppress(FileNotFoundError):
            read = _read(path, Mark.of(path.lstat()))
            if read is not None:
                found.append((path, read))
    return found


@lru_cache(maxsize=_MAX_NOTES)
def _read(path: Path, mark: Mark) -> Note | None:
    del mark
    try:
        return Note.of_json(json_file(path) or {})
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        log.warning("a note of a base model cannot be read", extra={"path": str(path), "error": str(error)})
        return None


def forget_all_but(store: Path, needed: Collection[NamedModel]) -> None:
    """Remove the notes of a store's models that no archive of it names any more. Its lock is held exclusively."""
    for place in (store, *state_dirs()):
        for path, found in notes_in(place):
            if store in {found.store, place} and found.model not in needed:
                with suppress(OSError):  # what somebody else wrote stays: it keeps what it names
                    durable.remove(path)


def known_sha256(store: Path, path: Path, mark: Mark) -> str:
    """Of a file of a model (links resolved): as the store has noted it for this mark not long ago, or read now."""
    for _, found in notes_in(store):
        for file, noted in zip(found.model.files, found.marks, strict=True):
            if noted == mark and found.is_recent() and os.path.realpath(found.model.path_of(file)) == str(path):
                return file.sha256
    return file_sha256(path)


# Who needs what


def why_needed(
    places: Iterable[Path], hashes: Collection[str], store: Path, files: Collection[Inode] = ()
) -> str | None:
    """Why archives, of this store or another one, need what is at one of the places as it is; None if they do not.

    By its content (sha256 of its files, as they are or will be restored), by its place (in a directory that was named,
    or around what was) and by the very `files`, whatever their names: for these the models are looked at, which may
    lie on a disk that does not answer.
    """
    real = [Path(os.path.realpath(place)) for place in places]
    for path, found in all_notes(store):
        model, is_directory = Path(found.model.path), found.model.kind == "directory"
        same = bool(files) and any(_inode(found.model.path_of(file)) in files for file in found.model.files)
        near = any(is_part_of(place, model, is_directory=is_directory) for place in real)
        if same or near or not hashes_of([found]).isdisjoint(hashes):
            return (
                f"it is, holds or lies in {found.model.path}, the base model of archives in {found.store} (see {path})"
            )
    return None


def all_notes(store: Path) -> Iterator[tuple[Path, Note]]:
    """Of a store, and of all others that this user may know of."""
    for place in (store, *state_dirs()):
        yield from notes_in(place)


def lost_models(store: Path) -> Iterator[Note]:
    """Those of them whose files are not all where they were, as they were when they were read last."""
    for _, found in all_notes(store):
        for file, mark in zip(found.model.files, found.marks, strict=True):
            try:
                status = found.model.path_of(file).stat()
            except OSError:
                status = None
            if status is None or Mark.of(status) != mark:
                yield found
                break


def hashes_of(notes: Iterable[Note]) -> set[str]:
    """Sha256 of all files that are named."""
    return {file.sha256 for found in notes for file in found.model.files}


def is_part_of(place: Path, model: Path, *, is_directory: bool) -> bool:
    """Whether a place is a model's, lies in it where that is a directory, or holds it; links are resolved in both."""
    return place == model or place in model.parents or (is_directory and model in place.parents)


def files_of(places: Iterable[Path]) -> set[Inode]:
    """The very files at or below some places; none of what is not there."""
    found: set[Inode] = set()
    for place in places:
        with suppress(OSError):
            found.update((status.st_dev, status.st_ino) for _, status in walk(place) if stat.S_ISREG(status.st_mode))
    return found


def _inode(path: Path) -> Inode | None:
    with suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


# Are they as they were


def require(archive: Path, model: NamedModel, *, read: bool = False) -> list[Path]:
    """Where the files of an archive's base model lie, links resolved: with the bytes that it names.

    They are where they were, or beside the archive. What has the marks that the store has noted is not read again for
    a day, unless it is to be `read`; what is not noted so is noted now, as after a store was brought from elsewhere.
    Raises MissingBaseModel: what is expected, what is there, and what to do.
    """
    store = next((above for above in archive.resolve().parents[1:3] if (above / "store.json").exists()), None)
    known = _note_at(store / NOTES / f"{_id_of(model)}.json") if store is not None and not read else None
    marks = known.marks if known is not None and known.is_recent() else (None,) * len(model.files)
    paths = [_found(archive, model, file, mark) for file, mark in zip(model.files, marks, strict=True)]
    if store is not None and os.access(store, os.W_OK):
        with suppress(OSError, CkzdError):
            now = tuple(Mark.of(path.stat()) for path in paths)
            if now != marks:
                note(store, model, now)
    return paths


def _note_at(path: Path) -> Note | None:
    try:
        return _read(path, Mark.of(path.lstat()))
    except OSError:
        return None


def _found(archive: Path, model: NamedModel, file: NamedFile, mark: Mark | None) -> Path:
    """A file of the model; a look without reading is enough where it has the `mark`."""
    there = []
    for path in (model.path_of(file), archive.parent / file.name):
        real = Path(os.path.realpath(path))
        try:
            status = regular_file(real)
            if mark is not None and Mark.of(status) == mark:
                return real
            got = f"{status.st_size} bytes" if status.st_size != file.size else f"sha256 {file_sha256(real)}"
        except CkzdError as error:
            there.append(f"{path} {error.problem}")
            continue
        if got == f"sha256 {file.sha256}":
            return real
        there.append(f"{path} has {got}")
    raise MissingBaseModel(
        archive,
        f"is a delta against the base model {model.path}, which is not here as it was: {file.name}: expected"
        f" {file.size} bytes, sha256 {file.sha256}; {'; '.join(there)}",
        hint=f"put it, or a link to it, back to {model.path_of(file)} or beside the archive",
    )


def file_sha256(path: Path) -> str:
    """Of a regular file's bytes, read once for each process as long as nothing of it changes, and again in each period.

    Raises what `formats` does of a file that is none or not there; waits for no pipe.
    """
    status = regular_file(path)
    version = (status.st_dev, status.st_ctime_ns, Mark.of(status))
    return _sha256(path, version, int(time.monotonic() // READ_AGAIN_SECONDS))


@lru_cache(maxsize=_MAX_NOTES)
def _sha256(path: Path, version: tuple[int, int, Mark], period: int) -> str:
    del period
    with as_ckzd_errors(path), open(os.open(path, OPEN_FLAGS), "rb") as file:  # noqa: PTH123 - it is a descriptor
        before = Mark.of(os.fstat(file.fileno()))
        sha256 = sha256_of(blocks(file))
        forget(file.fileno())
        if {before, Mark.of(os.fstat(file.fileno()))} != {version[2]}:
            raise BadCheckpoint(path, "changed while it was read")
    return sha256
