"""The scrub: read archives back, longest unread first; heal what is damaged, or name it and what is lost with it.

`verify` proves the archives that it is given, and heals nothing. A check goes round a store: what it has read it
remembers (`ledger`), so that a few percent a day come round to all, and what is damaged or missing it brings back, if
there is something to bring it back from (`heal`). Both read with `chains` and decode with `verify_each`.
"""

import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ckzd.chains import ArchiveRecord, archive_files, chain, decodable, read_manifest, records_in, require_whole
from ckzd.errors import (
    CkzdError,
    ConfigError,
    CorruptArchive,
    MissingBaseModel,
    MissingReference,
    UnknownFormat,
)
from ckzd.file_marks import Mark
from ckzd.operations.heal import Copies, Patient, heal, whole_aside_in
from ckzd.operations.ledger import Ledger, Made
from ckzd.operations.places import Place
from ckzd.operations.pointer import dangling_in
from ckzd.operations.verify import verify_each
from ckzd.page_cache import forget_file
from ckzd.store import Store, archive_name

log = logging.getLogger(__name__)

_EPSILON = 1e-9  # of an archive: what a float's rounding adds to a share is none
SAVE_SECONDS = 30.0  # between two times that a check writes down how far it has come

OnArchive = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found of one archive, and what became of it.

    "whole": every byte is the one that was proven. "healed": it was damaged or missing and is back, exactly as it was.
    "damaged" or "missing": nothing has it. "unreadable": the system does not let us read it.
    """

    archive: str
    outcome: Literal["whole", "healed", "damaged", "missing", "unreadable"]
    problem: str = ""
    healed_from: str = ""
    lost: tuple[str, ...] = ()  # archives that cannot be restored from, because they need it
    cause: CkzdError | None = None  # of what is unreadable: what kind of error it is, and what is to be done

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {name: value for name, value in asdict(replace(self, cause=None)).items() if name != "cause"}

    @property
    def error(self) -> CkzdError | None:
        """What is to be told of it, if anything is wrong still."""
        if self.outcome in {"whole", "healed"}:
            return None
        if self.outcome == "unreadable":
            kind, hint = (type(self.cause), self.cause.hint) if self.cause is not None else (CkzdError, "")
            return kind(self.archive, self.problem, hint=hint)
        names, count = ", ".join(Path(archive).name for archive in self.lost), len(self.lost)
        others = "1 other needs it" if count == 1 else f"{count} others need it"
        needed = f"; {others} and cannot be restored either: {names}" if count else ""
        hint = "name a copy of it, or of what it was made of, with it: `ckzd check RUN COPIES`"
        return (CorruptArchive if self.outcome == "damaged" else MissingReference)(
            self.archive, f"{self.problem}{needed}", hint=hint
        )


@dataclass(frozen=True, slots=True)
class Options:
    """How much of each store is checked, and how."""

    percent: float = 100.0  # of its archives, rounded up
    deep: bool = False  # decode them, each link once, not only read them
    seconds: float = math.inf  # no other archive is begun after so long


def check(
    places: Sequence[Place],
    options: Options | None = None,
    *,
    on_archive: OnArchive = lambda _: None,
    clock: Callable[[], float] = time.time,
) -> Iterator[Outcome]:
    """Read archives of these places back, heal what is damaged; an outcome for each that was read, and each missing.

    Damaged ones that an earlier check found are looked at again. Raises StoreLocked while somebody else checks the
    store, and what would stop all of it, as NoSpace for decoding.
    """
    copies = Copies.within(places)
    by_store: dict[Path | None, list[Place]] = defaultdict(list)
    for place in places:
        if place.archives is not None:
            by_store[place.store.root if place.store is not None else None].append(place)
    for together in by_store.values():
        yield from _Check(together, options or Options(), copies, on_archive, clock).run()


@dataclass
class _Check:
    """Of the places of one store, or of folders without one, which are only read."""

    places: Sequence[Place]
    options: Options
    copies: Copies
    on_archive: OnArchive
    clock: Callable[[], float]  # seconds since the epoch
    ledger: Ledger | None = None
    bad: dict[Path, str] = field(default_factory=dict)  # archives that are damaged, and how
    saved: float = field(default_factory=time.monotonic)  # when the ledger was, last

    @property
    def store(self) -> Store | None:
        store = self.places[0].store
        return store if store is not None and store.is_writable() else None

    def run(self) -> Iterator[Outcome]:
        now = self.clock()
        with ExitStack() as held:
            if self.store is not None:
                held.enter_context(self.store.check_lock())
                self.ledger = Ledger.read(self.store)
                self.ledger.begin(now)
                held.callback(self._write_down)
                self.store.sweep_temps()  # of those that were killed
            archives = [path for place in self.places if place.archives for path in archive_files(place.archives)]
            known = [path for path in archives if self.ledger is not None and self.ledger.problem_of(path)]
            chosen = self._chosen(archives, now)
            if self.options.deep:
                yield from self._decode(list(dict.fromkeys([*known, *chosen])))
            else:
                yield from self._read(list(dict.fromkeys([*known, *chosen])))
            for place in self.places:
                yield from self._mend(place)

    def _chosen(self, archives: Sequence[Path], now: float) -> list[Path]:
        """The share that is asked for, those first that were read (or decoded) longest ago."""
        ledger, percent = self.ledger, self.options.percent
        if ledger is None and percent < 100 and self.places[0].store is not None:
            problem = "is not ours to write to: what was read cannot be remembered, so nothing is the next share"
            raise ConfigError(self.places[0].store.root, problem, hint="leave --percent out")
        if ledger is None:
            return list(archives)
        last = ledger.last_decoded if self.options.deep else ledger.last_read
        oldest_first = sorted(archives, key=lambda path: (last(path, now), path))
        return oldest_first[: math.ceil(len(archives) * percent / 100 - _EPSILON)]

    # Reading

    def _read(self, archives: Sequence[Path]) -> Iterator[Outcome]:
        ends = time.monotonic() + self.options.seconds
        for archive in archives:
            if time.monotonic() >= ends:
                return
            self.on_archive(archive)
            outcome = self._look(archive)
            if outcome is not None:
                yield outcome

    def _look(self, archive: Path) -> Outcome | None:
        """None for one that is gone, or damaged: that is told when all is known."""
        try:
            require_whole(archive)
        except FileNotFoundError:
            return None
        except UnknownFormat as error:
            return Outcome(str(archive), "unreadable", error.problem, cause=error)
        except CorruptArchive as error:
            self._note(archive, error.problem)
            return None
        except OSError as error:
            return Outcome(str(archive), "unreadable", f"cannot be read: {error.strerror or error}")
        if problem := self._decoding_problem(archive):
            self.bad[archive] = problem
            return None
        self._note(archive)
        with suppress(OSError):
            forget_file(archive)  # we have no use for it, training may have for the memory
        return Outcome(str(archive), "whole")

    def _decoding_problem(self, archive: Path) -> str:
        """What an earlier decoding found of whole bytes: only another one finds it gone."""
        entry = self.ledger.find(archive) if self.ledger is not None else None
        return entry.problem if entry is not None and entry.decoded == entry.read else ""

    def _decode(self, archives: Sequence[Path]) -> Iterator[Outcome]:
        failed: dict[Path, CkzdError] = {}
        marks = {path: mark for path in archives if (mark := _mark(path)) is not None}
        for outcome in verify_each(archives, on_archive=self.on_archive):
            if isinstance(outcome, CkzdError):
                failed[Path(outcome.subject)] = outcome
            else:
                self._note(Path(outcome.archive), decoded=True)
                yield Outcome(outcome.archive, "whole")
        for archive, error in failed.items():
            if archive in marks and _mark(archive) != marks[archive]:  # it is gone, or another took its name
                continue
            if isinstance(error, (UnknownFormat, MissingBaseModel)):  # while a model is away nothing is damaged
                yield Outcome(str(archive), "unreadable", error.problem, cause=error)
            for link, problem in _to_blame(archive, error, failed):
                self._note(link, problem, decoded=True)

    def _note(self, archive: Path, problem: str = "", *, decoded: bool = False) -> None:
        self.bad.pop(archive, None)
        if problem:
            self.bad[archive] = problem
            log.error("an archive is damaged", extra={"archive": str(archive), "problem": problem})
        if self.ledger is not None:
            made = None
            with suppress(CkzdError, OSError):
                made = Made.of(read_manifest(archive))
            self.ledger.note(archive, self.clock(), problem=problem, made=made, decoded=decoded)
            if time.monotonic() >= self.saved + SAVE_SECONDS:
                self.ledger.save()
                self.saved = time.monotonic()

    # Healing

    def _mend(self, place: Place) -> Iterator[Outcome]:
        """Heal what is damaged or missing of one run, bases first: what hangs on them is made anew against them."""
        assert place.archives is not None, "only such are checked"
        records, yields = records_in(place.archives), dict[Path, str | None]()
        was = {path: problem for path, problem in self.bad.items() if path.parent == place.archives}
        patients = self._damaged(place, records, was) or self._lacking(place, records)
        while patients:  # what is back may need what is not there
            for patient in patients:
                yields[patient.path] = patient.wanted
                problem = was.get(patient.path) or _lack(patient)
                if (words := self._heal(patient)) is not None:
                    yield Outcome(str(patient.path), "healed", problem, words)
            records = records_in(place.archives)
            patients = [patient for patient in self._lacking(place, records) if patient.path not in yields]
        yield from _told(place, records, yields, self.bad)

    def _damaged(self, place: Place, records: Sequence[ArchiveRecord], paths: Iterable[Path]) -> list[Patient]:
        if place.store is None:  # a folder is only read
            return []
        manifests = {record.path: record.manifest for record in records}
        unmet, unread = _unmet(records), [path for path in paths if path not in manifests]
        needed = next(iter(unmet)) if len(unmet) == len(unread) == 1 else None  # it is plain who yielded it
        found = []
        for path in paths:
            manifest, made = manifests.get(path), self.ledger.made(path) if self.ledger is not None else None
            found.append(Patient(path, place.store, place.run, manifest, made, None if manifest else needed))
        return sorted(found, key=lambda patient: patient.manifest.depth if patient.manifest is not None else 0)

    def _lacking(self, place: Place, records: Sequence[ArchiveRecord]) -> list[Patient]:
        """What is missing, then what needs that: it may be there, carried by what may take the dependent's place."""
        if place.store is None:
            return []
        dependents = [record for several in _unmet(records).values() for record in several]
        stranded = [Patient(one.path, place.store, place.run, one.manifest, None) for one in dependents]
        return self._missing(place, records) + [patient for patient in stranded if patient.path not in self.bad]

    def _missing(self, place: Place, records: Sequence[ArchiveRecord]) -> list[Patient]:
        """What others, or pointers, name and is not there, where there is a copy of it; or lies aside whole."""
        assert place.archives is not None, "only such are checked"
        if place.store is None:
            return []
        wanted = {*_unmet(records), *(pointer.reconstruction for pointer in dangling_in(place.run).values())}
        copies = [manifest for reconstruction in sorted(wanted) for _, manifest in self.copies.yielding(reconstruction)]
        copies += whole_aside_in(place.archives)
        found: dict[Path, Patient] = {}
        for manifest in copies:
            target = place.archives / archive_name(manifest.name, manifest.checkpoint)
            known = found[target].manifest if target in found else None
            if not os.path.lexists(target) and (known is None or known.moments_dropped is not None):
                found[target] = Patient(target, place.store, place.run, manifest, None)
        return list(found.values())

    def _heal(self, patient: Patient) -> str | None:
        if self.store is None:
            return None
        try:
            with self.store.lock(shared=True):  # nobody deletes archives meanwhile
                words = heal(patient, self.copies)
        except (CkzdError, OSError) as error:
            log.warning("an archive is not healed", extra={"archive": str(patient.path), "error": str(error)})
            return None
        if words is not None:
            log.warning("an archive is healed", extra={"archive": str(patient.path), "from": words})
            self._note(patient.path)
        return words

    def _write_down(self) -> None:
        if self.ledger is not None and self.store is not None:
            archives = [path for directory in self.store.run_directories() for path in archive_files(directory)]
            self.ledger.forget_gone()
            self.ledger.finish_pass(archives, self.clock())
            self.ledger.save()


