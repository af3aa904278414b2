"""Reads are exact, come from the file that was there at first, and leave as errors of ckzd."""

import errno
import os
import threading
from pathlib import Path

import pytest

from ckzd.errors import BadCheckpoint, CkzdError, SourceChanged
from ckzd.formats import source
from ckzd.formats.source import FileSource


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(range(200)))
    return file


def test_reads_are_exact(path):
    files = FileSource([path])
    assert files.read(0, 10, 5) == bytes(range(10, 15))
    assert files.read(0, 200, 0) == b""
    files.close()
    assert files.read(0, 199, 1) == b"\xc7"
    files.close()


def rewrite(path):
    path.write_bytes(bytes(200))
    os.utime(path, ns=(5, 5))


def replace(path):
    stat = path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes(200))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(path)


def grow(path):
    stat = path.stat()
    with path.open("ab") as out:
        out.write(b"x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def become_link(path):
    path.rename(path.with_name("other"))
    path.symlink_to("other")


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("change", [rewrite, replace, grow, become_link, os.unlink])
def test_a_file_that_changed_is_noticed(path, change, opened):
    files = FileSource([path])
    if opened:
        files.read(0, 0, 1)
    change(path)
    with pytest.raises((SourceChanged, BadCheckpoint)) as caught:
        files.read(0, 0, 1)
    assert isinstance(caught.value, SourceChanged) or change is become_link
    files.close()


def test_a_file_that_is_cut_while_it_is_read_is_noticed(path, monkeypatch):
    files = FileSource([path])
    monkeypatch.setattr(files, "_check", lambda *_: None)
    os.truncate(path, 50)
    with pytest.raises(SourceChanged, match="expected 100 bytes at 0, got 50"):
        files.read(0, 0, 100)
    files.close()


def test_links_pipes_directories_and_nothing_are_refused(tmp_path, path):
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for name, kind in [("link", BadCheckpoint), ("pipe", BadCheckpoint), (".", BadCheckpoint), ("gone", SourceChanged)]:
        with pytest.raises(kind):
            FileSource([tmp_path / name])


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EACCES, BadCheckpoint, "permission denied.*may read it"),
        (errno.EPERM, BadCheckpoint, "permission denied"),
        (errno.ELOOP, BadCheckpoint, "symbolic link"),
        (errno.ESTALE, SourceChanged, "not there"),
        (errno.ENOENT, SourceChanged, "not there"),
        (errno.EIO, CkzdError, "cannot be read"),
    ],
)
def test_errors_of_the_system_become_errors_of_ckzd(path, monkeypatch, number, kind, words):
    def fail(*_args, **_keywords):
        raise OSError(number, os.strerror(number))

    files = FileSource([path])
    monkeypatch.setattr(source.os, "open", fail)
    with pytest.raises(kind, match=words):
        files.read(0, 0, 1)


def test_a_name_with_a_nul_is_refused():
    with pytest.raises(BadCheckpoint, match="no file name"):
        FileSource([Path("a\0b")])


def open_files():
    return set(Path("/proc/self/fd").iterdir())


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "MAX_OPEN_FILES", 8)
    paths = [tmp_path / str(n) for n in range(30)]
    for n, one in enumerate(paths):
        one.write_bytes(bytes([n]))
    before = len(open_files())
    files = FileSource(paths)
    for _ in range(2):
        assert b"".join(files.read(n, 0, 1) for n in range(30)) == bytes(range(30))
    assert len(open_files()) - before == 8
    files.close()
    assert len(open_files()) == before


def test_many_threads_may_read(tmp_path):
    paths = [tmp_path / str(n) for n in range(12)]
    for n, one in enumerate(paths):
        one.write_bytes(bytes([n]) * 1000)
    files = FileSource(paths)
    wrong = []

    def read_all():
        for turn in range(200):
            n = turn * 7 % 12
            if files.read(n, turn, 100) != bytes([n]) * 100:
                wrong.append(n)

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files.close()
    assert wrong == []


def test_what_a_file_says_of_itself_cannot_reach_outside(path):
    files = FileSource([path])
    view = files.view(0)
    for offset, nbytes in [(0, 201), (200, 1), (-1, 5), (5, -1), (1 << 64, 1)]:
        with pytest.raises(BadCheckpoint, match="in a file of 200 bytes"):
            view.read(offset, nbytes)


def test_reads_beyond_one_system_call_are_joined(path, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(source.os, "pread", lambda fd, n, at: pread(fd, min(n, 7), at))
    files = FileSource([path])
    assert files.read(0, 3, 50) == bytes(range(3, 53))
    files.close()


def test_no_read_waits_for_another_one_and_what_is_read_stays_open(path, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.write_bytes(bytes(10))
    files, real, entered, go_on = FileSource([path, other]), source.read_exactly, threading.Event(), threading.Event()

    def slow(descriptor, offset, nbytes):
        if nbytes == 7:
            entered.set()
            assert go_on.wait(10)
        return real(descriptor, offset, nbytes)

    monkeypatch.setattr(source, "read_exactly", slow)
    monkeypatch.setattr(source, "MAX_OPEN_FILES", 1)
    found = []
    reader = threading.Thread(target=lambda: found.append(files.read(0, 10, 7)))
    reader.start()
    assert entered.wait(10)
    assert files.read(0, 1, 2) == b"\1\2"
    assert files.read(1, 0, 3) == bytes(3)
    files.close()
    go_on.set()
    reader.join()
    assert found == [bytes(range(10, 17))]
    files.close()
