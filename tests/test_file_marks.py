"""What tells a file from the one that was there before."""

import os

import pytest

from ckzd.file_marks import Mark, is_unchanged, walk


def mark(path):
    return Mark.of(path.lstat())


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "step_1.pt"
    path.write_bytes(b"12345")
    os.utime(path, ns=(1, 1_000_000_000))
    return path


def rewrite(path):
    path.write_bytes(b"54321")


def grow(path):
    path.write_bytes(b"123456")
    os.utime(path, ns=(1, 1_000_000_000))


def replace(path):
    other = path.with_name("other")
    other.write_bytes(b"54321")
    os.utime(other, ns=(1, 1_000_000_000))
    other.replace(path)


@pytest.mark.parametrize("change", [rewrite, grow, replace])
def test_what_is_written_or_replaced_has_another_mark(file, change):
    before, was = mark(file), file.lstat()
    change(file)
    assert mark(file) != before
    assert not is_unchanged(was, file.lstat())


def test_what_is_moved_keeps_its_mark(file, tmp_path):
    before, was = mark(file), file.lstat()
    moved = file.rename(tmp_path / "held")
    assert mark(moved) == before
    assert is_unchanged(was, moved.lstat())


def test_a_look_at_another_device_finds_another_file(file):
    was = file.lstat()
    elsewhere = os.stat_result([*was[:2], was.st_dev + 1, *was[3:10]], {"st_mtime_ns": was.st_mtime_ns})
    assert Mark.of(elsewhere) == Mark.of(was)
    assert not is_unchanged(was, elsewhere)


def test_a_walk_finds_everything_parents_first_and_follows_no_link(tmp_path):
    folder = tmp_path / "checkpoint-100"
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "deep" / "deeper" / "a").write_bytes(b"1")
    (folder / "b").write_bytes(b"1")
    (folder / "link").symlink_to(folder / "deep")
    assert [name for name, _ in walk(folder)] == ["", "b", "deep", "link", "deep/deeper", "deep/deeper/a"]
    assert [name for name, _ in walk(folder / "b")] == [""]
    assert [name for name, _ in walk(folder / "link")] == [""]
    assert {name: Mark.of(status).size for name, status in walk(folder)}["deep"] == 0


def test_a_walk_says_what_is_gone(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        list(walk(tmp_path / "gone"))
    assert caught.value.filename == str(tmp_path / "gone")
