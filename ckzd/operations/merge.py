"""Merge: take archives out of the middle of a chain; what is a delta against them carries their weights from then on.

    look at disk -> what may go -> D with A's weights in STORE/tmp -> proven -> takes D's place -> A is withdrawn

D then decodes to what it did before, and needs what A needed. A's checkpoint is gone as if it had been pruned, so what
`prune` holds safe is safe from this, too. A crash before the last step leaves A with nothing that needs it: the next
merge, or prune, goes on from there.
"""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from ckzd import durable
from ckzd.access import access_to, give
from ckzd.archive import ArchiveReader, Manifest
from ckzd.archive.manifest import MAX_CARRIED
from ckzd.archive.merging import as_carried, carried_bytes, carrying
from ckzd.chains import ArchiveRecord, reference_of, require_sound
from ckzd.errors import ConfigError, SourceChanged
from ckzd.file_marks import Mark
from ckzd.operations.ledger import Ledger
from ckzd.operations.prune import AskMarkers, Look, Run, disk_bytes, pointers_in_sight
from ckzd.operations.reconstruct import scratch_file
from ckzd.operations.verify import Task, verifier
from ckzd.operations.withdraw import withdraw
from ckzd.operations.writing import temporary
from ckzd.page_cache import forget_file
from ckzd.retention import OF_A_QUOTA, Held, Rules, kept_for_itself
from ckzd.store import Store

log = logging.getLogger(__name__)

Pointers = Mapping[Path, Collection[Path]]  # archive -> pointers to it, anywhere

_DECODED = 3  # reconstructions at a time in a proof: what the chain begins with, the link before, and the next one
_WAIT_SECONDS = 600.0  # for who archives just then: the work is done, and would be lost


@dataclass(frozen=True, slots=True)
class Step:
    """Archives that go, base first, each all that the next one is a delta against, and what carries them then."""

    going: tuple[ArchiveRecord, ...]
    dependent: ArchiveRecord
    is_written: bool = False  # it carries them already: a merge was stopped before they went

    @property
    def links(self) -> int:
        """What the dependent carries then."""
        records = (self.dependent,) if self.is_written else (*self.going, self.dependent)
        return sum(len(record.manifest.carried) for record in records) + len(records) - 1

    @property
    def paths(self) -> list[Path]:
        """Of all of them."""
        return [record.path for record in (*self.going, self.dependent)]


@dataclass(frozen=True, slots=True)
class Merged:
    """What was merged into an archive, or would be."""

    archive: str
    merged: tuple[str, ...]
    freed_bytes: int  # on the disk; below 0 where there were no moments to leave out
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def merge(
    store: Store,
    run: Run,
    named: Collection[Path] = (),
    *,
    day: str,
    now: float,
    roots: Iterable[Path],
    markers: AskMarkers = lambda _run, _checkpoints: {},
    dry_run: bool = False,
) -> Iterator[Merged]:
    """Merge archives of a run into their dependents: those that are named, else what its rules would let go otherwise.

    Of what is named all may go, or ConfigError says what may not, and nothing is done. `day` is YYYY-MM-DD, `now` in
    seconds since the epoch. Pointers are looked for below `roots`. Raises SourceChanged where something was written
    meanwhile, StoreLocked where somebody else uses the store for long, NoSpace, VerificationFailed; what was merged
    before stays so.
    """
    merging = _Merging(store, replace(run, rules=run.rules or Rules()), tuple(roots), markers, now, dry_run)
    pointers = merging.pointers()
    with store.lock():
        if not dry_run:
            store.sweep_temps()  # of those that were killed
        steps = merging.steps(named, pointers)
    for step in steps:
        before = sum(map(disk_bytes, step.paths))
        if not dry_run:
            merging.perform(step, day)
        after = disk_bytes(step.dependent.path) + (_expected(step) if dry_run else 0)
        going = tuple(str(record.path) for record in step.going)
        yield Merged(str(step.dependent.path), going, before - after, dry_run)


def write_merged(going: Sequence[Path], dependent: Path, file: BinaryIO, scratch: Path, day: str) -> Manifest:
    """Write `dependent` to `file` with all that it then carries: those that go, base first. Its manifest.

    `scratch` is a path for one file after the other. Raises CorruptArchive where one of them is damaged.
    """
    with ArchiveReader(dependent) as reader:
        reader.check()
        return carrying(reader, _carried(going, reader, scratch, day), file)


