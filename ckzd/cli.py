"""The command line: parse, call one operation, print, exit code.

Results go to standard output, progress and errors to standard error. With `--json` both are one JSON object a line.
Each command loads its operation when it runs, so that `ckzd --help` and `ckzd inspect` start without torch.
"""

import dataclasses
import io
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ckzd import __version__
from ckzd.defaults import DAMAGED_DAYS, MAX_DEPTH, Effort
from ckzd.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, CkzdError, ConfigError
from ckzd.failures import as_ckzd_error, for_each
from ckzd.operations.command import DEFAULT_SECONDS
from ckzd.plain import plain_bytes
from ckzd.reports import (
    demo_report,
    facts_table,
    garbage_lines,
    listing_table,
    merged_line,
    pruned_lines,
    status_lines,
    status_table,
)
from ckzd.screen import Screen, table_of

if TYPE_CHECKING:
    from ckzd.config import Settings
    from ckzd.daemon.pruning import Ruled
    from ckzd.demo import Event
    from ckzd.operations.catalogue import Row
    from ckzd.operations.check import Outcome
    from ckzd.operations.compress import CompressReport
    from ckzd.operations.verify import VerifyReport

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress training checkpoints against the ones before them, prove it, and give them back.",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, errors too.")]
Store = Annotated[
    Path | None, typer.Option("--store", help="Directory of the archives; .ckzd beside the run if not given.")
]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file with the settings.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why.")]
Paths = Annotated[
    list[Path] | None,
    typer.Argument(help="Runs, directories of runs, stores; all that is configured if none is given.", readable=False),
]
ARCHIVE_HELP = "An archive, or the checkpoint path that it replaced."


