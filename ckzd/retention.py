"""Retention: which archives of a store may go, and why each of the others stays. Pure: nothing here looks at a disk.

Three things are asked in this order. What stays by itself: what is safe for reasons that lie outside of the store, what
the next archives are deltas against, every Nth step, the newest. What is left of the others: by their age. And what a
quota takes of these. Whatever stays keeps all that it needs, down to its base: an archive is only ever taken when
nothing that stays is a delta against it, and those that go, go dependents first.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckzd.chains import ArchiveRecord, is_ruined
from ckzd.series import by_series, counted_as, next_references, written

DAY_SECONDS = 24 * 3600.0
NO_RULES = "nothing says that it may go"
LINEAGE = "the next archive is a delta against it"
OF_A_QUOTA = "nothing but a quota takes it"


@dataclass(frozen=True, slots=True)
class Rules:
    """What of a run stays. Without `newest` and `days` all does, but for what a quota takes.

    newest   steps of each series, the newest by step and by time
    every    of each series and of every so many steps the first archive, for ever
    days     whatever else is younger; None: the rest goes at once where there is a `newest`
    moments  the newest steps of each series that stay whole; of the others that stay, the weights do
    """

    newest: int | None = None
    every: int | None = None
    days: float | None = None
    moments: int | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """How much the archives and the cache of a store may take: bytes, a share of its disk, or the smaller of both."""

    max_bytes: int | None = None
    max_share: float | None = None

    def limit(self, disk_bytes: int) -> int | None:
        """In bytes, on a disk of this size; None where there is no limit."""
        limits = [self.max_bytes] if self.max_bytes is not None else []
        limits += [int(self.max_share * disk_bytes)] if self.max_share is not None else []
        return min(limits, default=None)

    def and_also(self, other: "Quota") -> "Quota":
        """What keeps to both."""
        least = (
            min((value for value in pair if value is not None), default=None)
            for pair in ((self.max_bytes, other.max_bytes), (self.max_share, other.max_share))
        )
        return Quota(*least)  # type: ignore[arg-type]  # an int and a float, in this order


NO_QUOTA = Quota()


@dataclass(frozen=True, slots=True)
class Held:
    """An archive as it lies in its store.

    nbytes      that it takes on the disk, `moments` of these for moments that may be dropped
    since       seconds since the epoch: when its checkpoint was written or archived, whichever was later
    safe        why it stays whatever the rules say; "" where nothing outside of the store tells
    is_pointed  a pointer stands in its checkpoint's place: for its user that is the checkpoint, and no quota takes it
    """

    record: ArchiveRecord
    nbytes: int
    since: float
    safe: str = ""
    is_pointed: bool = False
    moments: int = 0

    @property
    def path(self) -> Path:
        """Of the archive."""
        return self.record.path


@dataclass(frozen=True, slots=True)
class Shelf:
    """The archives of one run, in order, and what is to be kept of them; `rules` None: all."""

    rules: Rules | None
    stride: int
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an archive, and why."""

    held: Held
    goes: bool
    why: str
    drops_moments: bool = False

    @property
    def left_bytes(self) -> int:
        """What it takes afterwards."""
        return 0 if self.goes else self.held.nbytes - (self.held.moments if self.drops_moments else 0)


@dataclass(frozen=True, slots=True)
class Plan:
    """A verdict for every archive, shelf by shelf, and by how many bytes the quota would still be exceeded."""

    verdicts: tuple[Verdict, ...]
    over_bytes: int = 0

    @property
    def kept_bytes(self) -> int:
        """What those take that stay."""
        return sum(verdict.left_bytes for verdict in self.verdicts)

    @property
    def reconstructions(self) -> set[str]:
        """Those of what stays."""
        return {verdict.held.record.manifest.reconstruction for verdict in self.verdicts if not verdict.goes}

    def slimming(self) -> list[Held]:
        """What loses its moments."""
        return [verdict.held for verdict in self.verdicts if verdict.drops_moments]

    def going(self) -> list[Held]:
        """What goes, in the order in which it may: dependents before what they need."""
        goes = [verdict.held for verdict in self.verdicts if verdict.goes]
        return sorted(goes, key=lambda held: held.record.manifest.depth, reverse=True)


