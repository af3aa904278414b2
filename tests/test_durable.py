"""Renames and unlinks: whole or not at all, never over what is there, and a failed fsync is final."""

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from ckzd import durable
from ckzd.errors import NoSpace


@pytest.fixture
def tiny(tmp_path):
    """A file system of one megabyte."""
    place = tmp_path / "tiny"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("may not mount a tmpfs")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def failing(monkeypatch):
    """Make the nth call of a function of os fail."""

    def install(name: str, number: int = 1, error: int = errno.EIO) -> list[int]:
        real, calls = getattr(os, name), []

        def fail(*arguments, **keywords):
            calls.append(1)
            if len(calls) == number:
                raise OSError(error, os.strerror(error))
            return real(*arguments, **keywords)

        monkeypatch.setattr(os, name, fail)
        return calls

    return install


@pytest.fixture
def no_flags(monkeypatch):
    """A file system without RENAME_NOREPLACE and RENAME_EXCHANGE."""

    def unsupported(source, target, flags):
        if not source.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
        raise OSError(errno.EINVAL, "invalid argument", str(source))

    monkeypatch.setattr(durable, "_renameat2", unsupported)


def write(target: Path, data: bytes = b"new", **options) -> None:
    with durable.write_atomically(target, **options) as file:
        file.write(data)


def test_a_file_is_written_whole(tmp_path):
    target = tmp_path / "a"
    write(target, b"one")
    write(target, b"two", mode=0o640)
    assert target.read_bytes() == b"two"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [target]


def test_the_mode_is_what_open_gives_unless_it_is_named(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_while_it_is_written_the_old_one_is_there(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with durable.write_atomically(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"
        temps = [path.name for path in tmp_path.iterdir() if path != target]
        assert len(temps) == 1
        assert temps[0].startswith(".ckzd-")
        assert temps[0].endswith(".tmp")


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_nothing(tmp_path, error):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with pytest.raises(type(error)), durable.write_atomically(target) as file:  # noqa: PT012 - the block is the subject
        file.write(b"new")
        raise error
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_fsync_is_final(tmp_path, failing):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    calls = failing("fsync")
    with pytest.raises(OSError, match="Input/output"):
        write(target)
    assert len(calls) == 1
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_fsync_of_the_directory_is_reported(tmp_path, failing):
    failing("fsync", 2)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "a")


def test_a_file_system_that_cannot_sync_directories_is_tolerated(tmp_path, failing):
    failing("fsync", 2, errno.EINVAL)
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_space(tmp_path, failing, error):
    failing("fsync", 1, error)
    with pytest.raises(NoSpace, match=r"bytes free.*hint"):
        write(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_really_full_disk_is_no_space_and_costs_nothing(tiny):
    target = tiny / "a"
    write(target, b"old" * 1000)
    with pytest.raises(NoSpace):
        write(target, bytes(2 * 2**20))
    assert target.read_bytes() == b"old" * 1000
    assert list(tiny.iterdir()) == [target]


def test_space_is_asked_for_before_anything_is_written(tiny):
    durable.require_space(tiny / "not" / "yet" / "there", 500_000)
    with pytest.raises(NoSpace, match="needs 2000000 bytes"):
        durable.require_space(tiny / "a", 2_000_000)
    assert 0 < durable.free_bytes(tiny) <= 2**20


@pytest.mark.parametrize("flags", [True, False])
def test_publishing_never_overwrites(tmp_path, request, flags):
    if not flags:
        request.getfixturevalue("no_flags")
    target = tmp_path / "a"
    for expected, content in ((True, b"first"), (False, b"second")):
        temp = tmp_path / "temp"
        temp.write_bytes(content)
        assert durable.publish(temp, target) is expected
        assert not temp.exists()
    assert target.read_bytes() == b"first"
    assert target.stat().st_nlink == 1


@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_renaming_never_overwrites(tmp_path, request, flags, kind):
    if not flags:
        request.getfixturevalue("no_flags")
    source, target = tmp_path / "source", tmp_path / "target"
    for path in (source, target):
        path.mkdir() if kind == "directory" else path.write_bytes(path.name.encode())
    with pytest.raises(FileExistsError):
        durable.rename(source, target)
    durable.rename(source, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "target"]
    with pytest.raises(FileNotFoundError):
        durable.rename(source, tmp_path / "nothing")


@pytest.mark.parametrize("flags", [True, False])
def test_taking_is_one_step_and_never_overwrites(tmp_path, request, failing, flags):
    if not flags:
        request.getfixturevalue("no_flags")
    unlinked = failing("unlink", 99)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"original")
    durable.take(source, target)
    assert target.read_bytes() == b"original"
    source.write_bytes(b"newer")
    with pytest.raises(FileExistsError):
        durable.take(source, target)
    assert source.read_bytes() == b"newer"
    assert unlinked == []


def test_overwriting_overwrites(tmp_path):
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    durable.overwrite(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"new"


def test_exchange_swaps_and_never_creates(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    (one / "x").touch()
    two.write_bytes(b"two")
    durable.exchange(one, two)
    assert one.read_bytes() == b"two"
    assert (two / "x").exists()
    one.unlink()
    with pytest.raises(FileNotFoundError):
        durable.exchange(two, one)
    assert (two / "x").exists()


def test_no_exchange_is_told_from_other_errors(tmp_path, no_flags):
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    with pytest.raises(OSError, match="invalid") as caught:
        durable.exchange(tmp_path / "a", tmp_path / "b")
    assert durable.exchange_unsupported(caught.value)
    assert not durable.exchange_unsupported(OSError(errno.EIO, ""))


def test_removing_what_is_gone_is_fine(tmp_path):
    durable.remove(tmp_path / "nothing" / "a")
    durable.remove_tree(tmp_path / "nothing" / "a")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "target").write_bytes(b"stays")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "target")
    durable.remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_tree_is_synced_bottom_up(tmp_path, failing):
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "a").touch()
    (tmp_path / "tree" / "link").symlink_to("nowhere")
    calls = failing("fsync", 99)
    durable.fsync_tree(tmp_path / "tree")
    assert len(calls) == 3