def main() -> None:
    """The console entry. SIGTERM unwinds like an interrupt and leaves nothing temporary; `serve` drains instead."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may be no text
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    screen = Screen(as_json="--json" in arguments)
    try:
        code = app(list(arguments) or ["--help"], prog_name="ckzd", standalone_mode=False)
    except typer.TyperException as error:
        screen.error(_usage_error(error))
        return error.exit_code
    except typer.Abort:
        return EXIT_FAILED
    except (CkzdError, OSError) as error:
        return screen.error(as_ckzd_error(error))
    return (code or EXIT_DONE) if arguments else EXIT_USAGE


def _usage_error(error: typer.TyperException) -> CkzdError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "ckzd"
    message = error.format_message().strip().rstrip(".") or "wrong usage"
    return ConfigError(command, message[0].lower() + message[1:], hint=f"see `{command} --help`")


def _version(wanted: bool) -> None:  # noqa: FBT001  # typer's callbacks are called this way
    if wanted:
        Screen(as_json=False).say(f"ckzd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *, version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False
) -> None:
    """`ckzd` without a verb."""


@app.command()
def serve(
    *,
    config: Config = None,
    once: Annotated[bool, typer.Option("--once", help="Do what is there to do, then end.")] = False,
    as_json: Json = False,
) -> int:
    """Watch the configured runs; archive, prove and replace their checkpoints."""
    from ckzd.config import load
    from ckzd.daemon.service import serve as serve_runs

    return serve_runs(load(config), once=once, log_as_json=as_json)


@app.command()
def compress(
    paths: Annotated[
        list[Path], typer.Argument(help="Checkpoints, or run directories whose checkpoints it takes.", readable=False)
    ],
    *,
    preset: Annotated[str, typer.Option(help="The quality: resume, archive, paper or lossless.")] = "resume",
    effort: Annotated[
        str, typer.Option(help="best, or fast: less work and larger archives, within the same budget.")
    ] = Effort.BEST,
    store: Store = None,
    stride: Annotated[int, typer.Option(min=1, help="How many checkpoints back the reference is.")] = 1,
    max_depth: Annotated[int, typer.Option("--max-depth", min=1, help="How many deltas a chain may have.")] = MAX_DEPTH,
    base_model: Annotated[
        Path | None,
        typer.Option(
            "--base-model", metavar="PATH", help="A model trained elsewhere: the first archive is a delta against it."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace each original once its archive is proven.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
    accept_command: Annotated[
        str | None,
        typer.Option("--accept-command", metavar="CMD", help="Is given what each restores to; exit 0 accepts."),
    ] = None,
    accept_seconds: Annotated[float, typer.Option(help="Time limit of the accept command.")] = DEFAULT_SECONDS,
    as_json: Json = False,
) -> int:
    """Archive checkpoints and prove that the archives decode."""
    from ckzd.operations.compress import compress as compress_one

    screen = Screen(as_json)
    table = table_of("checkpoint", "original", "archive", "ratio", "against", "seconds", "")
    done: dict[str, CompressReport] = {}  # file -> of the checkpoint that it is one of
    with screen.progress() as bar:

        def archive(checkpoint: Path) -> None:
            bar.start(checkpoint.name)
            path = str(checkpoint.absolute())
            if path in done:
                first = Path(done[path].checkpoint).name
                tell(dataclasses.replace(done[path], checkpoint=path, seconds=0.0, already=True), f"with {first}")
                return
            report = compress_one(
                checkpoint,
                store=store,
                preset=preset,
                effort=effort,
                stride=stride,
                max_depth=max_depth,
                base_model=base_model,
                replace=replace,
                device=device,
                accept_command=accept_command,
                accept_seconds=accept_seconds,
                on_stage=bar.stage,
            )
            done.update(dict.fromkeys(report.members, report))
            tell(report)

        def tell(report: "CompressReport", remark: str = "") -> None:
            if as_json:
                screen.line(report.to_dict())
            else:
                *row, own = _compress_row(report)
                table.add_row(*row, remark or own)

        code = for_each([found for path in paths for found in _checkpoints_of(path)], archive, screen, ConfigError)
    if table.row_count:
        screen.show(table)
    return code


def _checkpoints_of(path: Path) -> list[Path]:
    """The path itself if it is a checkpoint, else what lies in the run; the operation explains what is neither."""
    from ckzd.formats import list_checkpoints, looks_like_checkpoint

    try:
        if path.is_dir() and not looks_like_checkpoint(path):
            return list_checkpoints(path) or [path]
    except OSError:
        return [path]
    return [path]


def _compress_row(report: "CompressReport") -> tuple[str, ...]:
    from ckzd.operations.inspect import RUINED

    sizes = plain_bytes(report.original_bytes), plain_bytes(report.archive_bytes), f"{report.ratio:.1f}x"
    reference = Path(report.reference).name if report.reference else "nothing: a base"
    reference = f"{reference} ({report.without_base_model})" if report.without_base_model else reference
    remark = report.kept or (
        "was archived before" if report.already else "replaced" if report.replaced else "original kept"
    )
    remark = f"accepted, {remark}" if report.accepted else remark
    remark = f"{remark}; {RUINED}" if report.ruined else remark
    return (Path(report.checkpoint).name, *sizes, reference, f"{report.seconds:.1f}", remark)


@app.command()
def restore(
    path: Annotated[Path, typer.Argument(help=ARCHIVE_HELP, readable=False)],
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="What to create; the original place if not given.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="GLOB", help="Some files of a directory, into -o; may be repeated."),
    ] = None,
    weights_only: Annotated[bool, typer.Option("--weights-only", help="Leave the optimizer's moments out.")] = False,
    as_json: Json = False,
) -> int:
    """Give a checkpoint back, whole or not at all."""
    from ckzd.operations.restore import restore as restore_one

    screen = Screen(as_json)
    with screen.progress() as bar:
        bar.start(path.name)
        report = restore_one(path, output=output, only=only or (), weights_only=weights_only, on_progress=bar.fraction)
    if as_json:
        screen.line(report.to_dict())
    else:
        size = plain_bytes(report.restored_bytes)
        screen.say(f"restored {report.checkpoint}: {size} in {report.files} file(s), {report.seconds:.1f} s")
    return EXIT_DONE


@app.command()
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Archives, checkpoint paths that they replaced, runs, or whole stores.", readable=False),
    ],
    *,
    as_json: Json = False,
) -> int:
    """Decode archives from disk and compare every file's hash with the recorded one."""
    from ckzd.operations.verify import verify_each

    screen = Screen(as_json)
    with screen.progress() as bar:

        def tell(outcome: "VerifyReport | CkzdError") -> None:
            if isinstance(outcome, CkzdError):
                raise outcome
            if as_json:
                screen.line(outcome.to_dict())
            else:
                screen.say(f"ok {outcome.archive}: {outcome.files} file(s), {outcome.seconds:.1f} s")

        begun = verify_each(paths, on_archive=lambda archive: bar.start(archive.name), on_progress=bar.fraction)
        return for_each(begun, tell, screen)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help=ARCHIVE_HELP, readable=False)],
    *,
    as_json: Json = False,
) -> int:
    """Show what an archive holds, without decoding it."""
    from ckzd.operations.inspect import inspect as inspect_one

    screen = Screen(as_json)
    facts = inspect_one(path)
    if as_json:
        screen.line(facts)
    else:
        screen.show(facts_table(facts))
    return EXIT_DONE


