"""What commands show a person: tables and lines of what operations report. With `--json` none of it is asked for."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ckzd.plain import plain_age, plain_bytes
from ckzd.screen import printable, table_of

if TYPE_CHECKING:
    from ckzd.demo import DemoReport
    from ckzd.operations.catalogue import Row
    from ckzd.operations.garbage import Garbage
    from ckzd.operations.merge import Merged
    from ckzd.operations.prune import PruneReport

_UNITS = {"lost_progress": "of the progress", "second_moment_ratio": "times", "update_length_ratio": "times"}


def facts_table(facts: Mapping[str, Any]) -> Table:
    """What an archive holds; `facts` as `inspect` has them."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    files = [f"{file['name']}, {plain_bytes(file['size'])}" for file in facts.get("files", ())]
    for name, value in {
        **facts,
        **_proxy(facts.get("quality", {})),
        "files": files,
        "entries": f"{len(facts.get('entries', ()))} (listed by --json)",
    }.items():
        table.add_row(name.replace("_", " "), _plain_value(name, value))
    return table


def _proxy(quality: Mapping[str, float]) -> dict[str, Any]:
    """What the encoder measured, beside what the preset's budget allows; the rest of `quality` as it is."""
    rest = dict(quality)
    found: dict[str, Any] = {}
    for name in [name for name in rest if f"max_{name}" in rest]:
        measured, budget = rest.pop(name), rest.pop(f"max_{name}")
        found[name] = f"{measured:.3g} {_UNITS.get(name, 'of the weights')}, budget {budget:.3g}"
    if "first_order_loss" in rest and "regained" in rest:
        lost, regained = rest.pop("first_order_loss"), rest.pop("regained")
        found["first_order_loss"] = f"{lost:.3g}, of which first moments regain {regained:.3g}"
    if "tightened_tensors" in rest and "exact_tensors" in rest:
        finer, exact = rest.pop("tightened_tensors"), rest.pop("exact_tensors")
        spent = f"yes: {finer:.0f} tensors coded finer, {exact:.0f} exactly, to keep to the budget"
        found["tightened"] = spent if finer or exact else "no"
    return found | {"quality": rest}


def _plain_value(name: str, value: Any) -> str:
    """A value of `inspect` or `status` for a person."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain_value(name, item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return "\n".join(_plain_value(name, item) for item in value) or "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool) and (name.endswith("_bytes") or name == "parts"):
        return plain_bytes(value)
    return str(value)


def listing_table(rows: Sequence["Row"], now: float) -> Table:
    """The checkpoints of one run, and their sum; `now` in seconds since 1970."""
    table = table_of("checkpoint", "kind", "original", "archive", "ratio", "age", "depth", "there", "")
    for row in rows:
        sizes = (plain_bytes(size) if size is not None else "-" for size in (row.original_bytes, row.archive_bytes))
        ratio = f"{row.ratio:.1f}x" if row.ratio else "-"
        age = plain_age(now - row.written) if row.written is not None else "-"
        depth = str(row.depth) if row.depth is not None else "-"
        remark = f"damaged: {row.damaged}" if row.damaged else "ruined" if row.ruined else ""
        kind = row.kind or ("-" if row.archive else "not archived")
        table.add_row(row.checkpoint, kind, *sizes, ratio, age, depth, row.stands or "-", remark)
    archived = {row.archive: row for row in rows if row.archive and row.original_bytes}
    original = sum(row.original_bytes or 0 for row in archived.values())
    archive = sum(row.archive_bytes or 0 for row in archived.values())
    table.add_section()
    ratio = f"{original / archive:.1f}x" if archive else "-"
    table.add_row(f"{len(archived)} archives", "", plain_bytes(original), plain_bytes(archive), ratio, "", "", "", "")
    return table


def pruned_lines(report: "PruneReport") -> Iterator[str]:
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


def merged_line(report: "Merged") -> str:
    """What carries what, and what that frees."""
    names = ", ".join(Path(archive).name for archive in report.merged)
    carries, would = ("would carry", "would be ") if report.dry_run else ("carries", "")
    freed = f"{plain_bytes(abs(report.freed_bytes))} {would}{'freed' if report.freed_bytes >= 0 else 'taken'}"
    return f"{printable(report.archive)} {carries} {printable(names)}: {freed}"


def garbage_lines(store: Path, found: Sequence["Garbage"], *, dry_run: bool) -> Iterator[str]:
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


def status_table(facts: Mapping[str, Any]) -> Table:
    """Every checkpoint that the daemon knows."""
    table = table_of("checkpoint", "state", "original", "archive", "ratio", "why")
    for row in facts["checkpoints"]:
        archive = plain_bytes(row["archive_bytes"]) if row["archive_bytes"] else "-"
        ratio = f"{row['ratio']:.1f}x" if row["ratio"] else "-"
        table.add_row(
            row["checkpoint"], row["state"], plain_bytes(row["original_bytes"]), archive, ratio, row["why"] or ""
        )
    return table


def demo_report(report: "DemoReport") -> Iterator[Table | str]:
    """Sizes, losses, and what came of it."""
    sizes = table_of("checkpoint", "original", "archive", "ratio", "kind")
    for row in report.archived:
        kind = f"delta, {row.depth} deep" if row.depth else "base"
        original, archive = plain_bytes(row.original_bytes), plain_bytes(row.archive_bytes)
        sizes.add_row(row.checkpoint, original, archive, f"{row.ratio:.1f}x", kind)
    originals = sum(row.original_bytes for row in report.archived)
    archives = sum(row.archive_bytes for row in report.archived)
    sizes.add_section()
    sizes.add_row("all", plain_bytes(originals), plain_bytes(archives), f"{originals / archives:.1f}x", "")
    yield sizes
    losses = table_of("loss, nats a byte", "uninterrupted", f"restored from {report.restored}", "gap")
    for loss in report.comparisons:
        losses.add_row(loss.what, f"{loss.uninterrupted:.4f}", f"{loss.resumed:.4f}", f"{100 * loss.gap:+.2f} %")
    yield losses
    if report.twin_agreed:
        yield "up to the kill, the uninterrupted run's losses are the killed job's, bit for bit"
    verdict = "every loss is" if report.passed else "FAILED: not every loss is"
    allowed = f"within {100 * report.allowed_gap:.0f} % of the uninterrupted run's"
    yield f"killed at step {report.killed_at}, resumed to step {report.steps}; {verdict} {allowed}"
    yield f"{report.seconds:.0f} s in all"
