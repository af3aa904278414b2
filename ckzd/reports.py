"""What commands say to a person: of the daemon, and of what was, or would be, deleted."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckzd.operations.garbage import Garbage
from ckzd.operations.prune import PruneReport
from ckzd.screen import plain_bytes, printable


def pruned_lines(report: PruneReport) -> Iterator[str]:
    """Every archive of a store: whether it goes, and why."""
    for judged in report.judged:
        why = f"{judged.why}; its moments go" if judged.drops_moments else judged.why
        yield _line(judged.nbytes, judged.checkpoint, why, goes=judged.goes, dry_run=report.dry_run)
    sums, would = report.to_dict(), "would be " if report.dry_run else ""
    text = f"{sums['pruned']} archives {would or 'were '}deleted, {sums['kept']} stay"
    text += f", {sums['moments_dropped']} of them without moments" if sums["moments_dropped"] else ""
    over = f"; what stays takes {plain_bytes(report.over_quota_bytes)} more than the quota"
    freed = f"; {plain_bytes(report.freed_bytes)} {would}freed{over if report.over_quota_bytes else ''}"
    yield f"{printable(report.store)}: {text}{freed}"


def garbage_lines(store: Path, found: Sequence[Garbage], *, dry_run: bool) -> Iterator[str]:
    """All that nothing needs, or may be not."""
    for garbage in found:
        why = f"{garbage.what}, {garbage.why}"
        yield _line(garbage.nbytes, garbage.path, why, goes=garbage.goes, dry_run=dry_run)
    freed = plain_bytes(sum(garbage.nbytes for garbage in found if garbage.goes))
    yield f"{printable(str(store))}: {freed} {'would be ' if dry_run else ''}freed"


def _line(nbytes: int, path: str, why: str, *, goes: bool, dry_run: bool) -> str:
    done = ("would go" if dry_run else "gone") if goes else "stays"
    return f"{done:8}  {plain_bytes(nbytes):>8}  {printable(path)}: {printable(why)}"


def status_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """What the daemon does, what needs somebody's hand, and its totals; `facts` as `read_status` has them."""
    running = f"{facts['state']}, process {facts['pid']}" if facts["pid"] else facts["state"]
    yield f"ckzd {facts['version']}: {running}"
    yield from (f"not ready: {reason}" for reason in facts["reasons"])
    if facts["replacing_stopped"]:
        yield f"to let replacing go on: {facts['replacing_stopped']['acknowledge']}"
    yield from (f"damaged, or needs what is: {archive}" for archive in facts["damaged_archives"])
    waits = "waits for its base model, which is not here as it was"
    yield from (f"{waits}: {archive}" for archive in facts["waiting_archives"])
    yield from (f"{run['run']}: {run['says']}" for run in facts["without_base_model"])
    yield from (f"{left['watch']} {left['says']}" for left in facts["left_alone"])
    counted = facts["totals"]["checkpoints"].items()
    yield f"checkpoints: {', '.join(f'{count} {state}' for state, count in counted) or 'none yet'}"
    yield _space_line(facts["space"])
    yield from _check_lines(facts["stores"])


def _space_line(space: Mapping[str, Any]) -> str:
    """What became of the replaced originals' bytes, and what stands for them on disk."""
    archives, cache = plain_bytes(space["archive_bytes"]), plain_bytes(space["cache_bytes"])
    until = f" until {time.strftime('%H:%M', time.localtime(space['trash_until']))}" if space["trash_until"] else ""
    return (
        f"space: {plain_bytes(space['freed_bytes'])} freed, net of archives ({archives}) and cache ({cache});"
        f" {plain_bytes(space['trash_bytes'])} in the trash{until}"
    )


def _check_lines(stores: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How far the archives of each store have been read back; only the daemon knows."""
    for store in stores:
        if (check := store.get("check")) is not None:
            completed = check["pass_completed"]
            when = time.strftime("all by %Y-%m-%d %H:%M", time.localtime(completed)) if completed else "not yet all"
            share = f"{100 * check['pass_ratio']:.0f} % of {check['archives']}"
            yield f"checked: {when}, {share} again, in {store['store']}"
