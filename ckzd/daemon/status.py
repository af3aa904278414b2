"""What the daemon tells of itself: one dict, for the page, for /status.json and for `ckzd status`.

It is made from the journal's rows and from what only the running service knows (`Live`). Without a running service
`read_status` makes it from the journal alone.
"""

import http.client
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ckzd import __version__
from ckzd.chains import ArchiveRecord, is_ruined, read_manifest
from ckzd.codec.presets import preset_at
from ckzd.config import Settings, WatchSettings
from ckzd.daemon import journal_file
from ckzd.daemon.states import ARCHIVED, Row, State
from ckzd.daemon.stores import measure
from ckzd.defaults import Effort
from ckzd.errors import CkzdError, ConfigError
from ckzd.formats import KINDS
from ckzd.operations.inspect import KEPT_EXACT, RUINED, is_kept_exact
from ckzd.store import Store

SCHEMA_VERSION = 1
SHOWN_CHECKPOINTS = 200  # the newest ones; the totals count all
ENDPOINT = "http.json"  # in state_dir: where the running daemon listens
JOURNAL = "journal.sqlite3"
STOPPED = "REPLACING-STOPPED"
ASK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Live:
    """What the service knows beyond its journal."""

    state: str = "stopped"  # starting, running, draining, stopped
    started: float = 0.0
    problems: Sequence[str] = ()  # why it does not do its job
    paused: str | None = None
    jobs: Sequence[Mapping[str, Any]] = ()
    workers: Sequence[Mapping[str, Any]] = ()
    stores: Sequence[Mapping[str, Any]] = ()
    damaged: Sequence[str] = ()  # archives that cannot be restored from
    waiting: Sequence[str] = ()  # those that are whole, but whose base model is not here
    without_base_model: Mapping[Path, str] = field(default_factory=dict)  # run -> why its last base is no delta
    why: Mapping[Path, str] = field(default_factory=dict)  # checkpoint -> why it waits or stays
    left_alone: Mapping[Path, Mapping[str, int]] = field(default_factory=dict)  # watch -> kinds, how many of each
    behind: frozenset[Path] = frozenset()  # runs that save faster than they are archived
    runs: Mapping[Path, tuple[WatchSettings, Path | None]] = field(default_factory=dict)  # run -> its watch and store


def build(rows: Sequence[Row], live: Live, settings: Settings, now: float) -> dict[str, Any]:
    """The status as JSON-able data. Fields may be added; none changes its meaning within a schema version."""
    stop = replacing_stopped(settings)
    reasons = list(live.problems) + ([live.paused] if live.paused else []) + ([stop["reason"]] if stop else [])
    reasons += [f"{len(live.damaged)} archives cannot be restored from: see `ckzd check`"] if live.damaged else []
    newest = sorted(rows, key=lambda row: (row.changed, row.number), reverse=True)[:SHOWN_CHECKPOINTS]
    return {
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "pid": os.getpid() if live.state != "stopped" else None,
        "state": live.state,
        "now": now,
        "started": live.started or None,
        "ready": live.state == "running" and not reasons,
        "reasons": reasons,
        "replacing_stopped": stop,
        "paused": live.paused,
        "damaged_archives": list(live.damaged),
        "waiting_archives": list(live.waiting),
        "without_base_model": [
            {"run": str(run), "says": f"archived as a base: {why}"} for run, why in live.without_base_model.items()
        ],
        "totals": totals(rows),
        "space": space(rows, live.stores),
        "left_alone": [
            {"watch": str(watch), "kind": kind, "count": count, "says": f"holds {KINDS[kind]}: not read ({count})"}
            for watch, kinds in live.left_alone.items()
            for kind, count in sorted(kinds.items())
        ],
        "jobs": [dict(job) for job in live.jobs],
        "workers": [dict(worker) for worker in live.workers],
        "runs": [_run(run, rows, live) for run in sorted({row.run for row in rows} | set(live.runs))],
        "stores": [dict(store) for store in live.stores],
        "checkpoints": [_checkpoint(row, live.why.get(row.path, "")) for row in newest],
    }


def totals(rows: Iterable[Row]) -> dict[str, Any]:
    """Sums over rows; `ratio` is that of everything that is archived, None before the first."""
    rows = list(rows)
    archived = [row for row in rows if row.state in ARCHIVED and row.archive is not None]
    original = sum(row.original_bytes for row in archived)
    archive = sum({row.archive: row.archive_bytes for row in archived}.values())  # several files may have one
    counts = Counter(row.state.value for row in rows)
    return {
        "checkpoints": {state.value: counts[state.value] for state in State if counts[state.value]},
        "original_bytes": original,
        "archive_bytes": archive,
        "ratio": original / archive if archive else None,
        "reclaimed_bytes": sum(row.reclaimed_bytes for row in rows if row.state is State.REPLACED),
    }


