"""The journal keeps every step across crashes, and losing it costs nothing but time."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ckzd.daemon.identity import Identity, fingerprint
from ckzd.daemon.journal import Journal
from ckzd.daemon.journal_file import read_only
from ckzd.daemon.states import MOVES, State
from ckzd.errors import CkzdError, ConfigError

RUN = Path("/ckpts/run")
STEP = RUN / "step_100.pt"
FIRST, SECOND = Identity(7, 1000, 5), Identity(8, 1000, 6)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "state" / "journal.sqlite3"


@pytest.fixture
def journal(file):
    opened = Journal(file)
    yield opened
    opened.close()


def archive(journal: Journal, number: int, now: float = 3.0, *, again: bool = False) -> None:
    journal.settled(number, 100, now)
    journal.encoding(number, now)
    journal.written(number, now)
    journal.verified(number, now, archive=Path("/store/a.ckz"), reference=None, nbytes=10, seconds=2.0, again=again)


def test_the_whole_life_of_a_checkpoint(journal):
    row = journal.see(RUN, STEP, FIRST, now=1.0)
    archive(journal, row.number)
    journal.replaced(row.number, 4.0, reclaimed_bytes=990)

    (row,) = journal.rows(run=RUN)
    assert (row.state, row.step, row.attempts, row.reclaimed_bytes) == (State.REPLACED, 100, 0, 990)
    assert (row.archive, row.reference, row.archive_bytes) == (Path("/store/a.ckz"), None, 10)
    assert (row.first_seen, row.changed) == (1.0, 4.0)


def test_seeing_it_again_changes_nothing(journal):
    first = journal.see(RUN, STEP, FIRST, now=1.0)

    assert journal.see(RUN, STEP, FIRST, now=9.0) == first


def test_every_step_may_be_repeated(journal):
    row = journal.see(RUN, STEP, FIRST, now=1.0)
    for _ in range(2):
        journal.settled(row.number, 100, 2.0)
    journal.encoding(row.number, 2.0)
    for _ in range(2):
        journal.written(row.number, 2.0)
    for _ in range(2):
        journal.verified(row.number, 3.0, archive=Path("/a"), reference=None, nbytes=1, seconds=1.0, again=False)
    for _ in range(2):
        journal.replaced(row.number, 4.0, 5)

    assert journal.row(row.number).state is State.REPLACED


def test_a_step_that_was_not_verified_cannot_be_replaced(journal):
    row = journal.see(RUN, STEP, FIRST, now=1.0)
    journal.settled(row.number, 100, 1.0)
    journal.encoding(row.number, 1.0)

    with pytest.raises(AssertionError, match="no way from encoding to replaced"):
        journal.replaced(row.number, 2.0, 1)


def test_nothing_becomes_replaced_but_what_is_archived():
    before = {state for state, moves in MOVES.items() if State.REPLACED in moves}

    assert before == {State.VERIFIED, State.RESTORED}


def test_a_rewritten_step_is_a_new_job_and_the_unarchived_old_one_is_forgotten(journal):
    journal.see(RUN, STEP, FIRST, now=1.0)
    journal.see(RUN, STEP, SECOND, now=2.0)

    (row,) = journal.rows()
    assert (row.identity, row.state) == (SECOND, State.SEEN)


def test_a_rewritten_step_leaves_the_archive_of_the_old_one(journal):
    old = journal.see(RUN, STEP, FIRST, now=1.0)
    archive(journal, old.number)
    new = journal.see(RUN, STEP, SECOND, now=5.0)

    assert journal.row(old.number).state is State.ROTATED
    assert (new.state, new.in_place_of_replaced) == (State.SEEN, False)


def test_what_stands_in_the_place_of_a_replaced_one_is_known_as_such(journal):
    old = journal.see(RUN, STEP, FIRST, now=1.0)
    archive(journal, old.number)
    journal.replaced(old.number, 4.0, 990)
    new = journal.see(RUN, STEP, SECOND, now=5.0)
    assert new.in_place_of_replaced
    archive(journal, new.number, again=True)

    assert [(row.number, row.state) for row in journal.rows()] == [(new.number, State.RESTORED)]
    assert old.number != new.number


def test_a_checkpoint_that_comes_back_is_looked_at_again(journal):
    row = journal.see(RUN, STEP, FIRST, now=1.0)
    archive(journal, row.number)
    assert journal.gone(row.number, 5.0).state is State.ROTATED

    assert journal.see(RUN, STEP, FIRST, now=6.0).state is State.SETTLED


def test_a_vanished_checkpoint_that_was_never_archived_is_forgotten(journal):
    row = journal.see(RUN, STEP, FIRST, now=1.0)

    assert journal.gone(row.number, 2.0) is None
    assert journal.rows() == []


def test_attempts_and_back_off_survive_a_restart(journal, file):
    row = journal.see(RUN, STEP, FIRST, now=1.0)
    journal.settled(row.number, 100, 2.0)
    journal.encoding(row.number, 3.0)
    journal.failed(row.number, 4.0, "boom", not_before=34.0)
    journal.close()

    again = Journal(file)
    found = again.row(row.number)
    again.close()
    assert (found.state, found.attempts, found.not_before, found.error) == (State.FAILED, 1, 34.0, "boom")


def test_an_attempt_that_we_ended_does_not_count(journal):
    row = journal.see(RUN, STEP, FIRST, now=1.0)
    journal.settled(row.number, 100, 2.0)
    journal.encoding(row.number, 3.0)
    journal.give_back(row.number, 4.0)
    assert journal.on_start(5.0) == []

    assert (journal.row(row.number).state, journal.row(row.number).attempts) == (State.SETTLED, 0)


@pytest.mark.parametrize("stage", ["encoding", "written"])
def test_a_job_that_a_crash_interrupted_waits_again_and_the_crash_is_counted(file, stage):
    script = f"""
