"""Bring a damaged or missing archive back, exactly as it was: from a copy of it, or from what it was made of.

A copy may lie anywhere in the stores and folders that are looked through, under any name, as `*.damaged` too. What it
was made of may stand in its place, lie in the trash, or be there under another name. What takes an archive's place is
read back from disk or proven first, and yields the same reconstruction, so that all that hangs on it decodes again;
the damaged one stays beside it as `*.damaged` (`Store.supplant`).
Of what others were merged into a copy from before will do, if all that this needs is there; and where that is gone for
good, one that carries it takes the place of one that does not.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ckzd import durable, formats
from ckzd.access import Access, give
from ckzd.archive import FileModel, Manifest
from ckzd.archive.dropping import as_left
from ckzd.archive.manifest import CARRIED, is_carried
from ckzd.chains import ARCHIVE_SUFFIX, is_whole, read_manifest, records_in, require_whole
from ckzd.codec.presets import PRESETS, Scheme
from ckzd.errors import CkzdError, CorruptArchive, NoSpace
from ckzd.formats.names import step_in_name
from ckzd.operations.ledger import Made
from ckzd.operations.places import Place
from ckzd.operations.remake import remake
from ckzd.operations.slim import write_without_moments
from ckzd.operations.trash import Entry
from ckzd.operations.writing import publish, temporary
from ckzd.store import DAMAGED_SUFFIX, Store, archive_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patient:
    """An archive that is damaged, or not there, and what is known of it."""

    path: Path  # where it lies, or has to
    store: Store
    run: Path | None  # where its original stood
    manifest: Manifest | None  # what it says of itself, if that can be read
    made: Made | None  # else what is remembered of it
    reconstruction: str | None = None  # else what others need of it

    @property
    def wanted(self) -> str | None:
        """The reconstruction that it has to yield, if that is known."""
        if self.manifest is not None:
            return self.manifest.reconstruction
        return self.made.reconstruction if self.made is not None else self.reconstruction

    def is_of_before(self, manifest: Manifest) -> bool:
        """Whether an archive that says this of itself is this one as it was before its moments were dropped."""
        day = self.manifest.moments_dropped if self.manifest is not None else None
        return day is not None and manifest.moments_dropped is None and self._says(as_left(manifest, day))

    def is_of_before_merging(self, manifest: Manifest) -> bool:
        """Whether an archive that says this of itself is this one before others were merged into it."""
        return self.manifest is not None and _is_merged_from(self.manifest, manifest)

    def is_merged_into(self, manifest: Manifest) -> bool:
        """Whether an archive that says this of itself is this one after others were merged into it."""
        return self.manifest is not None and _is_merged_from(manifest, self.manifest)

    def has(self, reference: str | None) -> bool:
        """Whether nothing is missing for a delta against this: it needs none, or a whole archive beside yields it."""
        beside = records_in(self.path.parent)
        yielding = [one.path for one in beside if one.manifest.reconstruction == reference and one.path != self.path]
        return reference is None or any(map(is_whole, yielding))

    def is_copy(self, manifest: Manifest) -> bool:
        """Whether this one can be had from an archive that says this of itself."""
        if self.manifest is not None:
            return self._says(manifest) or self.is_of_before(manifest)
        if manifest.moments_dropped is not None:
            return False  # it yields the same, but who knows whether this one gave no more
        if self.wanted is not None and manifest.reconstruction != self.wanted:
            return False
        again = manifest.reconstruction
        names = {archive_name(manifest.name, manifest.checkpoint, again) for again in ("", again)}
        return self.path.name in names

    def _says(self, manifest: Manifest) -> bool:
        return self.manifest is not None and _but_for_carried(manifest) == _but_for_carried(self.manifest)


def _but_for_carried(manifest: Manifest) -> Manifest:
    """What is carried says when it was merged: that may have been another day, the links are the same."""
    if not manifest.carried:
        return manifest
    parts = {part: nbytes for part, nbytes in manifest.parts.items() if part != CARRIED}
    entries = [entry for entry in manifest.entries if not is_carried(entry.name)]
    return manifest.model_copy(update={"parts": parts, "entries": entries})


def _is_merged_from(merged: Manifest, before: Manifest) -> bool:
    def own(one: Manifest) -> tuple[str, str, str, str | None]:
        return one.name, one.checkpoint, one.reconstruction, one.moments_dropped

    return len(merged.carried) > len(before.carried) and own(merged) == own(before)


@dataclass
class Copies:
    """Archives in these directories and what they say of themselves; read when the first is asked for."""

    directories: tuple[Path, ...]
    _found: dict[str, list[tuple[Path, Manifest]]] | None = field(default=None, init=False)  # by reconstruction

    @classmethod
    def within(cls, places: Iterable[Place]) -> "Copies":
        """All of the stores that these places are in, and the places themselves."""
        places = list(places)
        directories = [place.archives for place in places if place.archives is not None]
        for store in {place.store.root: place.store for place in places if place.store is not None}.values():
            directories += store.run_directories()
        return cls(tuple(dict.fromkeys(directories)))

    def yielding(self, reconstruction: str | None) -> list[tuple[Path, Manifest]]:
        """Those that yield this, whole or not; all of them for None."""
        if self._found is None:
            self._found = {}
            for path, manifest in self._readable():
                self._found.setdefault(manifest.reconstruction, []).append((path, manifest))
        if reconstruction is not None:
            return self._found.get(reconstruction, [])
        return [copy for copies in self._found.values() for copy in copies]

    def lead(self, start: Manifest, patient: Patient, end: str | None = None) -> bool:
        """Whether what an archive needs in this one's place can be had: it is there, or whole ones lead to what is.

        `end`: a reconstruction that will do, too.
        """
        pending, seen = [start], set[tuple[str | None, int]]()
        while pending:
            one = pending.pop()
            if one.base_model is not None or one.reference == end or patient.has(one.reference):
                return True
            if (one.reference, one.depth) not in seen:
                seen.add((one.reference, one.depth))
                found = self.yielding(one.reference)
                pending += [other for path, other in found if other.depth < one.depth and is_whole(path)]
        return False

    def _readable(self) -> Iterator[tuple[Path, Manifest]]:
        for directory in self.directories:
            yield from _manifests_in(directory, (ARCHIVE_SUFFIX, DAMAGED_SUFFIX))


def whole_aside_in(directory: Path) -> list[Manifest]:
    """What archives say that lie aside in a directory and are whole: a crash left them on their way to their name."""
    return [manifest for path, manifest in _manifests_in(directory, (DAMAGED_SUFFIX,)) if is_whole(path)]


def _manifests_in(directory: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, Manifest]]:
    with suppress(FileNotFoundError):
        for path in sorted(directory.iterdir()):
            if path.name.endswith(suffixes) and path.is_file() and not path.is_symlink():
                with suppress(CorruptArchive, OSError):
                    yield path, read_manifest(path)


def heal(patient: Patient, copies: Copies) -> str | None:
    """Bring it back; from what, in words, or None where nothing has it. Raises CkzdError, NoSpace say, and OSError."""
    if os.path.lexists(patient.path) and is_whole(patient.path):
        return _from_merged(patient, copies)  # its bytes are those that were proven: a copy would say the same
    if (words := _from_copy(patient, copies)) is not None:
        return words
    for words, source, run in _originals(patient):
        made = _made(patient, run)
        if made.carries and PRESETS[made.preset].scheme is not Scheme.EXACT:
            return None  # others' links are gone with it: against anything else it yields something else
        try:
            remake(source, patient.path, patient.store, run, manifest=patient.manifest, made=made)
        except NoSpace:
            raise
        except CkzdError as error:
            fields = {"archive": str(patient.path), "from": str(source), "error": str(error)}
            log.warning("an archive is not healed from there", extra=fields)
        else:
            return f"{words} {source}"
    return None


def _from_copy(patient: Patient, copies: Copies) -> str | None:
    """Bring it back from a copy, or from what it was before something was left out or merged; from what, or None."""

    def effort(copy: tuple[Path, Manifest]) -> tuple[bool, bool, bool]:
        path, manifest = copy
        return not patient.has(manifest.reference), patient.is_of_before(manifest), not _lies_aside(path, patient)

    end = patient.manifest.reference if patient.manifest is not None else None
    others = [copy for copy in copies.yielding(patient.wanted) if copy[0] != patient.path]
    found = [(path, manifest) for path, manifest in others if patient.is_copy(manifest)]
    for path, manifest in sorted(found, key=effort):
        if is_whole(path) and copies.lead(manifest, patient, end):
            _take_over(path, manifest, patient)
            return f"the copy {path}"
    for path, manifest in others:
        if patient.is_of_before_merging(manifest) and is_whole(path) and copies.lead(manifest, patient, end):
            _take_over(path, manifest, patient)
            return f"the copy {path}, which carries less"
    return None


def _from_merged(patient: Patient, copies: Copies) -> str | None:
    """A whole one whose reference is gone for good, from one that carries it; what lay there is set aside."""
    found = [copy for copy in copies.yielding(patient.wanted) if patient.is_merged_into(copy[1])]
    if not found or patient.manifest is None or copies.lead(patient.manifest, patient):
        return None
    for path, manifest in found:
        if is_whole(path) and copies.lead(manifest, patient):
            _take_over(path, manifest, patient)
            return f"the copy {path}, which carries more"
    return None


def _made(patient: Patient, run: Path) -> Made:
    """How it was made: as it says, as is remembered, or as its neighbours were."""
    if patient.manifest is not None:
        return Made.of(patient.manifest)
    if patient.made is not None:
        return patient.made
    name = _name_of(patient.path)
    neighbours = patient.store.archives(run)
    dependents = [record for record in neighbours if record.manifest.reference == patient.reconstruction]
    like = next(iter((*dependents, *neighbours)), None)
    before = patient.store.references_for(run, step_in_name(name), name).own
    return Made(
        preset=like.manifest.preset if like is not None else "resume",
        effort=like.manifest.effort if like is not None else None,
        reference=before.manifest.reconstruction if before is not None else None,
        reconstruction=patient.reconstruction or "",
        checkpoint="",
    )


def _take_over(source: Path, manifest: Manifest, patient: Patient) -> None:
    """A whole copy, read back from the disk, takes the archive's place; what was set aside there itself."""
    dropped = patient.manifest.moments_dropped if patient.manifest is not None else None
    is_of_before = patient.is_of_before(manifest)
    if _lies_aside(source, patient) and not is_of_before:
        _put(source, patient)
        return
    with temporary(patient.store, ARCHIVE_SUFFIX) as temp:
        status = (patient.path if os.path.lexists(patient.path) else source).stat()
        if is_of_before and dropped is not None:
            write_without_moments(source, temp, dropped)
        else:
            _write_copy(source, temp)
        require_whole(temp)
        give(temp, Access.of(status))
        _put(temp, patient)


