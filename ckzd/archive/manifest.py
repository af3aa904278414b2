"""manifest.json: what an archive says of itself. FORMAT.md has one row for every field here.

It holds no clock and no host: the same checkpoint gives the same bytes. It has exactly one spelling
(`to_json`), and `from_json` accepts no other, so that a flipped byte cannot hide in white space.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

FORMAT_VERSION: Final = 8
FIRST_WITH_EFFORT: Final = 7
FIRST_WITH_BASE_MODEL: Final = 8
MAX_MODEL_FILES: Final = 1024  # of a base model: the largest that are published have some hundred shards
FIRST_WITH_FILES: Final = 8
FIRST_WITH_FOLDERS: Final = 8
FIRST_TO_DROP_MOMENTS: Final = 8
FIRST_TO_CARRY: Final = 8
MAX_CARRIED: Final = 1024  # archives in one: a chain has some twenty links
_ABSENT_IF_EMPTY: Final = frozenset({"effort", "base_model", "folders", "moments_dropped"})
MOMENTS: Final = frozenset({"first_moment", "second_moment"})  # kinds of entries that weights do without
CARRIED: Final = "carried"  # kind of the entries that are archives themselves

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
PlainName = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
PlainPath = Annotated[str, StringConstraints(max_length=4096, pattern=r"^/[^\x00-\x1f\x7f-\x9f]+$")]
Day = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Id32 = Annotated[int, Field(ge=0, lt=2**32)]
Nanoseconds = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StatModel(_Frozen):
    """What a restore gives back to a directory beside its files."""

    mode: Id32
    uid: Id32
    gid: Id32
    mtime_ns: Nanoseconds


class FolderModel(_Frozen):
    """A directory in the checkpoint's directory."""

    name: Text
    mode: Id32
    uid: Id32
    gid: Id32
    mtime_ns: Nanoseconds


class FileModel(_Frozen):
    """One file of the checkpoint. `size` holds for the original and for the restored file: they are equally long."""

    name: Text
    size: Count
    mode: Id32
    uid: Id32
    gid: Id32
    mtime_ns: Nanoseconds
    original_sha256: Sha256
    sha256: Sha256
    tensors: Count


class NamedFile(_Frozen):
    """One file of a base model."""

    name: PlainName
    size: Count
    sha256: Sha256


class NamedModel(_Frozen):
    """A model that an archive is a delta against, and that no archive holds: a file, or some files of a directory."""

    path: PlainPath  # where it was, links resolved
    kind: Literal["file", "directory"]
    files: Annotated[list[NamedFile], Field(min_length=1, max_length=MAX_MODEL_FILES)]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        names = [file.name for file in self.files]
        _require(os.path.normpath(self.path) == self.path, f"path {self.path!r} is not absolute and without detours")
        _require(all(map(is_plain_name, names)), "a file of base_model is not one path component")
        _require(len(set(names)) == len(names), "two files of base_model have one name")
        _require(self.kind == "directory" or names == [os.path.basename(self.path)], "a file has its path's name")  # noqa: PTH119
        return self

    def path_of(self, file: NamedFile) -> Path:
        """Where one of its files is to lie."""
        return Path(self.path) if self.kind == "file" else Path(self.path) / file.name


class NewerFormat(ValueError):
    """An archive that a later ckzd wrote: nothing says that it is damaged."""


class EntryModel(_Frozen):
    """One entry of the container other than the manifest."""

    name: Text
    nbytes: Count
    sha256: Sha256


