"""The proof is made beside the encoder, of the finished archive: what breaks it, and what does not."""

import dataclasses
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from codec.chains import Zoo
from codec.test_budget import adverse, saved_run

import ckzd
from ckzd.archive import ArchiveWriter
from ckzd.codec.ahead import Announcer
from ckzd.codec.budget import Budget
from ckzd.codec.methods.coding import TensorCoding, WithLoss
from ckzd.codec.presets import PRESETS
from ckzd.errors import CkzdError, VerificationFailed
from ckzd.operations import verify as verifying
from ckzd.operations import writing
from ckzd.store import Store

SECONDS = 60.0  # after which something hangs


class InThread:
    """A verifier in this process, to be looked at."""

    def __init__(self, task: verifying.Task) -> None:
        task = dataclasses.replace(task, files=tuple(map(os.dup, task.files)))
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.told = 0
        self.error: CkzdError | None = None
        self.thread = threading.Thread(target=self._run, args=(task,))
        self.thread.start()

    def _run(self, task: verifying.Task) -> None:
        try:
            verifying.prove(task, iter(self.lines.get, None))
        except CkzdError as error:
            self.error = error

    def tell(self, line: str) -> None:
        self.told += bool(line)
        self.lines.put(line)

    def begin_again(self) -> None:
        raise AssertionError("nothing here loses too much")

    def finish(self) -> None:
        self.end()
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        for line in ("", "finished"):
            self.lines.put(line)
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()


@pytest.fixture
def in_thread(monkeypatch) -> list[InThread]:
    """The verifiers that were started, each in a thread."""
    started: list[InThread] = []

    @contextmanager
    def verifier(task):
        started.append(InThread(task))
        try:
            yield started[-1]
        finally:
            started[-1].end()

    monkeypatch.setattr(writing, "verifier", verifier)
    return started


@pytest.fixture
def restored(monkeypatch) -> list[str]:
    """Names of the tensors that a verifier has restored."""
    seen: list[str] = []
    real = TensorCoding.restored

    def counted(coding, reference, before):
        found = real(coding, reference, before)
        seen.append(coding.tensor.path[-1])
        return found

    monkeypatch.setattr(TensorCoding, "restored", counted)
    return seen


@pytest.fixture
def run(tmp_path) -> list[Path]:
    zoo, place = Zoo(), tmp_path / "run"
    place.mkdir()
    paths = []
    for _ in range(2):
        zoo.advance()
        paths.append(zoo.save(place / f"step_{zoo.step}.pt"))
    return paths


def is_empty(store: Store, *, archives: int = 0) -> bool:
    return len(list(store.root.glob("archives/*/*.ckz"))) == archives and not [*store.tmp.iterdir()]


def wait_until(condition) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_all_is_restored_before_there_is_an_archive_and_never_again(run, in_thread, restored, monkeypatch):
    real = ArchiveWriter.finish

    def finish(writer, manifest):
        wait_until(lambda: len(restored) == in_thread[-1].told > 10)
        return real(writer, manifest)

    monkeypatch.setattr(ArchiveWriter, "finish", finish)
    for path in run:
        restored.clear()
        assert ckzd.compress(path).verified
        assert len(restored) == in_thread[-1].told


def test_what_loses_nothing_is_decoded_when_it_is_finished(run, in_thread, restored):
    for path in run:
        restored.clear()
        ckzd.compress(path, preset="lossless")
        assert in_thread[-1].told == 0
        assert restored


@pytest.mark.parametrize("preset", ["resume", "lossless"])
def test_a_bit_that_flips_in_the_written_archive_is_found_wherever_it_is(preset, run, in_thread):
    """All of it was restored ahead by then, and nothing of it is believed for that."""
    original, place = run[0].read_bytes(), 0.0

    def on_stage(stage, _):
        if stage == "written":
            (archive,) = Store.open(run[0].parent.parent / ".ckzd").tmp.glob("*.ckz*")
            flip(archive, int(place * (archive.stat().st_size - 1)))

    for twentieth in range(21):
        place = twentieth / 20
        with pytest.raises(CkzdError) as caught:
            ckzd.compress(run[0], preset=preset, on_stage=on_stage)
        assert caught.value.exit_code in (1, 4)
        assert is_empty(Store.open(run[0].parent.parent / ".ckzd"))
    assert run[0].read_bytes() == original