def _told(
    place: Place, records: Sequence[ArchiveRecord], yields: Mapping[Path, str | None], bad: Mapping[Path, str]
) -> Iterator[Outcome]:
    """What stays damaged or missing of a run, with all that needs it. `yields`: what damaged ones yielded, if known."""
    yields = {**yields, **{record.path: record.manifest.reconstruction for record in records}}
    whole = decodable(records, lambda record: record.path not in bad)
    unmet = _unmet(records)
    for path in sorted(bad):
        if path.parent == place.archives:
            unmet.pop(yields.get(path) or "", None)
            yield Outcome(str(path), "damaged", bad[path], lost=_hanging_on(yields.get(path), records, whole, bad))
    for reconstruction, dependents in unmet.items():
        for record in dependents:
            problem = _needs(reconstruction)
            lost = _hanging_on(record.manifest.reconstruction, records, whole, bad)
            yield Outcome(str(record.path), "missing", problem, lost=lost)
    for path, pointer in dangling_in(place.run).items():
        yield Outcome(str(path), "missing", f"the archive that this pointer names is not there: {pointer.archive}")


def _needs(reconstruction: str | None) -> str:
    return f"needs the archive with reconstruction {reconstruction}, which is not there"


def _lack(patient: Patient) -> str:
    """Of what is not damaged."""
    if patient.manifest is not None and os.path.lexists(patient.path):
        return _needs(patient.manifest.reference)
    return "was not there"


