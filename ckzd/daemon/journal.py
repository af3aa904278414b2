"""What the daemon knows of every checkpoint, in SQLite on local disk; each step is durable when its method returns.

The disk is the truth, the journal is memory: losing it costs time (`import_archive` fills it from the store),
never data. A checkpoint is told apart by (path, ino, size, mtime_ns); a rewritten step is a new row.
One connection, one thread: the service's.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ckzd.daemon.identity import Identity
from ckzd.daemon.journal_file import SELECT, connect, identity_to_sql, path_of, row_of, to_sql
from ckzd.daemon.states import ARCHIVED, MOVES, RUNNING, Row, State

MAX_ROWS_AT_HAND = 20_000  # some 1.5 kB each


class Journal:
    """The table of checkpoints; every method is one transaction and may be repeated."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = connect(path)
        self._row = lru_cache(MAX_ROWS_AT_HAND)(row_of)  # most rows are as they were when they were last asked for

    def close(self) -> None:
        """Close the database; the journal cannot be used after it."""
        self._database.close()

    # -- reading ------------------------------------------------------------------------------------------------

    def rows(self, *, run: Path | None = None, states: Collection[State] | None = None) -> list[Row]:
        """The rows of a run (or all), in these states (or any), oldest first."""
        where: list[str] = ["1"]
        values: list[str | bytes] = []
        if run is not None:
            where.append("run = ?")
            values.append(to_sql(run))
        if states is not None:
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values.extend(states)
        # placeholders only: no value is ever part of the text
        query = f"{SELECT} WHERE {' AND '.join(where)} ORDER BY number"
        return [self._row(found) for found in self._database.execute(query, values)]

    def row(self, number: int) -> Row:
        """One row by its number; KeyError when it was forgotten."""
        found = self._database.execute(f"{SELECT} WHERE number = ?", (number,)).fetchone()
        if found is None:
            raise KeyError(number)
        return self._row(found)

    def find(self, path: Path, identity: Identity) -> Row | None:
        """The row of exactly this checkpoint."""
        query = f"{SELECT} WHERE path = ? AND ino = ? AND size = ? AND mtime_ns = ?"
        found = self._database.execute(query, (to_sql(path), *identity_to_sql(identity))).fetchone()
        return self._row(found) if found else None

    def runs(self) -> list[Path]:
        """Every run that has rows."""
        return [path_of(run) for (run,) in self._database.execute("SELECT DISTINCT run FROM checkpoints")]

    # -- the life of a checkpoint -------------------------------------------------------------------------------

    def see(self, run: Path, path: Path, identity: Identity, now: float) -> Row:
        """A checkpoint stands at `path`. An older one of another identity is gone: forgotten, or rotated."""
        with self._transaction():
            known = map(self._row, self._database.execute(f"{SELECT} WHERE path = ?", (to_sql(path),)))
            older = [row for row in known if row.run == run and row.identity != identity]
            was_replaced = any(row.state is State.REPLACED or row.in_place_of_replaced for row in older)
            for row in older:
                self._leave(row, now)
            place = {"run": to_sql(run), "path": to_sql(path), "state": State.SEEN, "original_bytes": identity.size}
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
        named = None if reference is None else to_sql(reference)
        found = {"archive": to_sql(archive), "reference": named, "archive_bytes": nbytes, "seconds": seconds}
        self._set(number, state, now, **found, error="", attempts=0, crashes=0, not_before=0.0)
        with self._transaction():  # it is what was replaced: one archive, one row
            query = "DELETE FROM checkpoints WHERE archive = ? AND state = ? AND number != ?"
            self._database.execute(query, (to_sql(archive), State.ROTATED, number))

    def replaced(self, number: int, now: float, reclaimed_bytes: int) -> None:
        """The original has made way for its pointer."""
        self._set(number, State.REPLACED, now, reclaimed_bytes=max(0, reclaimed_bytes), error="", not_before=0.0)

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

    def resized(self, number: int, archive_bytes: int) -> None:
        """Its archive was made smaller."""
        with self._transaction():
            query = "UPDATE checkpoints SET archive_bytes = ? WHERE number = ?"
            self._database.execute(query, (archive_bytes, number))

    def import_archive(
        self, run: Path, path: Path, identity: Identity, *, archive: Path, step: int | None, archive_bytes: int,
        replaced: bool, now: float,
    ) -> None:  # fmt: skip
        """Rebuild a row from the store: `identity` is that of the original, as far as the manifest tells."""
        state = State.REPLACED if replaced else State.ROTATED
        reclaimed = max(0, identity.size - archive_bytes) if replaced else 0
        values: dict[str, Any] = {
            "run": to_sql(run), "path": to_sql(path), "state": state, "step": step, "archive": to_sql(archive),
            "original_bytes": identity.size, "archive_bytes": archive_bytes, "reclaimed_bytes": reclaimed,
        }  # fmt: skip
        with self._transaction():
            self._insert(identity, now, values)

    # -- inside -------------------------------------------------------------------------------------------------

    def _insert(self, identity: Identity, now: float, values: dict[str, Any]) -> None:
        ino, size, mtime_ns = identity_to_sql(identity)
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
    def together(self) -> Iterator[None]:
        """Steps that become durable at once, when the block ends: one wait for the disk for all of them."""
        with self._transaction():
            yield

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._database.in_transaction:
            yield
            return
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")
