"""The status page: one HTML document from the status dict, no script, nothing loaded from elsewhere."""

import time
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ckzd.plain import plain_bytes

SHOWN = 50
REFRESH_SECONDS = 5

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #e0e1e6; --page: #fcfcfd; --card: #fff;
  --good: #18794e; --busy: #0d74ce; --bad: #ce2c31; --warn: #ab6400 }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #b0b4ba; --line: #363a3f; --page: #111113;
  --card: #18191b; --good: #3dd68c; --busy: #70b8ff; --bad: #ff9592; --warn: #ffca16 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; display: flex; gap: .6rem; align-items: baseline }
h2 { font-size: 1rem; margin: 2.25rem 0 .5rem }
p { margin: .25rem 0; color: var(--soft) }
.note { border-left: 3px solid var(--bad); padding: .5rem .9rem; margin: 1rem 0; background: var(--card);
  color: var(--ink); overflow-wrap: anywhere }
code { font: .92em ui-monospace, monospace; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0 }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-size: 1.45rem; font-variant-numeric: tabular-nums }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; background: var(--card) }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
th, td { text-align: left; padding: .4rem .9rem; border-top: 1px solid var(--line); vertical-align: top }
thead th { border-top: 0; color: var(--soft); font-weight: 500; white-space: nowrap }
td code { white-space: nowrap }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.state { font-weight: 600; white-space: nowrap }
.good { color: var(--good) } .busy { color: var(--busy) } .bad { color: var(--bad) } .warn { color: var(--warn) }
progress { width: 100%; min-width: 6rem; accent-color: var(--busy) }
"""
_MOOD = {
    "running": "good", "starting": "busy", "draining": "warn", "stopped": "bad", "verified": "good",
    "replaced": "good", "restored": "good", "encoding": "busy", "written": "busy", "failed": "warn",
    "quarantined": "bad", "skipped": "warn",
}  # fmt: skip


def render(status: Mapping[str, Any]) -> str:
    """The whole document."""
    body = [_head(status), _notes(status), _numbers(status), _jobs(status), _runs(status), _checkpoints(status)]
    body.append(_stores(status))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>ckzd</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}"><style>{_STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _size(nbytes: float | None) -> str:
    return "–" if nbytes is None else plain_bytes(nbytes)


def _head(status: Mapping[str, Any]) -> str:
    state = str(status["state"])
    started = status["started"]
    since = f" since {_clock(started)}" if started else ""
    return (
        f'<h1>ckzd <span class="state {_MOOD.get(state, "")}">{escape(state)}</span></h1>'
        f"<p>version {escape(str(status['version']))}, process {escape(str(status['pid']))}{since}</p>"
    )


def _notes(status: Mapping[str, Any]) -> str:
    notes = [escape(str(reason)) for reason in status["reasons"]]
    notes += [escape(f"{left['watch']} {left['says']}") for left in status["left_alone"]]
    stop = status["replacing_stopped"]
    if stop:
        notes.append(
            "Nothing is replaced until a person has looked at it. To let it go on: "
            f"<code>{escape(stop['acknowledge'])}</code>"
        )
    return "".join(f'<p class="note" role="alert">{note}</p>' for note in notes)


def _numbers(status: Mapping[str, Any]) -> str:
    totals, counts = status["totals"], status["totals"]["checkpoints"]
    space = status["space"]
    until = f" until {_clock(space['trash_until'])}" if space["trash_until"] else ""
    waiting = sum(counts.get(state, 0) for state in ("seen", "settled", "failed", "skipped"))
    archived = sum(counts.get(state, 0) for state in ("verified", "replaced", "restored", "rotated"))
    numbers = {
        "freed, net of archives": _size(space["freed_bytes"]),
        f"in the trash{until}": _size(space["trash_bytes"]),
        "archives and cache": _size(space["archive_bytes"] + space["cache_bytes"]),
        "smaller by": f"{totals['ratio']:.3g}×" if totals["ratio"] else "–",
        "archived": str(archived),
        "waiting": str(waiting),
        "quarantined": str(counts.get("quarantined", 0)),
    }
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers.items()) + "</dl>"


def _jobs(status: Mapping[str, Any]) -> str:
    rows = [
        (
            _text(job["kind"]),
            _path(job["checkpoint"]),
            _text(job["stage"]),
            f'<progress value="{float(job["fraction"]):.3f}" max="1"></progress>',
            f"{job['seconds']:.0f} s",
        )
        for job in status["jobs"]
    ]
    return _table("Now", ("job", "checkpoint", "stage", "", "for"), rows, numeric=(4,)) if rows else ""


def _runs(status: Mapping[str, Any]) -> str:
    rows = [
        (
            f"<code>{escape(run['run'])}</code>",
            _text(_of_run(run)),
            _size(run["original_bytes"]),
            _size(run["archive_bytes"]),
            f"{run['ratio']:.3g}×" if run["ratio"] else "–",
            _size(run["reclaimed_bytes"]),
        )
        for run in status["runs"]
    ]
    headings = ("run", "checkpoints", "originals", "archives", "ratio", "replaced")
    return _table("Runs", headings, rows, numeric=(2, 3, 4, 5)) if rows else "<h2>Runs</h2><p>No run found yet.</p>"


def _of_run(run: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in run["checkpoints"].items()) or "nothing yet"
    return f"{counts}; falling behind, made with effort {run['effort']}" if run.get("falling_behind") else counts


def _checkpoints(status: Mapping[str, Any]) -> str:
    rows = [
        (
            _path(found["checkpoint"]),
            f'<span class="state {_MOOD.get(found["state"], "")}">{escape(found["state"])}</span>',
            _size(found["original_bytes"]),
            _size(found["archive_bytes"]),
            f"{found['ratio']:.3g}×" if found["ratio"] else "–",
            _clock(found["changed"]),
            _why(found),
        )
        for found in status["checkpoints"][:SHOWN]
    ]
    headings = ("checkpoint", "state", "original", "archive", "ratio", "changed", "why")
    return _table("Checkpoints, newest first", headings, rows, numeric=(2, 3, 4)) if rows else ""


def _stores(status: Mapping[str, Any]) -> str:
    rows = [
        (
            f"<code>{escape(store['store'])}</code>",
            *(_size(store[name]) for name in ("archive_bytes", "cache_bytes", "trash_bytes", "free_bytes")),
            _clock(store["trash_until"]) if store["trash_until"] else "–",
        )
        for store in status["stores"]
    ]
    headings = ("store", "archives", "cache", "trash", "free", "trash until")
    return _table("Stores", headings, rows, numeric=(1, 2, 3, 4)) if rows else ""


def _why(found: Mapping[str, Any]) -> str:
    again = f"; next try {_clock(found['next_try'])}" if found["next_try"] else ""
    return _text(found["why"]) + again


def _table(title: str, headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], numeric: tuple[int, ...]) -> str:
    def cells(tag: str, values: tuple[str, ...]) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        marked = [(value, ' class="n"' if number in numeric else "") for number, value in enumerate(values)]
        return "<tr>" + "".join(f"<{tag}{scope}{mark}>{value}</{tag}>" for value, mark in marked) + "</tr>"

    body = "".join(cells("td", row) for row in rows)
    head = cells("th", headings)
    return f'<h2>{title}</h2><div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _text(value: object) -> str:
    return escape(str(value))


def _path(value: str) -> str:
    return f'<code title="{escape(value)}">{escape(Path(value).name)}</code>'


def _clock(seconds: float) -> str:
    stamp = time.localtime(seconds)
    exact, short = time.strftime("%Y-%m-%dT%H:%M:%S%z", stamp), time.strftime("%b %d %H:%M:%S", stamp)
    return f'<time datetime="{exact}">{short}</time>'
