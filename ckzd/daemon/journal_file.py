"""The journal's file: opened, checked, read. Rows and names as SQLite keeps them.

Whatever is not as ckzd writes it (one flipped bit is enough) makes the file a damaged one: it is put aside, a new one
is begun, and the stores tell it all again.
"""

import logging
import math
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from ckzd import durable
from ckzd.daemon.identity import Identity
from ckzd.daemon.states import Row, State
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
_PLACES = ("run", "path", "archive", "reference")
_FACTS = ("ino", "size", "mtime_ns", "state", "step", "error", "in_place_of_replaced")
_COUNTS = ("number", "attempts", "crashes", "original_bytes", "archive_bytes", "reclaimed_bytes")
_SECONDS = ("not_before", "seconds", "first_seen", "changed")
_COLUMNS = (*_PLACES, *_FACTS, *_COUNTS, *_SECONDS)
_STATES = frozenset(State)
SELECT = f"SELECT {', '.join(_COLUMNS)} FROM checkpoints"  # noqa: S608  # our own names
_DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)  # the latter: SQLite repeats bytes of the file in what it says
_NOT_DAMAGE = frozenset(  # the file may be whole: it cannot be got at now
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM}
    | {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH}
)


def read_only(path: Path) -> list[Row]:
    """The rows of a journal that another process may be writing; [] when there is none.

    ConfigError for one that cannot be read: the daemon would put it aside at its next start.
    """
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as database:
            return [row_of(found) for found in database.execute(f"{SELECT} ORDER BY number")]
    except _DAMAGE as error:
        raise ConfigError(path, f"cannot be read: {error}", hint="`ckzd serve` rebuilds it from the stores") from error


def connect(path: Path) -> sqlite3.Connection:
    """Open or create; a damaged file is put aside and a new one begun, because the store tells it all again."""
    try:
        return _open(path)
    except _DAMAGE as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_DAMAGE:  # the low byte; the others say more
            raise ConfigError("daemon.state_dir", f"{path} cannot be opened: {error}") from error
        aside = path.with_name(f"{path.name}.damaged")
        log.error(  # noqa: TRY400  # the place in our code says nothing of the damage
            "journal is damaged: put aside, rebuilt from the stores", extra={"path": str(aside), "error": str(error)}
        )
        for end in ("-wal", "-shm", "-journal"):  # none of them is of the new one
            durable.remove(path.with_name(path.name + end))
        durable.overwrite(path, aside)
        return _open(path)


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
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
    """DatabaseError unless this module has written all of it; ConfigError if a newer one has."""
    problems = [found[0] for found in database.execute("PRAGMA integrity_check(1)")]
    if problems != ["ok"]:
        raise sqlite3.DatabaseError("; ".join(problems))
    schema = _schema(database)
    if not schema:  # just created
        return
    (version,) = database.execute("PRAGMA user_version").fetchone()
    with closing(sqlite3.connect(":memory:")) as ours:
        ours.executescript(_SCHEMA)
        if schema != _schema(ours):
            if version > SCHEMA_VERSION:
                problem = f"expected a journal of version {SCHEMA_VERSION} or older, got {version}"
                raise ConfigError(path, problem, hint="use the newer ckzd, or another daemon.state_dir")
            raise sqlite3.DatabaseError("its tables are not those of ckzd")
    for found in database.execute(SELECT):
        row_of(found)


def _schema(database: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Its tables and indexes. A newer version has others."""
    return database.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()


def identity_to_sql(identity: Identity) -> tuple[int, int, int]:
    """SQLite integers have a sign, inode numbers have none."""
    ino = identity.ino - (1 << 64) if identity.ino >= 1 << 63 else identity.ino
    return ino, identity.size, identity.mtime_ns


def to_sql(path: Path) -> str | bytes:
    """As SQLite can keep it: a name that is no UTF-8 is no text to it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return str(path)


def path_of(value: object) -> Path:
    """The inverse of `to_sql`; DatabaseError for what it cannot have given."""
    path = Path(os.fsdecode(value)) if isinstance(value, str | bytes) else Path()
    _require(path.is_absolute(), value)
    return path


def row_of(found: tuple[Any, ...]) -> Row:
    """A row of `SELECT` as it was written; DatabaseError for any other."""
    values = dict(zip(_COLUMNS, found, strict=True))
    integers = [values[name] for name in (*_COUNTS, "in_place_of_replaced", "size")]
    integers += [] if values["step"] is None else [values["step"]]
    _require(all(type(value) is int and value >= 0 for value in integers), values)
    _require(type(values["ino"]) is int and type(values["mtime_ns"]) is int, values)
    _require(all(type(values[name]) is float and math.isfinite(values[name]) for name in _SECONDS), values)
    _require(values["state"] in _STATES and type(values["error"]) is str, values)
    identity = Identity(values.pop("ino") % (1 << 64), values.pop("size"), values.pop("mtime_ns"))
    values |= {name: path_of(values[name]) for name in _PLACES if name in _PLACES[:2] or values[name] is not None}
    values |= {"state": State(values["state"]), "in_place_of_replaced": bool(values["in_place_of_replaced"])}
    return Row(identity=identity, **values)


def _require(right: bool, value: object) -> None:  # noqa: FBT001
    if not right:
        raise sqlite3.DatabaseError(f"a row that ckzd has not written: {value!a:.300}")
