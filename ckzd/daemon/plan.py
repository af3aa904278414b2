"""What to do next, decided from rows: what is compressed, what may be replaced, what is left raw. Pure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ckzd.daemon.states import WAITING, Row, State
from ckzd.formats.names import step_in_name
from ckzd.operations.gain import too_little

COMPLETE = frozenset(  # states of a checkpoint that is whole and stands in its place
    {State.SETTLED, State.ENCODING, State.WRITTEN, State.VERIFIED, State.FAILED, State.QUARANTINED, State.SKIPPED}
    | {State.RESTORED}
)
RESTORED_SECONDS = 24 * 3600.0  # somebody fetched it back to use it: a day, and until newer ones have taken its place


def in_order(rows: Sequence[Row], order: Mapping[Path, int]) -> list[Row]:
    """By the step inside the checkpoint, else by its place in the listing (number in the name, then time)."""
    return sorted(rows, key=lambda row: (row.step is None, row.step or 0, order.get(row.path, len(order)), row.number))


def next_to_compress(rows: Sequence[Row], order: Mapping[Path, int], now: float) -> Row | None:
    """The first in order that waits and whose back-off is over: a reference comes before what is a delta to it."""
    waiting = [row for row in rows if row.state in WAITING and row.not_before <= now and row.path in order]
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


def gain_too_little(rows: Sequence[Row], order: Mapping[Path, int]) -> dict[Path, str]:
    """Checkpoints whose archives are not small enough, all files of a step taken together, and why they stay."""
    archived = [row for row in rows if row.archive is not None and row.state is not State.ROTATED]
    found = {}
    for members in units(archived, order):
        why = too_little(sum(row.original_bytes for row in members), sum(row.archive_bytes for row in members))
        found.update({row.path: why for row in members} if why else {})
    return found


def may_be_replaced(row: Row, now: float) -> str | None:
    """None if it is archived and its time has come, else why it stays for now."""
    if row.state is State.RESTORED and now < row.changed + RESTORED_SECONDS:
        return "it was restored: left alone while it may be in use"
    if row.not_before > now:
        return row.error
    return None
