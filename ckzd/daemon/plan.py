"""What to do next, decided from rows: what is compressed, what may be replaced, what is left raw. Pure."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ckzd.daemon.states import WAITING, Row, State
from ckzd.formats.names import series_in_name, step_in_name
from ckzd.operations.gain import too_little

COMPLETE = frozenset(  # states of a checkpoint that is whole and stands in its place
    {State.SETTLED, State.ENCODING, State.WRITTEN, State.VERIFIED, State.FAILED, State.QUARANTINED, State.SKIPPED}
    | {State.RESTORED}
)
RESTORED_SECONDS = 24 * 3600.0  # somebody fetched it back to use it: a day, and until newer ones have taken its place


def in_order(rows: Sequence[Row], order: Mapping[Path, int]) -> list[Row]:
    """By the step inside the checkpoint, else by its place in the listing (number in the name, then time)."""
    return sorted(rows, key=lambda row: (row.step is None, row.step or 0, order.get(row.path, len(order)), row.number))


def next_to_compress(
    rows: Sequence[Row], order: Mapping[Path, int], now: float, held: Collection[Path] = ()
) -> Row | None:
    """The first in order that waits and whose back-off is over: a reference comes before what is a delta to it.

    None of `held`, which wait for others of their step.
    """
    waiting = [row for row in rows if row.state in WAITING and row.not_before <= now and row.path in order]
    waiting = [row for row in waiting if row.path not in held]
    return next(iter(in_order(waiting, order)), None)


def to_skip(rows: Sequence[Row], order: Mapping[Path, int], max_lag: int) -> list[Row]:
    """The oldest of those that wait, when more than `max_lag` do: the newest ones matter most to a job that dies."""
    waiting = in_order([row for row in rows if row.state is State.SETTLED and row.path in order], order)
    return waiting[: max(0, len(waiting) - max_lag)]


def to_take_back(rows: Sequence[Row], order: Mapping[Path, int]) -> Row | None:
    """A skipped one, the oldest first, once nothing else waits."""
    if any(row.state in WAITING for row in rows):
        return None
    return next(iter(in_order([row for row in rows if row.state is State.SKIPPED and row.path in order], order)), None)


def unit(row: Row) -> int | None:
    """Which checkpoint of the run a file belongs to: the step in its name. All that name none count as one."""
    return step_in_name(row.path.name)


def units(rows: Sequence[Row], order: Mapping[Path, int]) -> list[list[Row]]:
    """The rows in order, those of one step together: they are replaced all or none, and `keep_raw` counts them once."""
    found: dict[int | None, list[Row]] = {}
    for row in in_order(rows, order):
        found.setdefault(unit(row), []).append(row)
    return list(found.values())


def newest(rows: Sequence[Row], order: Mapping[Path, int], count: int) -> set[Path]:
    """The `count` newest whole checkpoints, by order and also by time: a job may be set back to an older step."""
    whole = [row for row in rows if row.state in COMPLETE and row.path in order]
    by_time = sorted(whole, key=lambda row: (row.identity.mtime_ns, order[row.path]))
    kept = set()
    for sorted_rows in (in_order(whole, order), by_time):
        newest_first = list(dict.fromkeys(unit(row) for row in reversed(sorted_rows)))
        kept.update(newest_first[:count])
    return {row.path for row in whole if unit(row) in kept}


def steps_that_wait(rows: Sequence[Row], order: Mapping[Path, int]) -> int:
    """How many checkpoints wait to be compressed: the files of one step are one, of those without a step each is."""
    waiting = [row for row in rows if row.state in WAITING and row.path in order]
    return len({(unit(row), "" if unit(row) is not None else row.path) for row in waiting})


def waits_for_others(
    rows: Sequence[Row], order: Mapping[Path, int], now: float, patience_seconds: float, *, once: bool
) -> dict[Path, str]:
    """Files that may be one checkpoint with others of their step which are not finished, or not there yet, and why.

    What is to come is told by the last files that were archived together. Nobody is waited for longer than the patience
    that there is, nor, once a later step has begun, for what is not there. `once`: a pass that does not look again
    waits only for what is there, and goes by its age.
    """
    there = [row for row in rows if row.path in order]
    if not any(row.state in WAITING for row in there):
        return {}
    steps, names = units(there, order), defaultdict[int | None, set[str]](set)
    for row in rows:
        names[unit(row)].add(row.path.name)
    together = next((found for found in map(_together, reversed(units(rows, order))) if found), frozenset[str]())
    held: dict[Path, str] = {}
    for place, members in enumerate(steps):
        if not any(row.state in WAITING for row in members) or unit(members[0]) is None:
            continue
        unfinished = {
            row.path.name: row.identity.mtime_ns / 1e9 if once else row.first_seen
            for row in members
            if row.state is State.SEEN
        }
        young = [name for name, since in unfinished.items() if now - since < patience_seconds]
        known = set(map(series_in_name, names[unit(members[0])]))
        is_last = place == len(steps) - 1 and now - max(row.first_seen for row in members) < patience_seconds
        missing = sorted(together - known) if is_last and not once and together & known else []
        if young or missing:
            why = f"waits for {young[0]} of its step" if young else f"waits for {missing[0]}, as the step before had"
            held |= {row.path: why for row in members if row.state in WAITING}
    return held


def _together(members: Sequence[Row]) -> frozenset[str]:
    """What files of a step that were archived together are called, apart from the step."""
    archives = Counter(row.archive for row in members)
    shared = [row for row in members if row.archive is not None and archives[row.archive] > 1]
    return frozenset(series_in_name(row.path.name) for row in shared)


def gain_too_little(rows: Sequence[Row], order: Mapping[Path, int]) -> dict[Path, str]:
    """Checkpoints whose archives are not small enough, all files of a step taken together, and why they stay."""
    archived = [row for row in rows if row.archive is not None and row.state is not State.ROTATED]
    found = {}
    for members in units(archived, order):
        archives = {row.archive: row.archive_bytes for row in members}  # several files may have one
        why = too_little(sum(row.original_bytes for row in members), sum(archives.values()))
        found.update({row.path: why for row in members} if why else {})
    return found


def may_be_replaced(row: Row, now: float) -> str | None:
    """None if it is archived and its time has come, else why it stays for now."""
    if row.state is State.RESTORED and now < row.changed + RESTORED_SECONDS:
        return "it was restored: left alone while it may be in use"
    if row.not_before > now:
        return row.error
    return None
