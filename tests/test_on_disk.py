"""The table of DESIGN.md, "On disk": each name that is written is in it, each row occurs, a crash ends as it says.

A kill leaves what is on disk before the call that it hits. So all that kills can leave is seen by looking before each
call that changes the disk, while real commands and a daemon are at work; `tests/crash` kills, and looks too.
"""

import functools
import itertools
import json
import os
import re
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from making import sha256, tree_of
from on_disk import ROWS, named, rows_of, table, unnamed
from serving import FakeExecutor, FakeWatcher, settings_for, write_checkpoint
from serving import named as note_model

from ckzd import cli, durable
from ckzd.daemon import service
from ckzd.daemon.clock import SystemClock
from ckzd.daemon.jobs import Progress
from ckzd.daemon.perform import perform
from ckzd.errors import VerificationFailed
from ckzd.locks import Process
from ckzd.operations.replace import recover, replace
from ckzd.state_dir import state_dirs
from ckzd.store import Store

PACKAGE = Path(cli.__file__).parent
CALLS = ("replace", "rename", "link", "unlink", "rmdir", "mkdir", "utime", "chown", "fsync")
DEAD = Process(Process.this().boot, Process.this().namespace, 1, "1")
DIRECTORY, LATER, FILES = "checkpoint-10", "checkpoint-20", [f"step_{step}.safetensors" for step in (1, 2, 3)]


class Place:
    """A run with a store beside it and a state directory, and all names that were ever seen there."""

    def __init__(self, root: Path) -> None:
        self.root, self.run = root, root / "runs" / "gpt"
        self.roots = {"STORE": root / "runs" / ".ckzd", "RUN": self.run, "STATE": state_dirs()[0]}
        self.config = root / "ckzd.toml"
        self.seen: set[str] = set()
        for name in FILES:
            write_checkpoint(self.run / name)
        for name in (DIRECTORY, LATER):
            write_checkpoint(self.run / name / "model.safetensors", name)
            (self.run / name / "trainer_state.json").write_text(f'{{"global_step": {name[-2:]}}}')
        self.configure()

    @property
    def store(self) -> Store:
        return Store.open(self.roots["STORE"])

    def configure(self, keep: str = "") -> None:
        watch = f"[[watch]]\npath = {json.dumps(str(self.run.parent))}\nreplace = true\nkeep_raw = 0\n"
        state = f"[daemon]\nport = 0\nstate_dir = {json.dumps(str(self.roots['STATE']))}\n"
        self.config.write_text(f"{watch}trash_seconds = 0\nsettle_seconds = 0\n{keep}{state}")

    def look(self) -> None:
        self.seen.update(named(self.roots))

    def watch(self, monkeypatch) -> None:
        """Look before each call of this process that changes the disk."""
        owners = [*((os, name) for name in CALLS), (durable, "_renameat2")]
        for owner, name in owners:
            monkeypatch.setattr(owner, name, self._looking(getattr(owner, name)))
        opened = os.open

        def looking(path, flags, *rest, **options):
            if flags & os.O_CREAT:
                self.look()
            return opened(path, flags, *rest, **options)

        monkeypatch.setattr(os, "open", looking)

    def _looking(self, real):
        @functools.wraps(real)
        def call(*arguments, **options):
            self.look()
            return real(*arguments, **options)

        return call

    def command(self, *words: object, code: int = 0) -> None:
        assert cli.run([str(word) for word in words]) == code
        self.look()

    def serve(self, behave=lambda _: None, code: int = 0) -> None:
        executor = Executor()
        executor.behave = behave
        own = {"state_dir": self.roots["STATE"]}
        settings = settings_for(self.root, daemon=own, keep_raw=0, settle_seconds=0, trash_seconds=0, preset="lossless")
        assert service.serve(settings, once=True, executor=executor) == code
        self.look()

    def listen(self) -> None:
        """A daemon that stays, and ends."""
        settings = settings_for(self.root, daemon={"state_dir": self.roots["STATE"]})
        with service.Service(settings, Executor(), SystemClock(), watcher=FakeWatcher()) as daemon:
            daemon.start()
            self.look()
        assert not (self.roots["STATE"] / "http.json").exists()


class Clock:
    """Of the executor: its waits pass at once."""

    time, monotonic = staticmethod(time.time), staticmethod(time.monotonic)

    def sleep(self, _seconds: float) -> None:
        time.sleep(0.001)


class Executor(FakeExecutor):
    """Does what workers do, in this process."""

    def __init__(self) -> None:
        super().__init__(Clock())

    def _perform(self, job, told):
        return perform(job, "cpu", lambda stage, fraction: told.append(Progress(job, stage, fraction)))


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


def rot(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)