def judge(shelves: Sequence[Shelf], *, now: float, max_bytes: int | None = None, other_bytes: int = 0) -> Plan:
    """Decide over all archives of a store. `other_bytes` is what else counts towards `max_bytes`, its quota."""
    firm: dict[Path, str] = {}  # what stays by itself
    loose: dict[Path, str] = {}  # what stays unless a quota takes it
    slim: set[Path] = set()  # what loses its moments, if it stays
    for shelf in shelves:
        _sort_out(shelf, now, firm, loose)
        slim |= _without_moments(shelf)
    everything = [held for shelf in shelves for held in shelf.held]
    firm |= {held.path: loose.pop(held.path) for held in everything if held.is_pointed and held.path in loose}
    needed = needed_by(everything, firm.keys() | loose.keys())
    kept = [held for held in everything if held.path in firm or held.path in loose or held.path in needed]
    left = {held.path: held.nbytes - (held.moments if held.path in slim else 0) for held in kept}
    over = max(0, other_bytes + sum(left.values()) - max_bytes) if max_bytes is not None else 0
    taken = {held.path for held in _take(kept, left, firm, over)}
    needed = needed_by(everything, stays := (firm.keys() | loose.keys()) - taken)
    stays |= needed.keys()
    over -= sum(nbytes for path, nbytes in left.items() if path not in stays)
    verdicts = []
    for shelf in shelves:
        for held in shelf.held:
            if held.path in stays:
                why = _why_it_stays(held.path, firm, loose, needed)
                verdicts.append(Verdict(held, goes=False, why=why, drops_moments=held.path in slim))
            else:
                by_quota = held.path in loose
                verdicts.append(Verdict(held, goes=True, why="over the quota" if by_quota else _why_it_goes(shelf)))
    return Plan(tuple(verdicts), max(0, over))


def kept_for_itself(shelf: Shelf, now: float) -> dict[Path, str]:
    """What of a run stays unless a quota takes it, and why; what is not named stays only where others need it."""
    firm: dict[Path, str] = {}
    loose: dict[Path, str] = {}
    _sort_out(shelf, now, firm, loose)
    return loose | firm


def needed_by(everything: Iterable[Held], stays: Collection[Path]) -> dict[Path, str]:
    """What those that stay need, down to their bases: path -> the name of one that needs it.

    Where several have one reconstruction all of them count as needed: which one is sound is for others to find.
    """
    found: dict[Path, str] = {}
    by_reconstruction: dict[str, list[Held]] = defaultdict(list)
    for held in everything:
        by_reconstruction[held.record.manifest.reconstruction].append(held)
    pending = [held for group in by_reconstruction.values() for held in group if held.path in stays]
    seen = {held.path for held in pending}
    while pending:
        dependent = pending.pop().record.manifest
        for held in by_reconstruction.get(dependent.reference or "", ()):
            found.setdefault(held.path, dependent.name)
            if held.path not in seen:
                seen.add(held.path)
                pending.append(held)
    return found


def kept_by(rules: Rules, records: Sequence[ArchiveRecord]) -> dict[Path, str]:
    """What of a run, in order, stays whatever its age, and why."""
    newest = newest_of(records, rules.newest) if rules.newest else set()
    nth = every_nth(records, rules.every) if rules.every else set()
    reasons = f"one of the newest {rules.newest}", f"the first of every {rules.every} steps"
    return dict.fromkeys(newest, reasons[0]) | dict.fromkeys(nth, reasons[1])


