"""What checks have read back of a store, and when: STORE/checked.json.

    {"version": 1, "pass_began": seconds, "pass_completed": seconds,
     "archives": {"<run>/<archive>": {"mark": [inode, size, mtime], "read": seconds, "decoded": seconds,
                                      "problem": text, "made": {...}}}}

It is memory, not truth: lost or damaged, every archive counts as read when it was written, which is when it was proven.
An entry counts only for the very file that it was written for. `made` is what an archive says of how it was made, for
when it can no longer say so itself. Whoever writes it holds the store's check lock.
"""

import json
import logging
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ckzd import durable
from ckzd.archive import Manifest
from ckzd.errors import CkzdError
from ckzd.file_marks import Mark
from ckzd.formats.foreign import MAX_JSON_BYTES, json_object, read_small
from ckzd.store import Store

log = logging.getLogger(__name__)

LEDGER_NAME = "checked.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Made:
    """How an archive was made, and what it yields."""

    preset: str
    effort: str | None
    reference: str | None
    reconstruction: str
    checkpoint: str
    carries: bool = False  # others: `reference` is what the first of them was made against

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """As the archive says."""
        ids = manifest.reference, manifest.reconstruction, manifest.checkpoint
        return cls(manifest.preset, manifest.effort, *ids, carries=bool(manifest.carried))


@dataclass(frozen=True, slots=True)
class Entry:
    """What the last check of an archive found."""

    mark: Mark
    read: float  # seconds since the epoch: when its bytes were read back
    decoded: float = 0.0  # when it was decoded; 0: never by a check
    problem: str = ""  # of its bytes; "": none
    made: Made | None = None

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `asdict`; ValueError, TypeError or KeyError for anything else."""
        made, mark = fields["made"], Mark(*map(int, fields["mark"]))
        times = _time(fields["read"]), _time(fields["decoded"])
        return cls(mark, *times, str(fields["problem"]), Made(**made) if made is not None else None)


class Ledger:
    """What is known of a store's archives; changed in memory, and written whole by `save`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entries: dict[str, Entry] = {}
        self.pass_began = 0.0  # seconds since the epoch; 0: no check has been made
        self.pass_completed = 0.0

    @classmethod
    def read(cls, store: Store) -> Self:
        """As it was last saved; empty, with a warning, if it cannot be read."""
        ledger, file = cls(store), store.root / LEDGER_NAME
        if os.access(file, os.R_OK):  # another user's is not for us
            try:
                ledger._fill(json_object(read_small(file, MAX_JSON_BYTES) or b""))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
                fields = {"path": str(file), "error": str(error)}
                log.warning("what checks have found cannot be read: it begins anew", extra=fields)
                return cls(store)
        return ledger

    def _fill(self, fields: dict[str, Any]) -> None:
        if fields["version"] != _VERSION:
            raise ValueError(f"expected version {_VERSION}, got {fields['version']!r}")
        self.pass_began, self.pass_completed = _time(fields["pass_began"]), _time(fields["pass_completed"])
        self._entries = {str(name): Entry.parse(entry) for name, entry in fields["archives"].items()}

    def save(self) -> None:
        """Write it down. A full disk or a store that is not ours costs memory, no more."""
        content = {
            "version": _VERSION,
            "pass_began": self.pass_began,
            "pass_completed": self.pass_completed,
            "archives": {name: asdict(entry) for name, entry in sorted(self._entries.items())},
        }
        try:
            with durable.write_atomically(self._store.root / LEDGER_NAME, mode=0o600) as file:
                file.write(json.dumps(content).encode())
        except (CkzdError, OSError) as error:
            log.warning("what was checked is not written down", extra={"error": str(error)})

    @property
    def last_check(self) -> float:
        """When an archive was last read back by a check; 0 if none ever was."""
        return max((entry.read for entry in self._entries.values()), default=0.0)

    @property
    def problems(self) -> int:
        """How many archives were found damaged."""
        return sum(bool(entry.problem) for entry in self._entries.values())

    def find(self, archive: Path) -> Entry | None:
        """What is known of exactly this file."""
        entry = self._entries.get(_name(archive))
        with suppress(OSError):
            if entry is not None and entry.mark == Mark.of(archive.lstat()):
                return entry
        return None

    def problem_of(self, archive: Path) -> str:
        """What the last check of exactly this file said of its bytes; "" if nothing, or nobody has checked it."""
        entry = self.find(archive)
        return entry.problem if entry is not None else ""

    def made(self, archive: Path) -> Made | None:
        """How the archive of this name was made, whatever lies there now."""
        entry = self._entries.get(_name(archive))
        return entry.made if entry is not None else None

    def last_read(self, archive: Path, now: float) -> float:
        """When its bytes were last read back: by a check, or when it was proven. 0 if its time lies in the future."""
        entry = self.find(archive)
        try:
            read = entry.read if entry is not None else archive.lstat().st_mtime
        except OSError:
            return 0.0
        return read if read <= now else 0.0

    def last_decoded(self, archive: Path, now: float) -> float:
        """When it was last decoded by a check."""
        entry = self.find(archive)
        return entry.decoded if entry is not None and entry.decoded <= now else 0.0

    def note(self, archive: Path, now: float, *, problem: str = "", made: Made | None, decoded: bool = False) -> None:
        """It was read back (and decoded) now, and this was wrong with it."""
        with suppress(FileNotFoundError):
            before = self.find(archive)
            when = now if decoded else before.decoded if before is not None else 0.0
            made = made or self.made(archive)
            self._entries[_name(archive)] = Entry(Mark.of(archive.lstat()), now, when, problem, made)

    def forget_gone(self) -> None:
        """Of archives that are not there any more nothing needs to be known."""
        archives = self._store.root / "archives"
        self._entries = {name: entry for name, entry in self._entries.items() if os.path.lexists(archives / name)}

    def begin(self, now: float) -> None:
        """A check begins, with it the first pass."""
        if not self.pass_began:
            self.pass_began = now

    def finish_pass(self, archives: Iterable[Path], now: float) -> None:
        """A pass is complete when every archive was read back since it began; then the next one begins."""
        if all(self.last_read(archive, now) >= self.pass_began for archive in archives):
            self.pass_completed = self.pass_began = now

    def progress(self, archives: Iterable[Path], now: float) -> float:
        """Share of the archives that were read back since this pass began; 0 where no check was ever made."""
        if not self.pass_began:
            return 0.0
        read = [self.last_read(archive, now) >= self.pass_began for archive in archives]
        return sum(read) / len(read) if read else 1.0


def _name(archive: Path) -> str:
    """Its run's directory and itself: the store may move."""
    return f"{archive.parent.name}/{archive.name}"


def _time(value: Any) -> float:
    """Seconds since the epoch; ValueError or TypeError for what is none."""
    if not math.isfinite(number := float(value)):
        raise ValueError(f"expected a time, got {value!r}")
    return number
