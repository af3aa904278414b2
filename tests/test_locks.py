"""Claims part processes of hosts that do not see each other's locks, and those of the dead are taken over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosts import GONE_SECONDS, Hosts

from ckzd import locks
from ckzd.errors import StoreLocked
from ckzd.locks import claim, locked
from ckzd.store import Store

HOLD = """
import sys, time
from pathlib import Path
from ckzd.locks import locked
with locked(Path(sys.argv[1], "lock"), Path(sys.argv[1], "claims"), shared=sys.argv[2] == "shared", wait_seconds=0):
    print("held", flush=True)
    sys.stdin.read()
"""
TRY = """
import sys, time
from pathlib import Path
from ckzd.errors import StoreLocked
from ckzd.locks import locked
started = time.monotonic()
try:
    shared, seconds = sys.argv[2] == "shared", float(sys.argv[3])
    with locked(Path(sys.argv[1], "lock"), Path(sys.argv[1], "claims"), shared=shared, wait_seconds=seconds):
        print("held", time.monotonic() - started)
except StoreLocked as error:
    print("locked", time.monotonic() - started, error)
"""
COUNT = """
import sys, time
from pathlib import Path
from ckzd.locks import locked
place = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with locked(place / "lock", place / "claims", shared=False, wait_seconds=60):
        count = int((place / "count").read_text())
        time.sleep(0.002)
        (place / "count").write_text(str(count + 1))
"""


@pytest.fixture
def hosts(tmp_path) -> Hosts:
    return Hosts(tmp_path / "hosts")


def start(hosts: Hosts, host: str, program: str, *arguments: object) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env=hosts.environment(host), stdin=pipe, stdout=pipe, text=True)


def ask(hosts: Hosts, host: str, place: Path, *arguments: object) -> list[str]:
    return start(hosts, host, TRY, place, *arguments).communicate(timeout=60)[0].split(maxsplit=2)


@pytest.mark.parametrize(
    ("holds", "asks", "answer"),
    [("alone", "alone", "locked"), ("alone", "shared", "locked"), ("shared", "alone", "locked"),
     ("shared", "shared", "held")],
)  # fmt: skip
def test_another_host_is_kept_out_while_the_holder_lives(hosts, tmp_path, holds, asks, answer):
    with start(hosts, "a", HOLD, tmp_path, holds) as holder:
        assert holder.stdout.readline() == "held\n"
        said = ask(hosts, "b", tmp_path, asks, 0)
        assert said[0] == answer
        if answer == "locked":
            assert f"held by process {holder.pid} on " in said[2]
        holder.communicate("")
    assert ask(hosts, "b", tmp_path, asks, 0)[0] == "held"
    assert list((tmp_path / "claims").iterdir()) == []


@pytest.mark.parametrize(("host", "seconds"), [("a", 0.0), ("b", GONE_SECONDS)])
def test_what_the_dead_hold_is_taken_over(hosts, tmp_path, host, seconds):
    """At once by those who see that the process is gone, by others when it has not beaten for a while."""
    with start(hosts, "a", HOLD, tmp_path, "alone") as holder:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
    found, waited, *_ = ask(hosts, host, tmp_path, "alone", 0)
    assert found == "held"
    assert seconds * 0.5 <= float(waited) <= seconds + 15.0
    assert list((tmp_path / "claims").iterdir()) == []


@pytest.mark.parametrize("lock", ["daemon_lock()", "replace_lock(wait_seconds=0)", "lock(shared=False)"])
def test_a_store_s_locks_hold_on_every_host(hosts, tmp_path, lock):
    store = Store.open_or_create(tmp_path / ".ckzd")
    program = f"""
import sys
from pathlib import Path
from ckzd.errors import StoreLocked
from ckzd.store import Store
try:
    with Store.open(Path(sys.argv[1])).{lock}:
        print("held", flush=True)
        sys.stdin.read()
except StoreLocked:
    print("locked")
"""
    with start(hosts, "a", program, store.root) as holder:
        assert holder.stdout.readline() == "held\n"
        assert start(hosts, "b", program, store.root).communicate("", timeout=60)[0] == "locked\n"
        holder.communicate("")
    assert list(store.claims.iterdir()) == []


def test_of_many_on_two_hosts_one_at_a_time_has_it(hosts, tmp_path):
    (tmp_path / "count").write_text("0")
    processes = [start(hosts, host, COUNT, tmp_path, 5) for host in "abab"]
    assert [process.wait(timeout=100) for process in processes] == [0] * 4
    for process in processes:
        process.stdin.close()
        process.stdout.close()
    assert (tmp_path / "count").read_text() == "20"
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_claim_that_could_not_be_taken_away_is_given_up_in_time(tmp_path, monkeypatch):
    """Its process lives, and does not beat any more."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "GONE_SECONDS", 0.3)
    left = tmp_path / f"{locks.Process.this()}-abc@here@thing@alone"
    left.touch()
    with pytest.raises(StoreLocked), claim(tmp_path, "thing", wait_seconds=0.0):
        pass
    started = time.monotonic()
    with claim(tmp_path, "thing", wait_seconds=5.0):
        assert 0.2 < time.monotonic() - started < 4.0
        assert not left.exists()


def test_what_else_lies_there_is_nobody_s_claim(tmp_path):
    (tmp_path / "notes@thing@alone").touch()
    (tmp_path / f"{locks.Process.this()}-abc@here@another.thing@alone").touch()
    with claim(tmp_path, "thing", wait_seconds=0.0):
        pass
    assert len(list(tmp_path.iterdir())) == 2


def test_a_claim_that_is_held_for_long_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    with claim(tmp_path, "thing", wait_seconds=0.0):
        (own,) = tmp_path.iterdir()
        os.utime(own, (1, 1))
        time.sleep(0.2)
        assert own.stat().st_mtime > 1


def test_who_shares_does_without_where_nothing_can_be_written(tmp_path, monkeypatch):
    def refuse(*_arguments, **_keywords):
        raise PermissionError(13, "no", str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with locked(tmp_path / "lock", tmp_path / "claims", shared=True, wait_seconds=0.0):
        pass
    with pytest.raises(PermissionError), locked(tmp_path / "lock", tmp_path / "claims", shared=False, wait_seconds=0.0):
        pass


def test_on_a_full_disk_there_is_no_claim(tmp_path, monkeypatch):
    real = os.open

    def full(path, flags, *arguments, **keywords):
        if flags & os.O_EXCL:
            raise OSError(28, "no space left", str(path))
        return real(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", full)
    with locked(tmp_path / "lock", tmp_path / "claims", shared=False, wait_seconds=0.0):
        assert list((tmp_path / "claims").iterdir()) == []