def test_a_bit_that_flips_in_the_encoders_reconstruction_costs_time_alone(run, in_thread, restored):
    """The archive is decoded as any other; the cache is as bad as it was, and is not believed later."""

    def on_stage(stage, _):
        if stage == "written":
            (written,) = Store.open(run[0].parent.parent / ".ckzd").tmp.glob("*.rec*")
            flip(written, 100)

    assert ckzd.compress(run[0], on_stage=on_stage).verified
    assert len(restored) == 2 * in_thread[-1].told
    report = ckzd.compress(run[1])
    assert report.reference is not None
    ckzd.verify(report.archive)


def with_another_step(coding: TensorCoding) -> TensorCoding:
    return dataclasses.replace(coding, way=dataclasses.replace(coding.way, step=2 * coding.way.step))


def with_another_shape(coding: TensorCoding) -> TensorCoding:
    """Its levels do not fit: nothing can be restored."""
    return dataclasses.replace(coding, tensor=dataclasses.replace(coding.tensor, shape=(7, *coding.tensor.shape)))


@pytest.mark.parametrize("lie", [with_another_step, with_another_shape])
def test_an_announcement_that_is_wrong_costs_time_alone(lie, run, monkeypatch):
    real, lied = Announcer.announce, []

    def announce(announcer, coding):
        if isinstance(coding.way, WithLoss) and not lied:
            lied.append(coding)
            coding = lie(coding)
        real(announcer, coding)

    honest = Path(ckzd.compress(run[0], store=run[0].parent / "honest").archive).read_bytes()
    monkeypatch.setattr(Announcer, "announce", announce)
    report = ckzd.compress(run[0])
    assert lied
    assert Path(report.archive).read_bytes() == honest


def test_an_encoder_that_begins_again_takes_another_verifier(tmp_path, monkeypatch):
    started, real = [], verifying.waiting_module

    @contextmanager
    def watched(*arguments, **keywords):
        with real(*arguments, **keywords) as waiting:
            started.append(waiting._child)
            yield waiting

    monkeypatch.setattr(verifying, "waiting_module", watched)
    monkeypatch.setitem(PRESETS, "resume", dataclasses.replace(PRESETS["resume"], budget=Budget(1e-9, 1.0)))
    (tmp_path / "run").mkdir()
    path = saved_run(tmp_path / "run", adverse)[0]
    assert ckzd.compress(path).verified
    *others, last = started
    assert {child.returncode for child in others} == {-signal.SIGKILL}
    assert last.returncode == 0


@pytest.mark.parametrize("told", [1, 5, None], ids=["at once", "later", "when all is written"])
def test_a_killed_verifier_is_an_error_and_nothing_is_published(told, run, monkeypatch):
    original, heard, real = run[0].read_bytes(), [], verifying.Verifier.tell

    def kill(proving) -> None:
        proving._process._child.kill()
        proving._process._child.wait()

    def tell(proving, line):
        heard.append(proving)
        if len(heard) == told:
            kill(proving)
        real(proving, line)

    def on_stage(stage, _):
        if stage == "written":
            assert told is None, "it was noticed before"
            kill(heard[-1])

    monkeypatch.setattr(verifying.Verifier, "tell", tell)
    with pytest.raises(CkzdError, match="ended with -9") as caught:
        ckzd.compress(run[0], on_stage=on_stage)
    assert not isinstance(caught.value, VerificationFailed)
    assert is_empty(Store.open(run[0].parent.parent / ".ckzd"))
    assert run[0].read_bytes() == original


DYING = """
import sys, time
from pathlib import Path
from ckzd.archive import ArchiveWriter
from ckzd.operations import verify
from ckzd.operations.compress import compress
real = verify.Verifier.tell

def tell(proving, line):
    real(proving, line)
    if not line:
        print(proving._process._child.pid, flush=True)
        time.sleep(600)

verify.Verifier.tell = tell
compress(Path(sys.argv[1]))
"""


@pytest.mark.leaves_temporaries
def test_a_killed_encoder_leaves_no_verifier(run):
    with subprocess.Popen([sys.executable, "-c", DYING, str(run[0])], stdout=subprocess.PIPE, text=True) as encoder:
        verifier = Path("/proc", encoder.stdout.readline().strip())
        assert verifier.exists()
        encoder.kill()
    wait_until(lambda: not verifier.exists() or "\nState:\tZ" in (verifier / "status").read_text())
    ckzd.compress(run[1])
    assert is_empty(Store.open(run[0].parent.parent / ".ckzd"), archives=1)
