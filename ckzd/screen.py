"""What a person or a program sees: results on standard output, progress, warnings and errors on standard error."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ckzd.errors import CkzdError
from ckzd.stages import Stage

PIPE_WIDTH = 200  # columns of a table that nobody's terminal cuts
_RECORD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__)
STAGES = {  # as a person reads them
    Stage.READ: "reading",
    Stage.ENCODE: "encoding",
    Stage.WRITTEN: "written",
    Stage.VERIFIED: "verified",
    Stage.ACCEPT: "asking the accept command",
    Stage.ACCEPTED: "accepted",
    Stage.PUBLISH: "publishing",
    Stage.REPLACED: "replaced",
}


@dataclass(frozen=True)
class Screen:
    """Standard output and standard error, for a person or for a program."""

    as_json: bool

    def line(self, fields: Mapping[str, Any]) -> None:
        """One JSON object on standard output, at once."""
        print(json.dumps(fields, default=str), flush=True)  # noqa: T201  # results are what this program prints

    def say(self, text: str) -> None:
        """One line for a person."""
        Console(soft_wrap=True, highlight=False).print(text, markup=False)

    def show(self, table: Table) -> None:
        """A table for a person; in a pipe it is not cut at 80 columns."""
        Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)

    def error(self, error: CkzdError) -> int:
        """Report an error; returns its exit code."""
        if self.as_json:
            fields = {"error": type(error).__name__, "subject": error.subject, "problem": error.problem}
            text = json.dumps({**fields, "hint": error.hint, "exit_code": error.exit_code})
        else:
            said = f"error: {error.subject}: {error.problem}", f"hint: {error.hint}" if error.hint else ""
            text = "\n".join(printable(line) for line in said if line)
        print(text, file=sys.stderr, flush=True)  # noqa: T201
        return error.exit_code

    @contextmanager
    def progress(self) -> Iterator["Bar"]:
        """A bar on a terminal; nothing in a pipe, and nothing beside JSON. Warnings meanwhile go to standard error."""
        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        visible = console.is_terminal and not self.as_json
        log, handler = logging.getLogger("ckzd"), _Warnings(self)
        log.addHandler(handler)
        try:
            with Progress(*columns, console=console, transient=True, disable=not visible) as progress:
                yield Bar(progress)
        finally:
            log.removeHandler(handler)


class _Warnings(logging.Handler):
    """What the layers below warn of, as a line or a JSON object on standard error."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Say the message and the fields that came with it."""
        fields = {name: value for name, value in record.__dict__.items() if name not in _RECORD_FIELDS}
        if self._screen.as_json:
            text = json.dumps({"warning": record.getMessage(), **fields}, default=str)
        else:
            told = ", ".join(f"{name} {value}" for name, value in fields.items())
            text = printable(f"warning: {record.getMessage()}" + (f" ({told})" if told else ""))
        print(text, file=sys.stderr, flush=True)  # noqa: T201


class Bar:
    """The progress of one file after the other."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=1.0)
        self._name = ""

    def start(self, name: str) -> None:
        """Begin with the next one."""
        self._name = name
        self._progress.reset(self._task, description=name)

    def stage(self, stage: Stage, fraction: float) -> None:
        """`stage` is `fraction` done."""
        self._progress.update(self._task, completed=fraction, description=f"{self._name}: {STAGES[stage]}")

    def fraction(self, fraction: float) -> None:
        """`fraction` is done."""
        self._progress.update(self._task, completed=fraction)


def printable(text: str) -> str:
    """One line that a terminal shows as it is: paths may hold line breaks and escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table_of(*headings: str) -> Table:
    """A table with the first column to the left and the others to the right."""
    table = Table(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    return table
