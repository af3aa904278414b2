"""What the daemon knows of every checkpoint, in SQLite on local disk; each step is durable when its method returns.

The disk is the truth, the journal is memory: losing it costs time (`import_archive` fills it from the store),
never data. A checkpoint is told apart by (path, ino, size, mtime_ns); a rewritten step is a new row.
One connection, one thread: the service's.
"""

import logging
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckzd import durable
from ckzd.daemon.identity import Identity
from ckzd.daemon.states import ARCHIVED, MOVES, RUNNING, Row, State
from ckzd.errors import ConfigError

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS checkpoints (
  number INTEGER PRIMARY KEY,
  run TEXT NOT NULL, path TEXT NOT NULL,
  ino INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  state TEXT NOT NULL,
  step INTEGER,
  attempts INTEGER NOT NULL DEFAULT 0,
  crashes INTEGER NOT NULL DEFAULT 0,
  not_before REAL NOT NULL DEFAULT 0,
  error TEXT NOT NULL DEFAULT '',
  in_place_of_replaced INTEGER NOT NULL DEFAULT 0,
  archive TEXT, reference TEXT,
  original_bytes INTEGER NOT NULL DEFAULT 0,
  archive_bytes INTEGER NOT NULL DEFAULT 0,
  reclaimed_bytes INTEGER NOT NULL DEFAULT 0,
  seconds REAL NOT NULL DEFAULT 0,
  first_seen REAL NOT NULL, changed REAL NOT NULL,
  UNIQUE (path, ino, size, mtime_ns)
);
CREATE INDEX IF NOT EXISTS checkpoints_by_run ON checkpoints (run, state);
"""


class Journal:
    """The table of checkpoints; every method is one transaction and may be repeated."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = _connect(path)

    def close(self) -> None:
        """Close the database; the journal cannot be used after it."""
        self._database.close()

    # -- reading ------------------------------------------------------------------------------------------------

    def rows(self, *, run: Path | None = None, states: Collection[State] | None = None) -> list[Row]:
        """The rows of a run (or all), in these states (or any), oldest first."""
        where, values = ["1"], []
        if run is not None:
            where.append("run = ?")
            values.append(str(run))
        if states is not None:
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values.extend(states)
        # placeholders only: no value is ever part of the text
        query = f"SELECT * FROM checkpoints WHERE {' AND '.join(where)} ORDER BY number"  # noqa: S608
        return [_row(found) for found in self._database.execute(query, values)]

    def row(self, number: int) -> Row:
        """One row by its number; KeyError when it was forgotten."""
        found = self._database.execute("SELECT * FROM checkpoints WHERE number = ?", (number,)).fetchone()
        if found is None:
            raise KeyError(number)
        return _row(found)

    def find(self, path: Path, identity: Identity) -> Row | None:
        """The row of exactly this checkpoint."""
        query = "SELECT * FROM checkpoints WHERE path = ? AND ino = ? AND size = ? AND mtime_ns = ?"
        found = self._database.execute(query, (str(path), *_identity(identity))).fetchone()
        return _row(found) if found else None

    # -- the life of a checkpoint -------------------------------------------------------------------------------

    def see(self, run: Path, path: Path, identity: Identity, now: float) -> Row:
        """A checkpoint stands at `path`. An older one of another identity is gone: forgotten, or rotated."""
        with self._transaction():
            older = [row for row in self.rows(run=run) if row.path == path and row.identity != identity]
            was_replaced = any(row.state is State.REPLACED or row.in_place_of_replaced for row in older)
            for row in older:
                self._leave(row, now)
            place = {"run": str(run), "path": str(path), "state": State.SEEN, "original_bytes": identity.size}
            self._insert(identity, now, {**place, "in_place_of_replaced": was_replaced})
            found = self.find(path, identity)
            assert found is not None
            if found.state is State.ROTATED:  # it came back: a file server was away, or somebody moved it
                self._move(found, State.SETTLED, now)
        return self.row(found.number)

    def settled(self, number: int, step: int | None, now: float) -> None:
        """It is complete and has stopped changing."""
        self._set(number, State.SETTLED, now, step=step)

    def encoding(self, number: int, now: float) -> None:
        """A worker is about to begin. Should we never hear the end of it, `on_start` counts a crash."""
        self._set(number, State.ENCODING, now)

    def give_back(self, number: int, now: float, *, not_before: float = 0.0) -> None:
        """The job was ended by us, or failed for reasons that are not the checkpoint's: that does not count."""
        self._set(number, State.SETTLED, now, not_before=not_before)

    def written(self, number: int, now: float) -> None:
        """The archive is on disk, not verified yet."""
        self._set(number, State.WRITTEN, now)

    def verified(
        self,
        number: int,
        now: float,
        *,
        archive: Path,
        reference: Path | None,
        nbytes: int,
        seconds: float,
        again: bool,
    ) -> None:
        """The archive is durable, read back and decoded. `again`: archived before, this is a restored copy."""
        state = State.RESTORED if again else State.VERIFIED
        named = None if reference is None else str(reference)
        found = {"archive": str(archive), "reference": named, "archive_bytes": nbytes, "seconds": seconds}
        self._set(number, state, now, **found, error="", attempts=0, crashes=0, not_before=0.0)
        with self._transaction():  # it is what was replaced: one archive, one row
            query = "DELETE FROM checkpoints WHERE archive = ? AND state = ? AND number != ?"
            self._database.execute(query, (str(archive), State.ROTATED, number))

    def replaced(self, number: int, now: float, reclaimed_bytes: int) -> None:
        """The original has made way for its pointer."""
        self._set(number, State.REPLACED, now, reclaimed_bytes=reclaimed_bytes, error="", not_before=0.0)

    def stands_again(self, number: int, now: float) -> None:
        """The replaced original was put back by hand."""
        self._set(number, State.RESTORED, now, reclaimed_bytes=0)

    def failed(self, number: int, now: float, error: str, not_before: float) -> None:
        """An attempt failed, by an error or the death of the worker; the next may begin at `not_before`."""
        attempts = self.row(number).attempts + 1
        self._set(number, State.FAILED, now, error=error, not_before=not_before, attempts=attempts)

    def quarantined(self, number: int, now: float, error: str) -> None:
        """No more attempts until the checkpoint is rewritten (or touched)."""
        self._set(number, State.QUARANTINED, now, error=error, attempts=self.row(number).attempts + 1)

    def skipped(self, number: int, now: float) -> None:
        """Left raw: too many newer ones wait."""
        self._set(number, State.SKIPPED, now)

    def taken_back(self, number: int, now: float) -> None:
        """To be compressed (again): a skipped one has its turn, or an archive is no longer where it was."""
        self._set(number, State.SETTLED, now)

    def note(self, number: int, error: str, not_before: float) -> None:
        """Keep the state, remember an error (a replacement that was refused) and when to look again."""
        with self._transaction():
            self._database.execute(
                "UPDATE checkpoints SET error = ?, not_before = ? WHERE number = ?", (error, not_before, number)
            )

    def gone(self, number: int, now: float) -> Row | None:
        """Neither it nor its pointer is there any more: the row of an archived one stays, as rotated."""
        with self._transaction():
            return self._leave(self.row(number), now)

    def on_start(self, now: float) -> list[Row]:
        """Undo what a crash interrupted: jobs that were running wait again, one crash richer."""
        interrupted = self.rows(states=RUNNING)
        for row in interrupted:
            self._set(row.number, State.SETTLED, now, crashes=row.crashes + 1)
        return [self.row(row.number) for row in interrupted]

    def put_off(self, number: int, now: float, error: str, not_before: float) -> None:
        """It waits for a while, and is not to blame yet."""
        self._set(number, State.FAILED, now, error=error, not_before=not_before)

    def forget(self, number: int) -> None:
        """Its archive was dropped: nothing is left of it."""
        with self._transaction():
            self._database.execute("DELETE FROM checkpoints WHERE number = ?", (number,))

    def import_archive(
        self, run: Path, path: Path, identity: Identity, *, archive: Path, step: int | None, archive_bytes: int,
        replaced: bool, now: float,
    ) -> None:  # fmt: skip
        """Rebuild a row from the store: `identity` is that of the original, as far as the manifest tells."""
        state = State.REPLACED if replaced else State.ROTATED
        reclaimed = max(0, identity.size - archive_bytes) if replaced else 0
        values: dict[str, Any] = {
            "run": str(run), "path": str(path), "state": state, "step": step, "archive": str(archive),
            "original_bytes": identity.size, "archive_bytes": archive_bytes, "reclaimed_bytes": reclaimed,
        }  # fmt: skip
        with self._transaction():
            self._insert(identity, now, values)

    # -- inside -------------------------------------------------------------------------------------------------

    def _insert(self, identity: Identity, now: float, values: dict[str, Any]) -> None:
        ino, size, mtime_ns = _identity(identity)
        values = {**values, "ino": ino, "size": size, "mtime_ns": mtime_ns, "first_seen": now, "changed": now}
        query = f"INSERT OR IGNORE INTO checkpoints ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"  # noqa: S608  # our own names
        self._database.execute(query, tuple(values.values()))

    def _leave(self, row: Row, now: float) -> Row | None:
        if row.state not in ARCHIVED:
            self._database.execute("DELETE FROM checkpoints WHERE number = ?", (row.number,))
            return None
        self._move(row, State.ROTATED, now)
        return self.row(row.number)

    def _set(self, number: int, state: State, now: float, **values: Any) -> None:
        with self._transaction():
            self._move(self.row(number), state, now, **values)

    def _move(self, row: Row, state: State, now: float, **values: Any) -> None:
        if state is not row.state and state not in MOVES[row.state]:
            raise AssertionError(f"journal row {row.number} ({row.path}): no way from {row.state} to {state}")
        values |= {"state": state, "changed": now}
        assignments = ", ".join(f"{column} = ?" for column in values)
        query = f"UPDATE checkpoints SET {assignments} WHERE number = ?"  # noqa: S608  # our own column names
        self._database.execute(query, (*values.values(), row.number))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def read_only(path: Path) -> list[Row]:
    """The rows of a journal that another process may be writing; [] when there is none."""
    if not path.exists():
        return []
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
    try:
        database.row_factory = sqlite3.Row
        return [_row(found) for found in database.execute("SELECT * FROM checkpoints ORDER BY number")]
    except sqlite3.DatabaseError:
        return []
    finally:
        database.close()


