"""Pointers: the small file that stands where a checkpoint stood and names its archive."""

import errno
import json
import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ckzd.archive import FileModel, Manifest, StatModel
from ckzd.chains import ARCHIVE_SUFFIX, ArchiveRecord, archive_files, is_pointer
from ckzd.errors import CkzdError, ConfigError, CorruptArchive, MissingReference
from ckzd.formats.foreign import json_object, read_small
from ckzd.formats.names import POINTER_NAME
from ckzd.formats.source import file_stat
from ckzd.store import STORE_NAME, Store, default_store

POINTER_VERSION = 1
MAX_POINTER_BYTES = 64 * 1024
MAX_FIELD_CHARACTERS = 4096  # PATH_MAX


@dataclass(frozen=True, slots=True)
class Pointer:
    """What a pointer says. `archive` is relative to the pointer's directory and wins: a tree may move as a whole.

    `file` is what its file had that the archive did not see: the same bytes may have stood under several names.
    `member` says which of several files of the archive it stands for.
    """

    archive: str
    archive_absolute: str
    checkpoint: str
    reconstruction: str
    restore: str
    file: StatModel | None = None
    member: str | None = None


def pointer_for(checkpoint: Path) -> Path:
    """Where its pointer is: step_100.pt -> step_100.pt.ckz beside it, checkpoint-100/ -> ckzd.json inside."""
    if checkpoint.is_dir():
        return checkpoint / POINTER_NAME
    return checkpoint.with_name(checkpoint.name + ARCHIVE_SUFFIX)


def pointer_text(pointer: Path, checkpoint: Path, archive: Path, manifest: Manifest) -> str:
    """The content of the pointer at `pointer`; the paths are absolute."""
    content: dict[str, Any] = {
        "ckzd_pointer": POINTER_VERSION,
        "archive": os.path.relpath(archive, pointer.parent),
        "archive_absolute": str(archive),
        "checkpoint": checkpoint.name,
        "reconstruction": manifest.reconstruction,
        "restore": f"ckzd restore {shlex.quote(str(checkpoint))}",
    }
    if manifest.kind == "files":
        content["member"] = checkpoint.name
        manifest = manifest.of_files({checkpoint.name})
    if manifest.kind == "file":
        own = asdict(file_stat(checkpoint, checkpoint.lstat()))
        content |= {"file": own} if own != manifest.files[0].model_dump(include=set(own)) else {}
    return json.dumps(content, indent=1) + "\n"


def read_pointer(path: Path) -> Pointer:
    """Parse a pointer. Raises CorruptArchive; FileNotFoundError passes."""
    path.stat()
    data = read_small(path.resolve(), MAX_POINTER_BYTES)
    if data is None:
        raise CorruptArchive(path, f"is no pointer: expected a file of at most {MAX_POINTER_BYTES} bytes")
    try:
        content = json_object(data)
    except ValueError as error:
        raise CorruptArchive(path, f"is no pointer of ckzd: {error}") from None
    if content.get("ckzd_pointer") != POINTER_VERSION:
        raise CorruptArchive(path, f"is no pointer of ckzd: expected ckzd_pointer {POINTER_VERSION}")
    said: dict[str, str] = {}
    optional = {"member"} - content.keys()
    for name in (field.name for field in fields(Pointer) if field.name not in {"file"} | optional):
        value = content.get(name)
        if not isinstance(value, str) or "\0" in value or len(value) > MAX_FIELD_CHARACTERS:
            problem = f"is no pointer of ckzd: field {name!r} is no text of at most {MAX_FIELD_CHARACTERS} characters"
            raise CorruptArchive(path, problem)
        said[name] = value
    try:
        file = StatModel.model_validate(content["file"]) if "file" in content else None
    except ValueError:
        raise CorruptArchive(path, "is no pointer of ckzd: field 'file' is not what one has") from None
    return Pointer(**said, file=file)