def killed_at(step: str, place: Place, checkpoint: Path) -> None:
    """A replacement that dies there: it is left to whoever comes next."""
    archive = place.store.find_by_content(place.run, checkpoint.name, sha256(checkpoint.read_bytes())).path

    def die(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        replace(checkpoint, archive, place.store, on_step=die)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    place.look()


def killed_beginning_a_journal(place: Place) -> None:
    """SQLite's own calls are none of this process's: a file that it was about to make one of write-ahead logs."""
    place.roots["STATE"].mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if not pid:
        database = sqlite3.connect(place.roots["STATE"] / "journal.sqlite3", isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        database.execute("CREATE TABLE checkpoints (number INTEGER)")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    place.look()


@pytest.mark.leaves_temporaries
def test_every_name_that_is_written_is_in_the_table_and_every_row_occurs(place, monkeypatch, capsys):
    place.watch(monkeypatch)
    run, store = place.run, place.roots["STORE"]
    one, two, three = (run / name for name in FILES)
    compress = ("compress", "--preset", "lossless", "--store", store)
    place.command(*compress, "--accept-command", "true", one, "--replace")
    place.command(*compress, two, three, run / LATER, run / DIRECTORY)  # each directory a base
    place.command("restore", one)
    killed_at("moved", place, three)
    write_checkpoint(three, "anew")  # it can neither be put back,
    rot(archive := next(place.store.run_directory(run).glob("step_3*.ckz")))  # nor be let go
    assert [line.split()[0] for line in recover(place.store)] == ["kept"]
    place.look()
    rot(archive)
    next(store.glob("trash/*/held/*")).replace(three)
    shutil.rmtree(next(store.glob("trash/*/kept")).parent)
    place.command(*compress, one, two, run / LATER, run / DIRECTORY, "--replace")
    place.command("restore", run / DIRECTORY)
    place.command(*compress, run / DIRECTORY, "--replace")

    copies = Path(shutil.copytree(place.store.run_directory(run), place.root / "copies"))
    place.command("restore", next(copies.glob("step_3*.ckz")), "-o", run / "copy.safetensors")
    rot(archive)
    place.command("check", run, copies)

    note_model(write_checkpoint(place.root / "model.safetensors"), place.store)
    killed_beginning_a_journal(place)
    place.serve()
    (place.roots["STATE"] / "journal.sqlite3").write_bytes(b"no journal" * 100)
    write_checkpoint(run / "step_4.safetensors")
    untrue = VerificationFailed("x", "decodes to something else")
    place.serve(lambda job: untrue if job.kind == "compress" else None, code=3)
    place.listen()
    place.configure("[watch.keep]\nnewest = 1\n")
    place.command("prune", "--config", place.config)
    place.command("gc", "--config", place.config, "--damaged-days", 0)

    assert [path for path in sorted(place.seen) if not rows_of(path)] == []
    occurred = {row.name for path in place.seen for row in rows_of(path)}
    assert [row.name for row in ROWS if row.name not in occurred] == []


def test_every_suffix_of_what_is_unfinished_is_a_row():
    """As the code spells them."""
    calls = re.compile(r"(?:new_temp|temporary)\((?:\w+(?:\.\w+)*, )?(\"[.\w]+\"|ARCHIVE_SUFFIX)\)|in \((\"[^)]*\")\)")
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for call in calls.finditer(path.read_text()):
            found.update(re.findall(r"\"(\.\w+)\"", (call[1] or call[2]).replace("ARCHIVE_SUFFIX", '".ckz"')))
    assert found >= {".ckz", ".rec", ".entry"}
    assert {f"STORE/tmp/<process>{suffix}" for suffix in found} == {
        row.name for row in ROWS if row.name.startswith("STORE/tmp/<process>")
    }


def test_what_a_crash_leaves_ends_as_its_row_says(place, monkeypatch, capsys):
    """Each name that goes is left by a dead process, each that stays is there; then the next ones come along."""
    run, store = place.run, place.roots["STORE"]
    place.command("compress", "--preset", "lossless", run, "--store", store)
    note_model(write_checkpoint(place.root / "model.safetensors"), place.store)
    token = itertools.count(1)
    words = {row.name: re.match(r"\w+( \w+)?", row.crash)[0] for row in ROWS}
    left: dict[str, Path] = {}
    for name in (row.name for row in ROWS if words[row.name].startswith("goes")):
        for concrete in [name.replace("*/", f"{word}/", 1) for word in place.roots] if name[0] == "*" else [name]:
            process = f"{DEAD}-{next(token):012x}"
            word, _, rest = concrete.replace("<process>", process).replace("@*", "@host@lock@alone").partition("/")
            path = place.roots[word] / rest
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"half")
            assert rows_of(f"{word}/{rest}")
            left[concrete] = path
    for step, name in (("intent", FILES[0]), ("moved", FILES[1]), ("verified", FILES[2])):
        killed_at(step, place, run / name)
    before = {path for path in named(place.roots) if any(row.crash.startswith("stays") for row in rows_of(path))}

    assert unnamed(place.roots) == []
    place.serve()
    gone = before - set(named(place.roots))
    assert {path for path in gone if not path.startswith(("RUN/", "STORE/trash/", "STATE/journal"))} == set()
    place.command("gc", "--config", place.config)

    assert {name for name, path in left.items() if os.path.lexists(path)} == set()
    assert list((store / "trash").iterdir()) == []  # settled, and then let go
    assert unnamed(place.roots) == []
    for name in (*FILES, DIRECTORY, LATER):  # nothing of the run was lost
        place.command("restore", run / name)


def test_commands_write_no_more_than_their_rows_say(place, capsys):
    run, store = place.run, place.roots["STORE"]
    place.command("compress", "--preset", "lossless", run, "--store", store, "--replace")
    assert {verb for cells in table("On disk", "command") for verb in re.findall(r"`(\w+)", cells[0])} == {
        command.name or command.callback.__name__ for command in cli.app.registered_commands
    }
    before = {word: tree_of(root) if root.exists() else None for word, root in place.roots.items()}
    silent = ["list", "inspect", "status", "prune --dry-run", "merge --dry-run", "gc --dry-run"]
    assert [cells[1:] for cells in table("On disk", "command") if cells[0].startswith(("`list", "`prune --"))] == [
        ["-", "-", "-"]
    ] * 2
    for words in (*silent, "verify"):
        path = run / FILES[0] if words == "inspect" else run
        arguments = ["--config", place.config] if words == "status" else [path]
        place.command(*words.split(), *arguments)
        after = {word: tree_of(root) if root.exists() else None for word, root in place.roots.items()}
        for word, tree in after.items():
            assert _without_claims(tree) == _without_claims(before[word]), (words, word)


def _without_claims(tree):
    return {name: found for name, found in (tree or {}).items() if "claims" not in name}
