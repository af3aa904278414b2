"""Hints come for every way in which trainers write, and the watcher knows when they no longer come."""

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckzd import durable
from ckzd.daemon import filesystems, watch
from ckzd.daemon.watch import OVERFLOW_LOGGER, Watcher


@pytest.fixture
def root(tmp_path) -> Path:
    path = tmp_path / "runs"
    path.mkdir()
    return path


@pytest.fixture
def watcher(root):
    watcher = Watcher()
    watcher.start()
    watcher.follow([root])
    yield watcher
    watcher.stop()


def plain_write(root: Path) -> None:
    (root / "step_1.pt").write_bytes(b"x")


def temp_and_rename(root: Path) -> None:
    (root / "tmp.pth").write_bytes(b"x")
    (root / "tmp.pth").rename(root / "last.pth")


def rename_in(root: Path) -> None:
    outside = root.parent / "outside.ckpt"
    outside.write_bytes(b"x")
    outside.rename(root / "epoch=1.ckpt")


def rename_directory_in(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "optimizer.pt").write_bytes(b"x")
    outside.rename(root / "checkpoint-5")


def hard_link(root: Path) -> None:
    outside = root.parent / "outside.pt"
    outside.write_bytes(b"x")
    os.link(outside, root / "model_best.pt")


def make_directory_then_write(root: Path) -> None:
    folder = root / "run" / "checkpoint-5"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"x")


def remove_one(root: Path) -> None:
    (root / "there.pt").unlink()


@pytest.mark.parametrize(
    "act",
    [plain_write, temp_and_rename, rename_in, rename_directory_in, hard_link, make_directory_then_write, remove_one],
)
def test_every_way_of_writing_gives_a_hint(root, act, wait_until):
    (root / "there.pt").write_bytes(b"x")
    watcher = Watcher()
    watcher.start()
    watcher.follow([root])
    try:
        act(root)

        assert wait_until(watcher.take_hint)
    finally:
        watcher.stop()


def test_a_new_directory_gives_hints_once_it_is_followed(root, watcher, wait_until):
    (root / "run").mkdir()
    assert wait_until(watcher.take_hint)
    assert watcher.follow([root, root / "run"])
    assert not watcher.follow([root, root / "run"])
    watcher.take_hint()
    (root / "run" / "step_1.pt").write_bytes(b"x")

    assert wait_until(watcher.take_hint)


def test_what_happens_inside_a_checkpoint_is_no_news(root, watcher, wait_until):
    (root / "checkpoint-1").mkdir()
    assert wait_until(watcher.take_hint)
    (root / "checkpoint-1" / "optimizer.pt").write_bytes(b"x")
    time.sleep(0.2)

    assert not watcher.take_hint()


def test_a_directory_that_is_no_longer_wanted_is_left(root, watcher):
    (root / "run").mkdir()
    watcher.follow([root, root / "run"])
    watcher.follow([root])

    assert list(watcher._watches) == [root]
    assert watcher.healthy()


def test_two_directories_may_trade_places(root, watcher, wait_until):
    """That is how a checkpoint is replaced; watchdog's watching of whole trees does not survive it."""
    for name in ("checkpoint-1", "prepared"):
        (root / name / "inner").mkdir(parents=True)
    durable.exchange(root / "checkpoint-1", root / "prepared")
    shutil.rmtree(root / "prepared")
    assert wait_until(watcher.take_hint)
    plain_write(root)

    assert wait_until(watcher.take_hint)
    assert watcher.healthy()


def test_our_own_files_and_mere_reading_give_no_hint(root, watcher, wait_until):
    (root / "step_1.pt").write_bytes(b"x")
    assert wait_until(watcher.take_hint)
    time.sleep(0.1)
    watcher.take_hint()

    (root / ".ckzd" / "tmp").mkdir(parents=True)
    (root / ".ckzd" / "tmp" / "a.ckz").write_bytes(b"x")
    (root / ".ckzd-abc.tmp").write_bytes(b"x")
    (root / ".ckzd-abc.tmp").rename(root / "step_1.pt.ckz")
    (root / "step_1.pt").read_bytes()
    time.sleep(0.2)

    assert not watcher.take_hint()


def test_a_hint_is_taken_once(root, watcher):
    watcher.hint()

    assert watcher.take_hint()
    assert not watcher.take_hint()


def test_a_deleted_root_is_noticed_and_a_new_one_watched(root, watcher, wait_until):
    assert watcher.healthy()
    shutil.rmtree(root)
    assert wait_until(lambda: not watcher.healthy())
    watcher.follow([root])
    assert watcher.healthy()  # nothing is there to be watched
    root.mkdir()
    assert not watcher.healthy()

    assert watcher.follow([root])
    assert watcher.healthy()
    watcher.take_hint()
    plain_write(root)
    assert wait_until(watcher.take_hint)