def as_pointed(manifest: Manifest, pointer: Pointer) -> Manifest:
    """What an archive says of what the pointer stands for, with the mode, owner and time that its file had."""
    if manifest.kind == "files" and pointer.member in {file.name for file in manifest.files}:
        manifest = manifest.of_files([pointer.member or ""])
    if pointer.file is None or manifest.kind != "file":
        return manifest
    return manifest.model_copy(update={"files": [manifest.files[0].model_copy(update=pointer.file.model_dump())]})


def archive_of(path: Path) -> Path:
    """The archive that the pointer at `path` names. Raises MissingReference if it is not there."""
    return _named_by(read_pointer(path), path)


def _pointed(path: Path) -> ArchiveRecord:
    """The archive that the pointer at `path` names, as what the pointer stands for."""
    pointer = read_pointer(path)
    record = ArchiveRecord.read(_named_by(pointer, path))
    return ArchiveRecord(record.path, as_pointed(record.manifest, pointer))


def _named_by(pointer: Pointer, path: Path) -> Path:
    relative = Path(os.path.normpath(path.parent.resolve() / pointer.archive))
    for archive in (relative, Path(pointer.archive_absolute)):
        if _is_file(archive):
            return archive
    raise MissingReference(path, f"the archive that it points to is not at {relative}", hint="bring the store back")


def points_to(pointer: Path, archive: Path) -> bool:
    """Whether a pointer is there and names this archive, by whichever way; False for whatever else has its name."""
    try:
        return archive_of(pointer).samefile(archive)
    except (CkzdError, OSError):
        return False


def is_archive(path: Path) -> bool:
    """Whether a file starts as archives do; whole or not is for its reader to find."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _is_file(path: Path) -> bool:
    """As `Path.is_file`; what has too long a name is not there."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def resolve(path: Path) -> ArchiveRecord:
    """The archive that a user means by an archive, a pointer, or a checkpoint that is archived: it is opened once here.

    A checkpoint that is there, but not as it was archived, is refused: its pointer names an older version.
    """
    path = path.absolute()
    if _is_pointer_itself(path):
        return _pointed(path)
    if path.name.endswith(ARCHIVE_SUFFIX) and path.is_file():
        return ArchiveRecord.read(path.resolve())
    pointer = pointer_for(path)
    if _is_file(pointer):  # an archive may have been given that name by hand
        records = [_of_file(ArchiveRecord.read(pointer.resolve()), path) if is_archive(pointer) else _pointed(pointer)]
    else:
        records = _in_default_store(path)
    for record in records:
        if is_as_archived(path, record.manifest):
            return record
    if records:
        problem, hint = "was written again since it was archived", f"the older version is {records[0].path}"
    elif os.path.lexists(path):
        problem, hint = "is not an archive, and nothing says that it is archived", "name a .ckz file"
    else:
        problem, hint = "is not there, nor a pointer that says where its archive is", "name the .ckz file itself"
    raise ConfigError(path, problem, hint=hint)


def _is_pointer_itself(path: Path) -> bool:
    if path.name.endswith(ARCHIVE_SUFFIX):
        return path.is_file() and is_pointer(path)
    return path.name == POINTER_NAME and path.is_file()


def _archive_named(path: Path) -> Path | None:
    """The archive, readable or not, that `path` is or that the pointer there names; None where it is neither."""
    if _is_pointer_itself(path):
        return archive_of(path)
    return path.resolve() if path.name.endswith(ARCHIVE_SUFFIX) and path.is_file() else None


def archives_meant(path: Path) -> list[Path | CkzdError]:
    """All archives that a user means by a store, a directory of runs, a run, a folder of archives; else as `resolve`.

    Readable or not; what names an archive that is not there is an error in its place.
    """
    path = path.absolute()
    found: list[Path | CkzdError] = []
    if path.is_dir() and not _is_file(path / POINTER_NAME):
        stores = [root for root in (path, path / STORE_NAME) if Store.is_at(root)]
        directories = [place for root in stores for place in sorted((root / "archives").iterdir())]
        with suppress(CkzdError):
            directories.append(Store.open(default_store(path)).run_directory(path))
        found += [archive for directory in (path, *directories) for archive in archive_files(directory)]
        found += [_or_error(pointer, archive_of) for pointer in _pointers_in(path)]
    return found or [_or_error(path, lambda path: _archive_named(path) or resolve(path).path)]


