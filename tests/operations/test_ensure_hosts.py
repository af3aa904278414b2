"""ensure_restored on every rank of two hosts that share a file system without locks: nobody sees half of it."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from dcp_directories import write_dcp
from hosts import Hosts

import ckzd
from ckzd.locks import Process

RANKS = 8
LIMIT_SECONDS = 240.0  # of a busy machine; a hang is an hour
RANK = """
import hashlib, sys
from pathlib import Path
import ckzd.operations.ensure as ensure
real = ensure._restore_in_child
ensure._restore_in_child = lambda path: (print("restores", flush=True), real(path))
found = ensure.ensure_restored(Path(sys.argv[1]))
files = sorted(found.iterdir()) if found.is_dir() else [found]
print("sees", hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest())
"""


def digest(checkpoint: Path) -> str:
    files = sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


@pytest.fixture(params=["directory", pytest.param("file", marks=pytest.mark.slow)])
def replaced(request, tmp_path):
    """A checkpoint, and the digest of what it was."""
    run = tmp_path / "run"
    state = {str(number): torch.randn(256, 512) for number in range(8)}
    if request.param == "directory":
        checkpoint = write_dcp(run / "step-1", RANKS, state)
    else:
        run.mkdir()
        checkpoint = run / "step_1.pt"
        torch.save(state, checkpoint)
    before = digest(checkpoint)
    ckzd.compress(checkpoint, preset="lossless", replace=True)
    return checkpoint, before


def start(hosts: Hosts, checkpoint: Path) -> dict[int, subprocess.Popen[str]]:
    """Ranks on two hosts, by process id."""
    command = [sys.executable, "-c", RANK, str(checkpoint)]
    ranks = [
        subprocess.Popen(command, env=hosts.environment("ab"[rank % 2]), stdout=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    return {rank.pid: rank for rank in ranks}


def is_whole_or_replaced(checkpoint: Path, before: str) -> bool:
    """What a framework could find at any instant."""
    if not checkpoint.exists():
        return True
    if checkpoint.is_dir() and not list(checkpoint.glob("*.distcp")):
        return True
    return (checkpoint / "ckzd.json").exists() is False and digest(checkpoint) == before


def test_one_restores_and_all_see_the_whole(tmp_path, replaced):
    checkpoint, before = replaced
    ranks = start(Hosts(tmp_path / "hosts"), checkpoint)
    deadline = time.monotonic() + LIMIT_SECONDS
    while any(rank.poll() is None for rank in ranks.values()) and time.monotonic() < deadline:
        assert is_whole_or_replaced(checkpoint, before)
        time.sleep(0.01)
    said = [rank.communicate(timeout=1)[0].split() for rank in ranks.values()]
    assert [words[-1] for words in said] == [before] * RANKS
    assert sum("restores" in words for words in said) == 1
    assert list((checkpoint.parent.parent / ".ckzd" / "claims").iterdir()) == []


def test_one_that_dies_in_the_middle_is_followed_by_another(tmp_path, replaced):
    checkpoint, before = replaced
    ranks = start(Hosts(tmp_path / "hosts"), checkpoint)
    killed = None
    deadline = time.monotonic() + LIMIT_SECONDS
    while any(rank.poll() is None for rank in ranks.values()) and time.monotonic() < deadline:
        assert is_whole_or_replaced(checkpoint, before)
        if killed is None and (child := restoring(checkpoint)):
            os.kill(child, signal.SIGSTOP)  # there, and no further
            killed = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(killed, signal.SIGKILL)
        time.sleep(0.002)
    said = {pid: rank.communicate(timeout=1)[0].split() for pid, rank in ranks.items()}
    assert said.pop(killed) == ["restores"]
    assert [words[-1] for words in said.values()] == [before] * (RANKS - 1)
    assert sum("restores" in words for words in said.values()) == 1
    assert time.monotonic() < deadline


def restoring(checkpoint: Path) -> int | None:
    """The process that has begun to write what it restores."""
    for staged in (checkpoint.parent.parent / ".ckzd" / "tmp").glob("*.restore"):
        owner = Process.parse(staged.name)
        if staged.is_file() or any(staged.iterdir()):
            return owner.pid if owner is not None else None
    return None


def test_who_comes_too_late_overwrites_nothing(tmp_path, replaced, monkeypatch):
    """Two that restore at a time without any lock: the second finds it done, and what was written there meanwhile."""
    checkpoint, before = replaced
    real = ckzd.operations.restore.write_files

    def first_another(*arguments):
        monkeypatch.setattr("ckzd.operations.restore.write_files", real)
        ckzd.restore(checkpoint)
        if checkpoint.is_dir():
            (checkpoint / "later").write_text("a job writes here already")
        return real(*arguments)

    monkeypatch.setattr("ckzd.operations.restore.write_files", first_another)
    with pytest.raises(ckzd.CkzdError, match=r"was restored by another process|appeared while"):
        ckzd.restore(checkpoint)
    if checkpoint.is_dir():
        assert (checkpoint / "later").read_text()
        (checkpoint / "later").unlink()
    assert digest(checkpoint) == before


def test_one_that_dies_while_files_come_back_one_by_one(tmp_path):
    """As on NFS, which exchanges no directories: the pointer stays while a file is missing."""
    checkpoint = write_dcp(tmp_path / "run" / "step-1", 64, {"weight": torch.randn(512, 512)})
    files, before = len(list(checkpoint.glob("*.distcp"))), digest(checkpoint)
    ckzd.compress(checkpoint, preset="lossless", replace=True)
    ranks = start(Hosts(tmp_path / "hosts", has_flags=False), checkpoint)
    store, killed = tmp_path / ".ckzd", None
    deadline = time.monotonic() + LIMIT_SECONDS
    while any(rank.poll() is None for rank in ranks.values()) and time.monotonic() < deadline:
        there = len(list(checkpoint.glob("*.distcp")))
        if killed is None and 0 < there < files:
            (claim,) = (store / "claims").glob("*@replace.lock@alone")
            child = Process.parse(claim.name).pid
            os.kill(child, signal.SIGSTOP)
            killed = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
            assert 0 < len(list(checkpoint.glob("*.distcp"))) < files
            assert (checkpoint / "ckzd.json").exists()
            os.kill(killed, signal.SIGKILL)
        time.sleep(0.0005)
    said = {pid: rank.communicate(timeout=1)[0].split() for pid, rank in ranks.items()}
    assert said.pop(killed) == ["restores"]
    assert [words[-1] for words in said.values()] == [before] * (RANKS - 1)
    assert not (checkpoint / "ckzd.json").exists()