def every_nth(records: Iterable[ArchiveRecord], every: int) -> set[Path]:
    """Of each `every` steps of a series the first; what has no step has no place among them.

    Whether an archive is one is decided when it is written and stays so: neither a job that is set back and writes
    a lower step later, nor one that writes the same step again, takes this away from those that were kept.
    """
    kept = set()
    for series in by_series(records).values():
        lowest: dict[int, int] = {}  # interval -> the lowest step so far, in the order in which they were written
        for record in sorted(series, key=lambda record: (written(record), record.manifest.step or 0)):
            step = record.manifest.step
            if step is not None and step <= lowest.get(step // every, step):
                lowest[step // every] = step
                kept.add(record.path)
    return kept


def newest_of(records: Sequence[ArchiveRecord], count: int) -> set[Path]:
    """The newest steps of each series, by order and by time: a job may be set back.

    Ruined ones take no sound one's place.
    """
    kept: set[Path] = set()
    for series in by_series(records).values():
        for group in (series, [record for record in series if not is_ruined(record)]):
            for ordered in (group, sorted(group, key=written)):
                steps = list(dict.fromkeys(counted_as(record) for record in reversed(ordered)))[:count]
                kept.update(record.path for record in group if counted_as(record) in steps)
    return kept


def _sort_out(shelf: Shelf, now: float, firm: dict[Path, str], loose: dict[Path, str]) -> None:
    """Enter what stays of a shelf for its own sake."""
    rules, records = shelf.rules, [held.record for held in shelf.held]
    lineage = next_references(records, shelf.stride)
    by_rule = kept_by(rules, records) if rules is not None else {}
    for held in shelf.held:
        if held.safe:
            firm[held.path] = held.safe
        elif rules is None:
            firm[held.path] = NO_RULES
        elif held.path in lineage:
            firm[held.path] = LINEAGE
        elif held.path in by_rule:
            firm[held.path] = by_rule[held.path]
        elif rules.days is not None and now - held.since < rules.days * DAY_SECONDS:
            loose[held.path] = f"younger than {rules.days:g} days"
        elif rules.days is None and rules.newest is None:
            loose[held.path] = OF_A_QUOTA


def _without_moments(shelf: Shelf) -> set[Path]:
    """What is to lose its moments: never what the next archives are deltas against, nor what is safe."""
    if shelf.rules is None or shelf.rules.moments is None:
        return set()
    records = [held.record for held in shelf.held]
    whole = newest_of(records, shelf.rules.moments) | next_references(records, shelf.stride)
    return {held.path for held in shelf.held if held.moments and not held.safe and held.path not in whole}


def _take(kept: Sequence[Held], left: Mapping[Path, int], firm: Mapping[Path, str], over: int) -> list[Held]:
    """What a quota takes: the oldest that nothing else needs, again and again, until it is kept or nothing is left.

    `left` is what each takes on the disk.
    """
    dependents = Counter(held.record.manifest.reference for held in kept)
    waiting: dict[str, list[Held]] = defaultdict(list)
    for held in kept:
        if held.path not in firm:
            waiting[held.record.manifest.reconstruction].append(held)

    def free() -> Iterator[str]:
        return (reconstruction for reconstruction in waiting if not dependents[reconstruction])

    leaves = [_by_age(held) for reconstruction in free() for held in waiting[reconstruction]]
    heapq.heapify(leaves)
    taken: list[Held] = []
    while over > 0 and leaves:
        held = heapq.heappop(leaves)[-1]
        taken.append(held)
        over -= left[held.path]
        reference = held.record.manifest.reference
        if reference is not None:
            dependents[reference] -= 1
            for freed in waiting[reference] if not dependents[reference] else ():
                heapq.heappush(leaves, _by_age(freed))
    return taken


def _by_age(held: Held) -> tuple[float, str, Held]:
    return held.since, str(held.path), held


def _why_it_stays(path: Path, firm: Mapping[Path, str], loose: Mapping[Path, str], needed: Mapping[Path, str]) -> str:
    if path in firm:
        return firm[path]
    return loose[path] if path in loose else f"needed by {needed[path]}"


def _why_it_goes(shelf: Shelf) -> str:
    assert shelf.rules is not None
    beyond = f"not one of the newest {shelf.rules.newest}" if shelf.rules.newest else ""
    old = f"older than {shelf.rules.days:g} days" if shelf.rules.days is not None else ""
    return ", ".join(filter(None, (beyond, old)))
