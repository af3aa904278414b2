"""What stands for a checkpoint is open to those who could read it, and to nobody else."""

import os
import shutil
import stat
import struct
from pathlib import Path

import pytest
from serving import write_checkpoint

import ckzd
from ckzd.access import Access, access_to, give
from ckzd.formats import read_checkpoint

ME, OTHER, GROUP = os.geteuid(), 1234, 4321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def run(tmp_path):
    """A run and, beside it, a place for its store."""
    tmp_path.chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    return tmp_path / "run"


def file(path, mode):
    path.touch()
    path.chmod(mode)
    return path


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ([0o600], 0o600),
        ([0o640], 0o640),
        ([0o644], 0o644),
        ([0o660], 0o640),
        ([0o666], 0o644),
        ([0o777], 0o644),
        ([0o604], 0o604),
        ([0o400], 0o600),
        ([0o644, 0o640], 0o640),
        ([0o640, 0o604], 0o600),
    ],
)
def test_it_is_as_private_as_the_most_private_of_the_files(run, modes, expected):
    files = [file(run / str(number), mode) for number, mode in enumerate(modes)]
    assert access_to(files, place=run.parent / "store") == Access(ME, files[0].stat().st_gid, expected)


@pytest.mark.parametrize(
    ("directory", "expected"), [(0o755, 0o644), (0o711, 0o644), (0o750, 0o640), (0o700, 0o600), (0o754, 0o640)]
)
def test_a_directory_keeps_out_whom_it_keeps_out(run, directory, expected):
    path = file(run / "a", 0o644)
    run.chmod(directory)
    assert access_to([path], place=run.parent / "store").mode == expected
    assert access_to([path], place=run / "store").mode == 0o644, "who reads the store came through the same directory"


@as_root
def test_a_directory_of_another_group_keeps_the_group_out(run):
    path = file(run / "a", 0o640)
    os.chown(path, ME, GROUP)
    run.chmod(0o750)
    assert access_to([path], place=run.parent / "store").mode == 0o600
    os.chown(run, ME, GROUP)
    run.chmod(0o750)
    assert access_to([path], place=run.parent / "store") == Access(ME, GROUP, 0o640)


@as_root
def test_files_of_several_groups_are_for_those_who_may_read_all(run):
    files = [file(run / "a", 0o640), file(run / "b", 0o644)]
    os.chown(files[0], ME, GROUP)
    assert access_to(files, place=run.parent / "store") == Access(ME, -1, 0o600)
    files[0].chmod(0o644)
    assert access_to(files, place=run.parent / "store") == Access(ME, -1, 0o644)


@as_root
def test_owner_group_and_mode_are_given(tmp_path):
    path = file(tmp_path / "a", 0o600)
    give(path, Access(OTHER, GROUP, 0o640))
    status = path.stat()
    assert (status.st_uid, status.st_gid, mode_of(path)) == (OTHER, GROUP, 0o640)


@pytest.mark.parametrize(("mode", "expected"), [(0o640, 0o600), (0o644, 0o644), (0o2770, 0o2700), (0o755, 0o755)])
def test_a_group_that_cannot_be_given_gets_no_more_than_all(tmp_path, monkeypatch, mode, expected):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    path = file(tmp_path / "a", 0o600)
    give(path, Access(OTHER, GROUP, mode))
    assert mode_of(path) == expected


def test_the_group_alone_is_given_where_the_owner_cannot(tmp_path, monkeypatch):
    given = []

    def chown(_path, uid, gid, **_options):
        if uid != -1:
            raise PermissionError(1, "Operation not permitted")
        given.append(gid)

    monkeypatch.setattr(os, "chown", chown)
    path = file(tmp_path / "a", 0o600)
    give(path, Access(OTHER, GROUP, 0o640))
    assert (given, mode_of(path)) == ([GROUP], 0o640)


@pytest.mark.parametrize(
    ("mode", "entries", "expected"),
    [
        (0o640, {"group::": 0, "user:1234": 4, "mask": 4}, 0o600),  # the bits of the group are the mask
        (0o644, {"group::": 4, "user:1234": 0, "mask": 4}, 0o600),  # who is shut out may be of the group, or any other
        (0o644, {"group::": 4, "group:4321": 0, "mask": 4}, 0o640),
        (0o644, {"group::": 4, "user:1234": 6, "mask": 6}, 0o644),
        (0o644, {"group::": 6, "user:1234": 6, "mask": 0}, 0o600),
    ],
)
def test_an_access_control_list_keeps_out_whom_it_keeps_out(run, mode, entries, expected):
    path = file(run / "a", mode)
    set_list(path, mode, entries)
    assert access_to([path], place=run.parent / "store").mode == expected


def test_a_list_of_a_directory_keeps_out_too(run):
    path = file(run / "a", 0o644)
    set_list(run, 0o755, {"group::": 0, "user:1234": 7, "mask": 5})
    assert access_to([path], place=run.parent / "store").mode == 0o604


@pytest.mark.parametrize("again", [False, True])
def test_a_pointer_does_not_open_what_a_list_had_closed(run, again):
    """Neither of the file that was archived nor of a copy under another name, which has its own pointer."""
    paths = [write_checkpoint(run / "step_1.safetensors")]
    if again:
        paths.append(Path(shutil.copy2(paths[0], run / "last.safetensors")))
    for path in paths:
        set_list(path, 0o640, {"group::": 0, "user:1234": 4, "mask": 4})
        ckzd.compress(path, preset="lossless", replace=True)
        ckzd.restore(path)
        assert mode_of(path) == 0o600


def test_what_a_restore_gives_back_is_no_more_open_than_the_list_was(run):
    path = write_checkpoint(run / "step_1.safetensors")
    set_list(path, 0o640, {"group::": 0, "user:1234": 4, "mask": 4})
    checkpoint = read_checkpoint(path)
    checkpoint.source.close()
    assert checkpoint.files[0].stat.mode == 0o600


def set_list(path, mode, entries):
    """Give a path this list; the owner's and all others' entries are the mode's."""
    tags = {"user": 0x02, "group": 0x08, "mask": 0x10}
    nobody = 0xFFFFFFFF
    words = [(0x01, mode >> 6, nobody), (0x20, mode & 7, nobody)]
    for name, bits in entries.items():
        kind, _, who = name.partition(":")
        words.append((0x04, bits, nobody) if name == "group::" else (tags[kind], bits, int(who or nobody)))
    packed = b"".join(struct.pack("<HHI", *word) for word in sorted(words))
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