def space(rows: Iterable[Row], stores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is on disk now, and what has become free: not what was replaced, which lies in the trash at first.

    `freed_bytes` is net of archives and cache, so at first it is negative; `trash_until`: when the trash is empty by
    its age, if nobody needs the room before.
    """
    replaced = sum(row.reclaimed_bytes for row in rows if row.state is State.REPLACED)
    archives, cache, trash = (
        sum(store[name] for store in stores) for name in ("archive_bytes", "cache_bytes", "trash_bytes")
    )
    return {
        "replaced_bytes": replaced,
        "freed_bytes": replaced - trash - archives - cache,
        "trash_bytes": trash,
        "trash_until": max((store["trash_until"] for store in stores if store["trash_until"]), default=None),
        "archive_bytes": archives,
        "cache_bytes": cache,
    }


def replacing_stopped(settings: Settings) -> dict[str, Any] | None:
    """Why replacing was stopped and how to let it go on, or None."""
    file = settings.daemon.state_dir / STOPPED
    try:
        text = file.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    return {"reason": text.splitlines()[0] if text else "stopped by hand", "acknowledge": f"rm {file}"}


def read_status(settings: Settings) -> dict[str, Any]:
    """Ask the running daemon; if there is none, tell what its journal says, with state "stopped"."""
    status = _ask(settings.daemon.state_dir / ENDPOINT)
    if status is not None:
        return status
    rows: list[Row] = []
    problems = []
    try:
        rows = journal_file.read_only(settings.daemon.state_dir / JOURNAL)
    except ConfigError as error:
        problems = [str(error)]
    roots = {row.archive.parents[2] for row in rows if row.archive is not None}
    live = Live(problems=problems, stores=[measure(Store(root), None) for root in sorted(roots)])
    return build(rows, live, settings, now=max((row.changed for row in rows), default=0.0))


def _ask(endpoint: Path) -> dict[str, Any] | None:
    """The running daemon's own words; None when nobody listens, or somebody else does on that port."""
    try:
        place = json.loads(endpoint.read_text(encoding="utf-8"))
        connection = http.client.HTTPConnection(place["host"], place["port"], timeout=ASK_SECONDS)
        try:
            connection.request("GET", "/status.json")
            status = json.load(connection.getresponse())
        finally:
            connection.close()
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return None
    return status if isinstance(status, dict) and status.get("pid") == place["pid"] else None


@dataclass(frozen=True, slots=True)
class _Said:
    """What a status needs of a manifest."""

    kept_exact: bool = False
    ruined: bool = False
    moments_dropped: str | None = None


def _said(archive: Path) -> _Said:
    with suppress(CkzdError, OSError):  # said elsewhere, and asked again: a file server may be away
        return _said_at(archive, archive.lstat().st_ctime_ns)
    return _Said()


@lru_cache(10_000)
def _said_at(archive: Path, ctime_ns: int) -> _Said:
    del ctime_ns  # it is another archive if this is another
    record = ArchiveRecord(archive, read_manifest(archive))
    return _Said(is_kept_exact(record.manifest), is_ruined(record), record.manifest.moments_dropped)


def _run(run: Path, rows: Sequence[Row], live: Live) -> dict[str, Any]:
    watch, store = live.runs.get(run, (None, None))
    known: dict[str, Any] = {}
    if watch is not None:
        known = {"preset": watch.preset, "replace": watch.replace, "keep_raw": watch.keep_raw}
        behind = run in live.behind
        known |= {"falling_behind": behind, "effort": effort_of(watch, behind=behind)}
    return {"run": str(run), "store": str(store) if store else None, **known} | totals(
        row for row in rows if row.run == run
    )


def effort_of(watch: WatchSettings, *, behind: bool) -> Effort:
    """What the next archive of a run is made with; presets without bases know no less than the best."""
    return preset_at(watch.preset, Effort.FAST if behind else watch.effort).effort


def _checkpoint(row: Row, why: str) -> dict[str, Any]:
    archive = row.archive if row.state in ARCHIVED else None
    said = _said(archive) if archive is not None else _Said()
    alone = f"weights alone since {said.moments_dropped}" if said.moments_dropped else ""
    reasons = (why or row.error, KEPT_EXACT if said.kept_exact else "", RUINED if said.ruined else "", alone)
    return {
        "checkpoint": str(row.path),
        "run": str(row.run),
        "state": row.state.value,
        "why": "; ".join(reason for reason in reasons if reason),
        "kept_exact": said.kept_exact,
        "ruined": said.ruined,
        "moments_dropped": said.moments_dropped,
        "step": row.step,
        "original_bytes": row.original_bytes,
        "archive_bytes": row.archive_bytes or None,
        "ratio": row.original_bytes / row.archive_bytes if row.archive_bytes else None,
        "archive": str(row.archive) if row.archive else None,
        "reference": str(row.reference) if row.reference else None,
        "reclaimed_bytes": row.reclaimed_bytes if row.state is State.REPLACED else 0,
        "attempts": row.attempts,
        "next_try": row.not_before if row.state is State.FAILED else None,
        "seconds": row.seconds or None,
        "changed": row.changed,
    }
