"""The table of DESIGN.md that says what every name on disk means, and which of its rows a path is of."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DESIGN = Path(__file__).parent.parent / "ckzd" / "DESIGN.md"
PROCESS = r"[0-9a-f]{8}-\d+-\d+-\d+-[0-9a-f]+"  # boot, namespace, pid, start, and a token
HELD_WHOLE = (  # what lies in these is what a trainer wrote, or is of one that is being written
    "STORE/trash/*/held/*", "STORE/tmp/<process>.accept", "STORE/tmp/<process>.entry", "STORE/tmp/<process>.pruned",
    "STORE/tmp/<process>.restore", "RUN/.ckzd-<process>.tmp", "RUN/*",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A name, and what becomes of it after a crash."""

    name: str
    crash: str

    def is_of(self, path: str) -> bool:
        """Whether a path that begins with STORE, RUN or STATE has this name; in a checkpoint every name is its own."""
        pattern = re.escape(self.name).replace("<process>", PROCESS)
        start = ".+" if self.name.startswith("*/") else ""
        pattern = start + pattern.removeprefix(r"\*" if start else "").replace(r"\*", "[^/]+")
        return re.fullmatch(pattern + ("(/.+)?" if self.name in HELD_WHOLE else ""), path) is not None


def table(section: str, heading: str) -> list[list[str]]:
    """The cells of the table in a section of DESIGN.md whose first column is called so."""
    text = DESIGN.read_text().split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    lines = text.split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


ROWS = [Row(cells[0].strip("`"), cells[-1]) for cells in table("On disk", "name")]


def rows_of(path: str) -> list[Row]:
    """All that it may be. No name that begins as ours do is a trainer's."""
    found = [row for row in ROWS if row.is_of(path)]
    is_ours = re.search(r"(^|/)\.ckzd", path) is not None
    return [row for row in found if row.name != "RUN/*" or not is_ours]


def named(roots: Mapping[str, Path]) -> Iterator[str]:
    """What lies in a store, runs and a state directory now, each path with the word that stands for where it is.

    `roots`: "STORE", "RUN" or "STATE" -> directory. One may lie in another.
    """
    for word, root in roots.items():
        apart = [other for other in roots.values() if other != root and other.is_relative_to(root)]
        yield from (f"{word}/{path}" for path in _below(root, root, apart))


def _below(root: Path, place: Path, apart: Iterable[Path]) -> Iterator[str]:
    try:
        found = sorted(place.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # just gone, or never there
        return
    for path in found:
        if path not in apart and path.name != ".ckzd":
            yield path.relative_to(root).as_posix()
            if path.is_dir() and not path.is_symlink():
                yield from _below(root, path, apart)


def unnamed(roots: Mapping[str, Path]) -> list[str]:
    """What lies there and is in no row."""
    return [path for path in named(roots) if not rows_of(path)]