def _carried(going: Sequence[Path], dependent: ArchiveReader, scratch: Path, day: str) -> Iterator[ArchiveReader]:
    for path in going:
        with ArchiveReader(path) as reader:
            reader.check()
            yield from reader.carried()
            try:
                with durable.as_no_space(scratch), durable.create(scratch) as file:
                    as_carried(reader, file, day)
                with ArchiveReader(scratch) as link:
                    yield link
            finally:
                durable.remove(scratch)
    yield from dependent.carried()


def _expected(step: Step) -> int:
    """What the dependent will take more than it does."""
    return 0 if step.is_written else sum(min(carried_bytes(r.manifest), disk_bytes(r.path)) for r in step.going)


@dataclass(frozen=True, slots=True)
class _Merging:
    """Of one run."""

    store: Store
    run: Run
    roots: tuple[Path, ...]
    markers: AskMarkers
    now: float
    dry_run: bool

    # What may go

    def pointers(self) -> Pointers:
        """All in sight. It may take minutes."""
        return pointers_in_sight([self.run], self.roots)

    def steps(self, named: Collection[Path], pointers: Pointers) -> list[Step]:
        """In an order in which they may be done. Whoever calls holds the store."""
        chain = self._chain(pointers, by_hand=bool(named))
        wanted = [path.resolve() for path in named] or [path for path in chain.held if not chain.why_not(path)]
        for path in wanted:
            if why := chain.why_not(path):
                raise ConfigError(path, f"stays: {why}", hint="nothing was merged")
        steps = list(chain.steps(set(wanted)))
        for step in steps if named else ():
            if step.links > MAX_CARRIED:
                problem = f"would carry {step.links} archives, at most {MAX_CARRIED} may be in one"
                raise ConfigError(step.dependent.path, problem, hint="nothing was merged")
        return [step for step in steps if step.links <= MAX_CARRIED]

    def _chain(self, pointers: Pointers, *, by_hand: bool) -> "_Chain":
        """Of what no rule speaks somebody may name it, unless a pointer stands for it: that is a checkpoint to him."""
        look = Look(self.store, pointers, self.markers, dry_run=self.dry_run, ledger=Ledger.read(self.store))
        shelf = look.shelf(self.run)
        kept = kept_for_itself(shelf, self.now)
        for held in shelf.held:
            if by_hand and kept.get(held.path) == OF_A_QUOTA:
                kept[held.path] = "a pointer stands for it, and no rule lets it go" if held.is_pointed else ""
        return _Chain({held.path.resolve(): held for held in shelf.held}, kept)

    # How it goes

    def perform(self, step: Step, day: str) -> None:
        """All of it, in the order in which nothing is lost whenever it ends."""
        with temporary(self.store, ".ckz") as temp:
            with self.store.lock():  # nobody deletes archives meanwhile
                marks = _marks(step)
                require_sound(step.dependent.path)
                if not step.is_written:
                    self._write(step, temp, day)
                self._prove(step, temp)
            pointers = self.pointers()
            with self.store.lock(shared=False, wait_seconds=_WAIT_SECONDS):
                if _marks(step) != marks or not self._may_still(step, pointers):
                    raise SourceChanged(step.dependent.path, "something of it, or that names it, changed meanwhile")
                if not step.is_written:
                    durable.overwrite(temp, step.dependent.path)
                for record in reversed(step.going):
                    withdraw(self.store, self.run.path, record)
                    self.store.forget_reconstruction(record.manifest.reconstruction)
                    fields = {"archive": str(record.path), "into": str(step.dependent.path)}
                    log.info("merged", extra=fields)

    def _may_still(self, step: Step, pointers: Pointers) -> bool:
        try:
            return self.steps([record.path for record in step.going], pointers) == [step]
        except ConfigError as error:
            raise SourceChanged(error.subject, f"is not merged: it {error.problem}") from error

    def _write(self, step: Step, temp: Path, day: str) -> None:
        """The dependent as it will be, on disk, as old as it was."""
        archive, going = step.dependent.path, [record.path for record in step.going]
        durable.require_space(temp, self._space_needed(step))
        with temporary(self.store, ".ckz") as scratch, durable.as_no_space(temp), durable.create(temp) as file:
            write_merged(going, archive, file, scratch, day)
            file.flush()
            os.fsync(file.fileno())
        forget_file(temp)
        status = archive.stat()
        give(temp, access_to(step.paths, place=archive.parent))
        os.utime(temp, ns=(status.st_mtime_ns, status.st_mtime_ns))

    def _space_needed(self, step: Step) -> int:
        """What it is written to, one link by itself, and then what the proof decodes: never all at once.

        Of the run nothing may be cached; then how much is decoded shows when it is.
        """
        links = [carried_bytes(record.manifest) for record in step.going]
        cached = (self.store.cache_path(r.manifest.reconstruction) for r in self.store.archives(self.run.path))
        decoded = _DECODED * max(map(disk_bytes, cached), default=0)
        return step.dependent.path.stat().st_size + sum(links) + max(decoded, *links)

    def _prove(self, step: Step, temp: Path) -> None:
        """What is to carry the others restores as before, every tensor and file of it; who wrote it does not matter."""
        archive, first = (step.dependent.path, step.dependent) if step.is_written else (temp, step.going[0])
        reference = reference_of(first)
        with scratch_file(self.store) as own, scratch_file(self.store) as other:
            before = reference.path if reference is not None else None
            task = Task(archive, before, self.store.root, (own.fileno(), other.fileno()))
            with verifier(task) as proving:
                proving.finish()