def _connect(path: Path) -> sqlite3.Connection:
    """Open or create; a damaged file is put aside and a new one begun, because the store tells it all again."""
    try:
        return _open(path)
    except sqlite3.DatabaseError as error:
        aside = path.with_name(f"{path.name}.damaged")
        log.exception(
            "journal is damaged: put aside, rebuilt from the stores", extra={"path": str(aside)}, exc_info=error
        )
        for leftover in (path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            if leftover.exists():
                durable.remove(leftover)
        durable.rename(path, aside)
        return _open(path)


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        _check(database, path)
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection, path: Path) -> None:
    problems = [found[0] for found in database.execute("PRAGMA quick_check")]
    if problems != ["ok"]:
        raise sqlite3.DatabaseError("; ".join(problems))
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        problem = f"expected a journal of version {SCHEMA_VERSION} or older, got {version}"
        raise ConfigError(path, problem, hint="use the newer ckzd, or another daemon.state_dir")


def _identity(identity: Identity) -> tuple[int, int, int]:
    """SQLite integers have a sign, inode numbers have none."""
    ino = identity.ino - (1 << 64) if identity.ino >= 1 << 63 else identity.ino
    return ino, identity.size, identity.mtime_ns


def _row(found: sqlite3.Row) -> Row:
    values = dict(found)
    identity = Identity(values.pop("ino") % (1 << 64), values.pop("size"), values.pop("mtime_ns"))
    for name in ("archive", "reference"):
        values[name] = None if values[name] is None else Path(values[name])
    values |= {"run": Path(values["run"]), "path": Path(values["path"]), "state": State(values["state"])}
    values["in_place_of_replaced"] = bool(values["in_place_of_replaced"])
    return Row(identity=identity, **values)