def _put(archive: Path, patient: Patient) -> None:
    if os.path.lexists(patient.path) and is_whole(patient.path):
        patient.store.supplant(archive, patient.path)
    else:
        publish(archive, patient.path, patient.store)


def _write_copy(source: Path, temp: Path) -> None:
    durable.require_space(temp, source.stat().st_size)
    with durable.as_no_space(temp), source.open("rb") as original, durable.create(temp) as file:
        shutil.copyfileobj(original, file)
        file.flush()
        os.fsync(file.fileno())


def _lies_aside(copy: Path, patient: Patient) -> bool:
    """Whether something went wrong on its way to its name: it needs no room, and is in nobody's way afterwards."""
    return copy.parent == patient.path.parent and copy.name.endswith(DAMAGED_SUFFIX)


def _originals(patient: Patient) -> Iterator[tuple[str, Path, Path]]:
    """Where there may be what the archive was made of, and of which run; `remake` compares what is in it."""
    name = patient.manifest.name if patient.manifest is not None else _name_of(patient.path)
    if patient.run is not None and os.path.lexists(patient.run / name):
        yield "the original", patient.run / name, patient.run
    for entry in Entry.all_of(patient.store):
        if entry.archive == patient.path and os.path.lexists(entry.held):
            yield "the original in the trash", entry.held, entry.checkpoint.parent
    if patient.run is not None and patient.manifest is not None:
        for path in formats.list_checkpoints(patient.run):
            if path.name != name and _may_be_a_copy(path, patient.manifest):
                yield "a copy of the original", path, patient.run


def _name_of(archive: Path) -> str:
    """step_1.pt of step_1.pt.0123456789ab.ckz."""
    return archive.name.removesuffix(ARCHIVE_SUFFIX).rpartition(".")[0]


def _may_be_a_copy(path: Path, manifest: Manifest) -> bool:
    """All files of a run may be of one size: so only under a name without a number, or with the same time."""
    try:
        for file in manifest.files:
            status = (path / file.name if manifest.kind == "directory" else path).lstat()
            if status.st_size != file.size or not (step_in_name(path.name) is None or _is_of(file, status)):
                return False
    except OSError:
        return False
    return True


def _is_of(file: FileModel, status: os.stat_result) -> bool:
    return status.st_mtime_ns == file.mtime_ns