class _Chain:
    """The archives of a run, by their resolved paths, and why some stay whatever is asked for."""

    def __init__(self, held: Mapping[Path, Held], kept: Mapping[Path, str]) -> None:
        self.held = held
        self._kept = kept
        self._yielding: Counter[str] = Counter()  # by reconstruction
        self._dependents: dict[str, list[ArchiveRecord]] = defaultdict(list)  # by what they are deltas against
        for manifest, record in ((held.record.manifest, held.record) for held in held.values()):
            self._yielding[manifest.reconstruction] += 1
            if manifest.reference is not None and manifest.base_model is None:
                self._dependents[manifest.reference].append(record)

    def why_not(self, path: Path) -> str:
        """Why an archive cannot be merged; "" if it can."""
        held = self.held.get(path)
        if held is None:
            return "it is not of this run"
        if why := self._kept.get(held.path):
            return why
        if self._yielding[held.record.manifest.reconstruction] > 1:
            return "another archive yields the same"
        dependents = self._dependents_of(held.record)
        if len(dependents) > 1:
            return f"{len(dependents)} archives are deltas against it, and each would carry it"
        if not dependents and held.record.manifest.reconstruction not in self._carriers:
            return "nothing is a delta against it: `ckzd prune` deletes what may go"
        return ""

    def steps(self, going: set[Path]) -> Iterator[Step]:
        """What goes, by what it is merged into."""
        groups: dict[Path, list[ArchiveRecord]] = {}
        for path in sorted(going, key=lambda path: self.held[path].record.manifest.depth):
            end = self.held[path].record
            while end.path.resolve() in going and (dependents := self._dependents_of(end)):
                (end,) = dependents
            groups.setdefault(end.path.resolve(), []).append(self.held[path].record)
        for path, records in groups.items():
            last = records[-1].manifest.reconstruction  # something is a delta against it, or carries it: `why_not`
            carrier = self._carriers[last] if path in going else self.held[path].record
            yield Step(tuple(records), carrier, is_written=path in going)

    def _dependents_of(self, record: ArchiveRecord) -> list[ArchiveRecord]:
        return self._dependents.get(record.manifest.reconstruction, [])

    @cached_property
    def _carriers(self) -> dict[str, ArchiveRecord]:
        """What carries a reconstruction already."""
        found: dict[str, ArchiveRecord] = {}
        for held in self.held.values():
            if held.record.manifest.carried:
                with ArchiveReader(held.path) as reader:
                    for link in reader.carried():
                        found.setdefault(link.manifest.reconstruction, held.record)
        return found


def _marks(step: Step) -> list[Mark]:
    try:
        return [Mark.of(path.stat()) for path in step.paths]
    except FileNotFoundError as error:
        raise SourceChanged(error.filename, "is gone") from error
