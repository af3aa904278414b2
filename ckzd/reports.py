"""Reports of what was, or would be, deleted: a line each, and the sums, for a person."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ckzd.operations.garbage import Garbage
from ckzd.operations.prune import PruneReport
from ckzd.screen import plain_bytes, printable


def pruned_lines(report: PruneReport) -> Iterator[str]:
    """Every archive of a store: whether it goes, and why."""
    for judged in report.judged:
        yield _line(judged.nbytes, judged.checkpoint, judged.why, goes=judged.goes, dry_run=report.dry_run)
    sums, would = report.to_dict(), "would be " if report.dry_run else ""
    text = f"{sums['pruned']} archives {would or 'were '}deleted, {sums['kept']} stay"
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
