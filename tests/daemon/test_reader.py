"""Foreign bytes are read by another process: whatever they do to it, the service gets an answer or goes on."""

import json
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe

import pytest
import torch
from damaged.inputs import ZipRecord, make_zip
from serving import write_checkpoint

from ckzd.daemon import reader, reading
from ckzd.daemon.reader import Reader
from ckzd.daemon.settle import NotReadYet, Settled, Settler, Unsettled
from ckzd.errors import BadCheckpoint


@pytest.fixture
def patient():
    with Reader(patient=True) as made:
        yield made


@pytest.fixture
def hasty():
    with Reader() as made:
        yield made


def slow_pickle(path):
    """Three million empty dictionaries: seconds of reading."""
    data = b"\x80\x02(" + b"}" * 3_000_000 + b"l."
    path.write_bytes(make_zip([ZipRecord("a/data.pkl", data), ZipRecord("a/byteorder", b"little")]))
    return path


def eventually(ask):
    """The answer, however often it has to be asked for."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            return ask()
        except NotReadYet:
            time.sleep(0.05)
    raise AssertionError("no answer")


def test_it_says_what_the_rules_say(patient, tmp_path):
    torch.save({"step": 7}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-5])
    (tmp_path / "broken.safetensors").write_bytes(b"\x10" + bytes(30))
    assert patient.completeness(tmp_path / "whole.pt") is None
    assert patient.parse(tmp_path / "whole.pt") == 7
    assert "a zip without an end" in patient.completeness(tmp_path / "cut.pt")
    with pytest.raises(BadCheckpoint, match="damaged safetensors header"):
        patient.parse(tmp_path / "broken.safetensors")


def test_one_process_serves_many_questions(patient, tmp_path):
    paths = [write_checkpoint(tmp_path / f"step_{step}.safetensors") for step in range(5)]
    pids = set()
    for path in paths:
        patient.completeness(path)
        patient.parse(path)
        pids.add(patient._process.pid)
    assert len(pids) == 1


ONCE_LARGE = """
import sys
from pathlib import Path
from ckzd.daemon.reader import Reader
from ckzd.daemon.reading import GROWN_BYTES
bytearray(b"x") * (2 * GROWN_BYTES)  # a process starts with the highest mark of who forked it
with Reader(patient=True) as one:
    one.completeness(Path(sys.argv[1]))
    first = one._process
    one.parse(Path(sys.argv[1]))
    assert one._process is first
"""


def test_what_the_service_once_had_in_memory_is_not_counted_as_the_process_s(tmp_path):
    path = write_checkpoint(tmp_path / "step_1.safetensors")
    subprocess.run([sys.executable, "-c", ONCE_LARGE, path], check=True)


def test_one_that_has_grown_says_so_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "GROWN_BYTES", 0)
    path, (ours, theirs) = write_checkpoint(tmp_path / "step_1.safetensors"), Pipe()
    ours.send_bytes(json.dumps(["parse", str(path)]).encode())
    reading.serve(theirs)
    assert json.loads(ours.recv_bytes()) == {"value": 1, "last": True}


def test_nobody_asks_one_that_ends(patient, tmp_path):
    path = write_checkpoint(tmp_path / "step_1.safetensors")
    patient.completeness(path)
    first, real = patient._process, patient._pipe
    patient._pipe, theirs = Pipe()
    theirs.send_bytes(json.dumps({"value": 1, "last": True}).encode())
    assert patient.parse(path) == 1
    assert first.returncode is not None
    assert patient.parse(path) == 1
    assert patient._process is not first
    real.close()


def test_a_slow_one_holds_nobody_up_and_is_refused_in_the_end(hasty, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "WAIT_SECONDS", 0.2)
    slow, quick = slow_pickle(tmp_path / "slow.pt"), write_checkpoint(tmp_path / "quick.safetensors")
    assert eventually(lambda: hasty.completeness(slow)) is None
    monkeypatch.setattr(reader, "READ_SECONDS", 0.5)
    with pytest.raises(NotReadYet):
        hasty.parse(slow)
    began = time.monotonic()
    with pytest.raises(NotReadYet, match="waits while another"):
        hasty.completeness(quick)
    assert time.monotonic() - began < 0.2
    with pytest.raises(BadCheckpoint, match="cannot be read within") as caught:
        eventually(lambda: hasty.parse(slow))
    assert not caught.value.retryable
    monkeypatch.setattr(reader, "READ_SECONDS", 20.0)
    assert eventually(lambda: hasty.completeness(quick)) is None


def test_a_checkpoint_that_is_being_read_is_looked_at_again(clock, hasty, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "WAIT_SECONDS", 0.0)
    settler = Settler(clock, hasty)
    path = write_checkpoint(tmp_path / "step_1.safetensors")
    settler.look(path, 5.0)
    clock.sleep(10.0)
    found = settler.look(path, 5.0)
    assert isinstance(found, Unsettled)
    assert "is being read" in found.reason
    assert found.again_seconds is not None
    deadline = time.monotonic() + 60
    while not isinstance(found, Settled) and time.monotonic() < deadline:
        time.sleep(0.05)
        found = settler.look(path, 5.0)
    assert isinstance(found, Settled)


def test_a_file_that_changed_meanwhile_is_read_anew(hasty, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "WAIT_SECONDS", 0.0)
    torch.save({"step": 7}, tmp_path / "a.pt")
    with pytest.raises(NotReadYet):
        hasty.parse(tmp_path / "a.pt")
    torch.save({"step": 8, "more": 1}, tmp_path / "a.pt")
    assert eventually(lambda: hasty.parse(tmp_path / "a.pt")) == 8


def test_a_process_that_is_killed_is_no_verdict(hasty, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "WAIT_SECONDS", 0.0)
    path = write_checkpoint(tmp_path / "step_1.safetensors")
    eventually(lambda: hasty.completeness(path))
    hasty._process.send_signal(signal.SIGSTOP)
    with pytest.raises(NotReadYet, match="is being read"):
        hasty.parse(path)
    hasty._process.kill()
    hasty._process.wait()
    with pytest.raises(NotReadYet, match="was killed"):
        hasty.parse(path)
    assert eventually(lambda: hasty.parse(path)) == 1


def test_what_takes_too_much_memory_is_refused(tmp_path, monkeypatch):
    def parse(*_):
        raise MemoryError

    monkeypatch.setattr(reading.FormatsRule, "parse", parse)
    assert "cannot be read within 1073741824 bytes" in reading.answer("parse", tmp_path)["error"]


def test_a_process_that_is_asked_nothing_ends(patient, tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "step_1.safetensors")
    patient.parse(path)
    first = patient._process
    patient._pipe.close()
    assert first.wait(10) == 0
    patient._pipe = None
    assert patient.parse(path) == 1
    assert patient._process is not first