def test_a_root_that_was_exchanged_for_another_is_watched_anew(root, watcher, wait_until):
    root.rename(root.with_name("before"))
    root.mkdir()
    assert not watcher.healthy()
    assert watcher.follow([root])
    watcher.take_hint()
    plain_write(root)

    assert wait_until(watcher.take_hint)


def test_a_dead_reader_is_noticed_and_replaced(root, watcher, wait_until):
    watcher._observer._inotify_fd.stop()
    assert wait_until(lambda: not watcher.healthy())

    assert watcher.follow([root])
    plain_write(root)
    assert wait_until(watcher.take_hint)


def test_a_handler_that_fails_does_not_end_the_watching(root, watcher, wait_until, monkeypatch):
    monkeypatch.setattr("ckzd.daemon.watch._is_ours", lambda _: 1 / 0)
    plain_write(root)

    assert wait_until(watcher.take_hint)
    assert watcher.healthy()


def test_only_so_many_directories_are_watched(root, watcher, monkeypatch):
    monkeypatch.setattr(watch, "MAX_WATCHED", 2)
    for number in range(4):
        (root / str(number)).mkdir()
        os.utime(root / str(number), (0, number))
    watcher.follow([root / str(number) for number in range(4)])

    assert list(watcher._watches) == [root / "2", root / "3"]


def test_an_overflow_that_watchdog_reports_is_counted_and_asks_for_a_scan(watcher):
    logger = logging.getLogger(OVERFLOW_LOGGER)
    logger.warning("Inotify queue overflowed; filesystem events were lost")
    logger.warning("Inotify queue overflowed; reconciling recursive watches below %r", b"/x")

    assert watcher.overflows == 1
    assert watcher.take_hint()


def test_watchdog_still_tells_of_an_overflow_where_we_listen():
    """The hook hangs on the text and the name of a foreign logger: notice when they change."""
    from watchdog.observers import inotify_c

    assert inotify_c.logger.name == OVERFLOW_LOGGER
    assert "overflow" in Path(inotify_c.__file__).read_text().lower()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs user namespaces")
def test_a_watch_limit_leaves_it_to_the_scan(tmp_path):
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
open("/proc/sys/user/max_inotify_instances", "w").write("0")
from ckzd.daemon.watch import Watcher
watcher = Watcher()
watcher.start()
roots = [Path({str(tmp_path)!r})]
print(watcher.follow(roots), watcher.healthy(), watcher.follow(roots))
watcher.stop()
"""
    done = subprocess.run(
        ["unshare", "-Ur", sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    if "unshare" in done.stderr or "Read-only" in done.stderr or "Permission" in done.stderr:
        pytest.skip(f"no user namespace here: {done.stderr.splitlines()[-1]}")

    assert done.stdout.split() == ["False", "False", "False"], done.stderr


@pytest.mark.parametrize(
    ("path", "kind", "network", "silent"),
    [
        ("/ckpts/run", "nfs4", True, True),
        ("/lustre", "lustre", True, True),
        ("/with space/a", "fuse.sshfs", False, True),
        ("/home", "ext4", False, False),
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_innermost_mount(tmp_path, path, kind, network, silent):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw\n"
        "2 1 0:5 / /ckpts rw - xfs /dev/sdb rw\n"
        "3 1 0:6 / /ckpts rw - nfs4 server:/x rw\n"
        "4 1 0:7 / /lustre rw - lustre x rw\n"
        "5 1 0:8 / /with\\040space rw - fuse.sshfs x rw\n"
    )

    found = filesystems.kind(Path(path), mounts)

    assert (found, filesystems.is_network(found), filesystems.gives_no_events(found)) == (kind, network, silent)


def test_a_network_file_system_is_left_to_the_scan(root, monkeypatch):
    monkeypatch.setattr(filesystems, "kind", lambda _: "nfs4")
    watcher = Watcher()
    watcher.start()

    assert not watcher.follow([root])
    assert watcher.healthy()
    watcher.stop()


def test_a_directory_that_goes_does_not_make_watching_begin_anew(root, watcher, caplog):
    for number in range(3):
        folder = root / f"run{number}"
        folder.mkdir()
        watcher.follow([root, folder])
        observer = watcher._observer
        shutil.rmtree(folder)
        time.sleep(0.3)
        watcher.follow([root])
        assert watcher._observer is observer
    assert "watching begins anew" not in caplog.text
    assert watcher.healthy()