import os, signal
from pathlib import Path
from ckzd.daemon.identity import Identity
from ckzd.daemon.journal import Journal
journal = Journal(Path({str(file)!r}))
row = journal.see(Path({str(RUN)!r}), Path({str(STEP)!r}), Identity(7, 1000, 5), 1.0)
journal.settled(row.number, 100, 2.0)
journal.encoding(row.number, 3.0)
if {stage!r} == "written":
    journal.written(row.number, 4.0)
journal._database.execute("BEGIN IMMEDIATE")
journal._database.execute("DELETE FROM checkpoints")  # never committed
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL

    journal = Journal(file)
    interrupted = journal.on_start(now=10.0)
    rows = journal.rows()
    journal.close()
    assert interrupted == rows
    assert [(row.state, row.attempts, row.crashes) for row in rows] == [(State.SETTLED, 0, 1)]


def test_a_damaged_journal_is_put_aside_and_a_new_one_begun(file):
    file.parent.mkdir()
    file.write_bytes(os.urandom(8192))
    of_another = file.with_name("journal.sqlite3-journal")
    of_another.write_bytes(os.urandom(8192))

    journal = Journal(file)
    rows = journal.rows()
    journal.close()
    assert rows == []
    assert file.with_name("journal.sqlite3.damaged").exists()
    assert not of_another.exists()


def put_aside(file: Path) -> bool:
    """Whether an opened journal was taken for a damaged one."""
    Journal(file).close()
    return file.with_name("journal.sqlite3.damaged").exists()


@pytest.mark.parametrize(
    ("column", "value"),
    [("state", "verifked"), ("state", b"seen"), ("attempts", -1), ("crashes", "many"), ("size", -1), ("step", -5),
     ("ino", "x"), ("not_before", float("inf")), ("changed", "now"), ("path", "step_1.pt"), ("run", b""),
     ("archive", 7), ("original_bytes", 1.5)],
)  # fmt: skip
def test_a_row_that_was_never_written_is_damage(file, journal, column, value):
    journal.see(RUN, STEP, FIRST, now=1.0)
    journal.close()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(f"UPDATE checkpoints SET {column} = ?", (value,))

    with pytest.raises(ConfigError, match="cannot be read"):
        read_only(file)
    assert put_aside(file)
    assert read_only(file) == []


def test_damage_a_second_time(file, journal):
    journal.close()
    for content in (b"once", b"twice"):
        file.write_bytes(content * 5000)
        assert put_aside(file)
        assert file.with_name("journal.sqlite3.damaged").read_bytes() == content * 5000


def test_a_table_that_is_not_ours_is_damage(file):
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE checkpoints (number INTEGER PRIMARY KEY, run TEXT)")

    assert put_aside(file)