def named_below(root: Path) -> dict[Path, list[Path]]:
    """The archives that pointers name anywhere below a directory, and those pointers, whatever they are called now.

    Raises OSError where something cannot be looked at.
    """

    def fail(error: OSError) -> None:
        raise error

    named: dict[Path, list[Path]] = {}
    for place, folders, names in os.walk(root, onerror=fail):
        if Store.is_at(Path(place)):
            folders.clear()
            continue
        for name in names:
            if name.endswith(ARCHIVE_SUFFIX) or name == POINTER_NAME:
                with suppress(CkzdError, FileNotFoundError):
                    named.setdefault(archive_of(Path(place, name)).resolve(), []).append(Path(place, name))
    return named


def _pointers_in(run: Path) -> list[Path]:
    """Of the checkpoints that stood in this directory."""
    pointers = [*run.glob(f"*{ARCHIVE_SUFFIX}"), *run.glob(f"*/{POINTER_NAME}")]
    return sorted(path for path in pointers if _is_file(path) and is_pointer(path))


def pointed_in(run: Path) -> dict[Path, list[Path]]:
    """What pointers in a run stand for, by the archive that they name; those that name none are left out."""
    found: dict[Path, list[Path]] = {}
    for pointer in _pointers_in(run):
        with suppress(CkzdError, OSError):
            checkpoint = pointer.parent if pointer.name == POINTER_NAME else pointer.with_suffix("")
            found.setdefault(archive_of(pointer).resolve(), []).append(checkpoint)
    return found


def dangling_in(run: Path | None) -> dict[Path, Pointer]:
    """Pointers in a run, if that is known, whose archive is not where they say."""
    found = {}
    for path in _pointers_in(run) if run is not None else ():
        with suppress(CkzdError, OSError):
            pointer = read_pointer(path)
            try:
                _named_by(pointer, path)
            except MissingReference:
                found[path] = pointer
    return found


def _or_error(path: Path, named: Callable[[Path], Path]) -> Path | CkzdError:
    try:
        return named(path)
    except CkzdError as error:
        return error
    except OSError as error:
        return CkzdError(path, f"cannot be read: {error.strerror or error}")


def large_files(checkpoint: Path, manifest: Manifest) -> dict[Path, FileModel]:
    """The files that an archive stands for: those with tensors. The others stay in a directory that is replaced.

    Of several files all of them, wherever the one called `checkpoint` lies.
    """
    if manifest.kind == "file":
        return {checkpoint: manifest.files[0]}
    if manifest.kind == "files":
        return {checkpoint.with_name(file.name): file for file in manifest.files}
    return {checkpoint / file.name: file for file in manifest.files if file.tensors}


def places_of(run: Path, manifest: Manifest) -> list[Path]:
    """Where in a run pointers to an archive stand, in the places of what it is of: of several files one in each's."""
    checkpoint = run / manifest.name
    return list(large_files(checkpoint, manifest)) if manifest.kind == "files" else [checkpoint]


def is_as_archived(checkpoint: Path, manifest: Manifest) -> bool:
    """Whether what is there of the large files, if anything, has the sizes and times that the archive recorded."""
    for path, file in large_files(checkpoint, manifest).items():
        if os.path.lexists(path):
            status = path.lstat()
            if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
                return False
    return True


def _in_default_store(checkpoint: Path) -> list[ArchiveRecord]:
    """Archives of this name, newest first: for when a framework's rotation took the pointer with the checkpoint."""
    try:
        store = Store.open(default_store(checkpoint.parent))
    except CkzdError:
        return []
    records = [_of_file(record, checkpoint) for record in store.archives(checkpoint.parent)]
    return [record for record in records if record.manifest.name == checkpoint.name][::-1]


def _of_file(record: ArchiveRecord, path: Path) -> ArchiveRecord:
    """What an archive of several files says of the one with this name; any other as it is."""
    manifest = record.manifest
    if manifest.kind != "files" or path.name not in {file.name for file in manifest.files}:
        return record
    return ArchiveRecord(record.path, manifest.of_files([path.name]))