@app.command(name="list")
def list_(
    paths: Paths = None,
    *,
    store: Store = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """List runs and their checkpoints, raw and archived; reads no more of an archive than what it says of itself."""
    from ckzd.config import load
    from ckzd.operations.catalogue import catalogue
    from ckzd.operations.places import places

    screen = Screen(as_json)
    now = time.time()
    runs: dict[str, list[Row]] = {}
    for row in catalogue(places(load(config).asked(paths or (), store)), now):
        if as_json:
            screen.line(row.to_dict())
        else:
            runs.setdefault(row.run or str(Path(row.archive or "").parent), []).append(row)
    for run, rows in runs.items():
        screen.say(run)
        screen.show(listing_table(rows, now))
    return EXIT_DONE


@app.command()
def check(
    paths: Paths = None,
    *,
    percent: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Share of each store, what was checked longest ago first.")
    ] = 100.0,
    deep: Annotated[bool, typer.Option("--deep", help="Decode archives, each link once, not only read them.")] = False,
    store: Store = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Read archives back from disk; name what is damaged and all that needs it; heal what can be healed."""
    from ckzd.config import load
    from ckzd.operations.check import Options
    from ckzd.operations.check import check as check_all
    from ckzd.operations.places import places

    screen = Screen(as_json)
    counts: Counter[str] = Counter()
    with screen.progress() as bar:

        def tell(outcome: "Outcome") -> None:
            counts[outcome.outcome] += 1
            if as_json:
                screen.line(outcome.to_dict())
            elif outcome.outcome == "healed":
                screen.say(f"healed {outcome.archive}: {outcome.problem}; from {outcome.healed_from}")
            if outcome.error is not None:
                raise outcome.error

        found = places(load(config).asked(paths or (), store))
        outcomes = check_all(found, Options(percent, deep), on_archive=lambda archive: bar.start(archive.name))
        code = for_each(outcomes, tell, screen)
    if not as_json:
        done = "decoded" if deep else "read back"
        screen.say(f"{done}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items()) or 'no archive'}")
    return code


@app.command()
def status(*, config: Config = None, as_json: Json = False) -> int:
    """Show what the daemon has done, does and waits for."""
    from ckzd.config import load
    from ckzd.daemon.status import read_status

    screen = Screen(as_json)
    facts = read_status(load(config))
    if as_json:
        screen.line(facts)
    else:
        _show_status(facts, screen)
    return EXIT_DONE


def _show_status(facts: Mapping[str, Any], screen: Screen) -> None:
    for line in status_lines(facts):
        screen.say(line)
    if (table := status_table(facts)).row_count:
        screen.show(table)


@app.command()
def prune(
    paths: Paths = None,
    *,
    config: Config = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Delete the archives that [watch.keep] lets go, with their pointers; say why each one goes or stays."""
    from ckzd.config import load
    from ckzd.daemon.pruning import prune_store

    screen, settings = Screen(as_json), load(config)
    stores, roots = _stores(settings, paths, screen), _roots(settings, paths)

    def prune_one(root: Path) -> None:
        report = prune_store(root, stores[root].runs, roots=roots, quota=stores[root].quota, dry_run=dry_run)
        if as_json:
            for judged in report.judged:
                screen.line(judged.to_dict())
            screen.line(report.to_dict())
        else:
            for text in pruned_lines(report):
                screen.say(text)

    return for_each(stores, prune_one, screen)


@app.command()
def merge(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Archives, what stands for them, or runs and stores: what their rules let go."),
    ] = None,
    *,
    config: Config = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Take archives out of the middle of chains; what is a delta against them carries their weights from then on."""
    from ckzd.config import load
    from ckzd.daemon.pruning import Wish, merge_run, wishes

    screen, settings = Screen(as_json), load(config)
    wanted, roots = wishes(settings, paths or ()), _roots(settings, paths)
    done = 0

    def merge_one(wish: Wish) -> None:
        nonlocal done
        for report in merge_run(wish, roots=roots, dry_run=dry_run):
            done += 1
            if as_json:
                screen.line(report.to_dict())
            else:
                screen.say(merged_line(report))

    code = for_each(wanted, merge_one, screen)
    if not done and not as_json and code == EXIT_DONE:
        screen.say("nothing may go that others need")
    return code


@app.command()
def gc(
    paths: Paths = None,
    *,
    config: Config = None,
    gone_runs: Annotated[
        bool, typer.Option("--gone-runs", help="Archives of runs whose directories are gone, too.")
    ] = False,
    damaged_days: Annotated[
        float, typer.Option("--damaged-days", min=0, help="Damaged archives that were set aside so long ago.")
    ] = DAMAGED_DAYS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Delete what nothing needs: unfinished files of the dead, cache of archives that are gone, old damage."""
    from ckzd.config import load
    from ckzd.operations.garbage import Wanted, collect
    from ckzd.store import Store as OpenStore

    screen, settings = Screen(as_json), load(config)
    stores, roots = _stores(settings, paths, screen), _roots(settings, paths)
    wanted = Wanted(damaged_days, gone_runs)

    def collect_one(root: Path) -> None:
        store, now = OpenStore.open(root), time.time()
        runs = [run.path for run in stores[root].runs]
        found = collect(store, runs, roots=roots, now=now, wanted=wanted, dry_run=dry_run)
        for garbage in found if as_json else ():
            screen.line(garbage.to_dict())
        for text in garbage_lines(root, found, dry_run=dry_run) if not as_json else ():
            screen.say(text)

    return for_each(stores, collect_one, screen)


def _stores(settings: "Settings", paths: Sequence[Path] | None, screen: Screen) -> "dict[Path, Ruled]":
    """The stores that are meant, with their runs; where there is none that is said."""
    from ckzd.daemon.pruning import ruled
    from ckzd.operations.places import places

    found = ruled(settings, places(settings.asked(paths or ())))
    if not found and not screen.as_json:
        screen.say("nothing is archived there yet")
    return found


def _roots(settings: "Settings", paths: Sequence[Path] | None) -> list[Path]:
    """The directories in which pointers may name what is to be deleted."""
    return [*(watch.path for watch in settings.watch), *filter(Path.is_dir, paths or ())]


@app.command()
def demo(*, as_json: Json = False) -> int:
    """Train, compress, kill, restore and resume, for real; takes two minutes."""
    from ckzd.demo import run_demo

    screen = Screen(as_json)

    def on_event(event: "Event") -> None:
        if as_json:
            screen.line({"event": event.who, "text": event.text, "seconds": event.seconds, **event.fields})
        else:
            screen.say(f"{event.seconds:6.1f} s  {event.who:8} {event.text}")

    report = run_demo(on_event)
    if as_json:
        screen.line({"event": "report", **report.to_dict()})
    else:
        for part in demo_report(report):
            screen.show(part) if isinstance(part, Table) else screen.say(part)
    return EXIT_DONE if report.passed else EXIT_FAILED