def _unmet(records: Sequence[ArchiveRecord]) -> dict[str, list[ArchiveRecord]]:
    """Reconstructions that none of the archives yields, and those that are deltas against them: no base models'."""
    found: dict[str, list[ArchiveRecord]] = defaultdict(list)
    yielded = {record.manifest.reconstruction for record in records}
    for record in records:
        reference = record.manifest.reference if record.manifest.base_model is None else None
        if reference is not None and reference not in yielded:
            found[reference].append(record)
    return found


def _hanging_on(
    reconstruction: str | None, records: Sequence[ArchiveRecord], whole: Container[Path], bad: Container[Path]
) -> tuple[str, ...]:
    """Archives that cannot be restored from because they need this, nearest first; damaged ones are told themselves."""
    lost, missing = [], {reconstruction}
    for record in sorted(records, key=lambda record: record.manifest.depth):
        if record.manifest.reference in missing - {None} and record.path not in whole:
            missing.add(record.manifest.reconstruction)
            lost += [str(record.path)] if record.path not in bad else []
    return tuple(lost)


def _mark(archive: Path) -> Mark | None:
    with suppress(OSError):
        return Mark.of(archive.stat())
    return None


def _to_blame(archive: Path, error: CkzdError, failed: Container[Path]) -> Iterator[tuple[Path, str]]:
    """What is wrong in the chain of an archive that does not decode: its own bytes, those of what it needs, or both."""
    try:
        links = [link.path for link in chain(ArchiveRecord.read(archive))]
    except (MissingReference, UnknownFormat):  # told as such
        return
    except CorruptArchive as damage:
        yield archive, damage.problem
        return
    damaged = False
    for link in links:
        try:
            require_whole(link)
        except CorruptArchive as damage:
            damaged = True
            yield link, damage.problem
    if not (damaged or isinstance(error, MissingBaseModel) or any(link in failed for link in links[:-1])):
        yield archive, error.problem
