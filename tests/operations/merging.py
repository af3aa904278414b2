"""A real chain to merge, and what harms an archive of it."""

import shutil
import time
from pathlib import Path

from serving import write_checkpoint

from ckzd.chains import read_manifest
from ckzd.operations.merge import Merged, merge
from ckzd.operations.prune import Run
from ckzd.retention import Rules
from ckzd.store import Store

GOLDEN = Path(__file__).parent.parent / "golden" / "format_8"
DAY = "2026-11-30"


def chain_in(store: Store, run: Path, preset: str = "resume") -> list[Path]:
    """A real chain of three with moments, base first, of a run in which something stands."""
    place = store.archive_path(run, "x", "0" * 64).parent
    found = [Path(shutil.copy(path, place / path.name)) for path in sorted((GOLDEN / preset).glob("*.ckz"))]
    write_checkpoint(run / "step_900.pt")
    return sorted(found, key=lambda path: read_manifest(path).depth)


def merged(store: Store, run: Path, *named: Path, rules: Rules | None = None, dry_run: bool = False) -> list[Merged]:
    """Merge what is named, or what the rules let go; `run` is all that is looked through."""
    return list(merge(store, Run(run, run, rules), named, day=DAY, now=time.time(), roots=[run], dry_run=dry_run))


def stopped_before_it_went(store: Store, run: Path, aside: Path) -> list[Path]:
    """The chain after a merge of the one in the middle that was killed at last: that is still there."""
    archives = chain_in(store, run)
    copy = shutil.copy(archives[1], aside / "copy")
    merged(store, run, archives[1])
    shutil.copy(copy, archives[1])
    return archives


def rot(archive: Path) -> None:
    """A bit flips: in what is carried, if anything is."""
    whole = archive.read_bytes()
    archive.write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:])


def cut(archive: Path) -> None:
    """Its end is gone, and what it says of itself with it."""
    archive.write_bytes(archive.read_bytes()[:-9])