def test_any_flipped_bit_leaves_a_journal_that_can_be_used(file, journal):
    """One bit of every third byte that is not 0."""
    for number in range(3):
        row = journal.see(RUN, RUN / f"step_{number}.pt", Identity(number, 1000, 5), now=1.0)
        archive(journal, row.number)
    journal.close()
    whole = file.read_bytes()
    used = [place for place, byte in enumerate(whole) if byte][::3]
    for number, place in enumerate(used):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << number % 8
        file.write_bytes(flipped)
        with suppress(ConfigError):
            read_only(file)
        again = Journal(file)
        rows = again.rows()
        again.see(RUN, STEP, SECOND, now=9.0)
        again.close()
        assert len(rows) in (0, 3), f"bit {number % 8} of byte {place}"


def test_a_journal_that_cannot_be_opened_is_no_damage(file):
    file.mkdir(parents=True)

    with pytest.raises(ConfigError, match=r"daemon\.state_dir"):
        Journal(file)


def test_names_that_are_no_utf8_are_kept(journal, file):
    run, name = Path(os.fsdecode(b"/ckpts/mod\xe8le")), os.fsdecode(b"step_\xff.pt")
    row = journal.see(run, run / name, FIRST, now=1.0)
    assert journal.find(run / name, FIRST) == row
    assert journal.rows(run=run) == read_only(file) == [row]
    assert journal.runs() == [run]
    journal.settled(row.number, 1, 2.0)
    journal.put_off(row.number, 3.0, str(CkzdError(run / name, "is odd")), 9.0)
    assert journal.row(row.number).error == r"/ckpts/mod\udce8le/step_\udcff.pt: is odd"
    journal.see(run, run / name, SECOND, now=3.0)
    assert [found.identity for found in journal.rows(run=run)] == [SECOND]


def test_times_and_sizes_beyond_an_integer(tmp_path, journal):
    identity = Identity.of(2**64 - 1, 2**65, -(10**25))
    assert journal.see(RUN, STEP, identity, now=1.0).identity == identity


def test_seeing_many_is_linear(journal):
    queries = []
    journal._database.set_trace_callback(queries.append)
    with journal.together():
        for number in range(300):
            journal.see(RUN, RUN / f"step_{number}.pt", Identity(number, 1, 1), now=1.0)
    assert len(queries) <= 302 * 5
    assert sum("run = " in query and "SELECT" in query for query in queries) == 0
    assert sum("COMMIT" in query for query in queries) == 1


def test_a_journal_of_the_future_is_refused(file, journal):
    journal.close()
    database = sqlite3.connect(file)
    database.execute("PRAGMA user_version = 99")
    database.execute("ALTER TABLE checkpoints ADD COLUMN news TEXT")
    database.close()

    with pytest.raises(ConfigError, match="got 99"):
        Journal(file)


def test_rows_can_be_rebuilt_from_an_archive(journal):
    for _ in range(2):
        journal.import_archive(
            RUN, STEP, FIRST, archive=Path("/store/a.ckz"), step=100, archive_bytes=10, replaced=True, now=1.0
        )

    (row,) = journal.rows()
    assert (row.state, row.reclaimed_bytes, row.archive) == (State.REPLACED, 990, Path("/store/a.ckz"))


def test_another_process_can_read_it_meanwhile(journal, file):
    journal.see(RUN, STEP, FIRST, now=1.0)

    assert [row.path for row in read_only(file)] == [STEP]
    assert read_only(file.with_name("absent")) == []


def test_an_inode_number_of_64_bits_is_kept(journal):
    journal.see(RUN, STEP, Identity(2**64 - 3, 1, 1), now=1.0)

    assert journal.rows()[0].identity.ino == 2**64 - 3


def test_a_fingerprint_sees_every_file_of_a_directory(tmp_path):
    folder = tmp_path / "checkpoint-100"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_bytes(b"12")
    (folder / "b").write_bytes(b"345")
    os.utime(folder / "b", ns=(1, 2_000_000_000_000_000_000))
    before = fingerprint(folder)

    assert [mark.name for mark in before.files] == ["b", "deep/a"]
    assert before.identity == Identity(folder.stat().st_ino, 5, 2_000_000_000_000_000_000)
    (folder / "deep" / "a").write_bytes(b"67")
    assert fingerprint(folder) != before