class Manifest(_Frozen):
    """Everything an archive says of itself; validated against itself, so that no two fields contradict each other."""

    format: Literal[1, 2, 3, 4, 5, 6, 7, 8] = FORMAT_VERSION
    preset: Text
    effort: Literal["fast"] | None = None  # since format 7; None, which is the best, is not spelled
    moments_dropped: Day | None = None  # since format 8; None is not spelled
    name: Text
    kind: Literal["file", "files", "directory"]  # "files" since format 8: several of one directory
    directory: StatModel | None
    folders: list[FolderModel] = []  # since format 8; where there are none, they are not spelled
    step: int | None
    checkpoint: Sha256
    restored: Sha256
    reconstruction: Sha256
    reference: Sha256 | None
    base_model: NamedModel | None = None  # since format 8; None, as for all but the first of a run, is not spelled
    depth: Count
    original_bytes: Count
    parameters: Count
    parts: dict[str, Count]
    coders: dict[str, Count]
    quality: dict[str, float]
    tools: dict[str, str]
    files: list[FileModel]
    entries: list[EntryModel] = []

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """The fields must not contradict each other, and no name may lead out of the place of a restore."""
        _require(is_plain_name(self.name), f"name {self.name!r} is not one path component")
        for file in self.files:
            _require(is_inside(file.name), f"file name {file.name!r} is not a relative path that stays inside")
        seen = {""}
        for folder in self.folders:
            _require(is_inside(folder.name), f"folder name {folder.name!r} is not a relative path that stays inside")
            _require(folder.name.rpartition("/")[0] in seen, f"folder {folder.name!r} stands before the one it is in")
            seen.add(folder.name)
        names = [*(file.name for file in self.files), *(folder.name for folder in self.folders)]
        _require(len(set(names)) == len(names), "two files, or directories, have one name")
        _require(bool(self.files), "there is no file")
        _require(self.kind != "file" or len(self.files) == 1, "a file checkpoint has exactly one file")
        _require(self.kind != "files" or self._is_of_several(), "files are several in one directory, since format 8")
        _require((self.directory is not None) == (self.kind == "directory"), "directory must be there for a directory")
        if self.carried:
            self._require_carried()
        else:
            _require((self.reference is None) == (self.depth == 0), "depth is 0 exactly for a base")
        _require(not self.folders or self.kind == "directory", "a file checkpoint has no directories")
        _require(not self.folders or self.format >= FIRST_WITH_FOLDERS, "folders are since format 8")
        _require(self.effort is None or self.format >= FIRST_WITH_EFFORT, "effort is since format 7")
        if self.base_model is not None:
            _require(self.format >= FIRST_WITH_BASE_MODEL, "base_model is since format 8")
            _require(self.depth == 1 or bool(self.carried), "base_model is of the first archive of a chain")
        if self.moments_dropped is not None:
            _require(self.format >= FIRST_TO_DROP_MOMENTS, "moments_dropped is since format 8")
            has_some = any(is_of_moments(entry.name) for entry in self.entries)
            _require(not has_some, "moments_dropped, but some are there")
        _require(self.original_bytes == sum(file.size for file in self.files), "original_bytes is not the files' sum")
        _require(self.checkpoint == original_digest(self.files), "checkpoint is not the hash of the original files")
        _require(self.restored == restored_digest(self.files), "restored is not the hash of the restored files")
        return self

    def _is_of_several(self) -> bool:
        names = [file.name for file in self.files]
        return (
            self.format >= FIRST_WITH_FILES and len(names) > 1 and all(map(is_plain_name, names)) and self.name in names
        )

    def _require_carried(self) -> None:
        count = len(self.carried)
        _require(self.format >= FIRST_TO_CARRY, "archives are carried since format 8")
        _require(count <= MAX_CARRIED, f"{count} archives are carried, at most {MAX_CARRIED} may be")
        names = [entry.name for entry in self.entries[:count]]
        _require(names == [f"{CARRIED}/{n}" for n in range(count)], "what is carried does not stand first, in order")
        _require(self.depth >= count + (self.reference is not None), "depth is less than what is decoded before it")

    @property
    def carried(self) -> list[str]:
        """The entries that are archives themselves."""
        return [entry.name for entry in self.entries if is_carried(entry.name)]

    @property
    def is_of_all_files(self) -> bool:
        """Whether nothing was left out by `of_files`."""
        return self.checkpoint == original_digest(self.files)

    def of_files(self, names: Collection[str]) -> Self:
        """What an archive of these files alone would say, of several that are one checkpoint; of one, as of a file."""
        files = [file for file in self.files if file.name in names]
        nbytes = sum(file.size for file in files)
        changes: dict[str, Any] = {"files": files, "original_bytes": nbytes}
        if len(files) == 1:
            changes |= {"kind": "file", "name": files[0].name}
        return self.model_copy(update=changes)

    def to_json(self) -> bytes:
        """The one spelling: fields in their order here, a line each, as is every item of a list; maps sorted by key."""
        lines = []
        for key, value in self.model_dump(mode="json").items():
            if key in _ABSENT_IF_EMPTY and not value:
                continue
            if isinstance(value, list) and value:
                text = "[\n" + ",\n".join(_compact(item) for item in value) + "\n]"
            elif key in {"parts", "coders", "quality", "tools"}:
                text = _compact(dict(sorted(value.items())))
            else:
                text = _compact(value)
            lines.append(f"{_compact(key)}:{text}")
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse `to_json()`'s spelling and no other; ValueError says what is wrong, in one line."""
        try:
            parsed = json.loads(data)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        version = parsed.get("format") if isinstance(parsed, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise NewerFormat(f"format {version} is newer than {FORMAT_VERSION}, the newest that this ckzd reads")
        try:
            manifest = cls.model_validate(parsed)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"field {'.'.join(map(str, first['loc'])) or '-'}: {first['msg']}") from None
        if manifest.to_json() != data:
            raise ValueError("not spelled the canonical way")
        return manifest


def files_digest(rows: Iterable[tuple[str, int, str]]) -> str:
    """Sha256 (hex) over the sorted lines "name NUL size NUL sha256 LF" of (name, size, sha256) rows."""
    digest = hashlib.sha256()
    for row in sorted("\0".join(map(str, row)) for row in rows):
        digest.update(f"{row}\n".encode())
    return digest.hexdigest()


def original_digest(files: Iterable[FileModel]) -> str:
    """What identifies the checkpoint that was compressed: `Manifest.checkpoint`."""
    return files_digest((file.name, file.size, file.original_sha256) for file in files)


def restored_digest(files: Iterable[FileModel]) -> str:
    """What identifies the files that a restore writes: `Manifest.restored`."""
    return files_digest((file.name, file.size, file.sha256) for file in files)


def is_of_moments(entry: str) -> bool:
    """Whether an entry holds nothing but streams of an optimizer's moments."""
    return entry.partition("/")[0] in MOMENTS


def is_carried(entry: str) -> bool:
    """Whether an entry is an archive itself."""
    return entry.partition("/")[0] == CARRIED


def is_plain_name(name: str) -> bool:
    """Whether `name` is exactly one path component."""
    return "/" not in name and is_inside(name)


def is_inside(name: str) -> bool:
    """Whether the relative path `name` stays inside the directory it is joined to."""
    return "\0" not in name and all(part not in {"", ".", ".."} for part in name.split("/"))


def _require(holds: bool, problem: str) -> None:  # noqa: FBT001 - a condition is what this function is about
    if not holds:
        raise ValueError(problem)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
