"""No job begins while others wait for the disk, for as long as there is patience."""

import pytest

from ckzd.daemon import pressure
from ckzd.daemon.pressure import PATIENCE_SECONDS, WINDOW_SECONDS, DiskPressure


class Kernel:
    """The files in which the kernel counts."""

    def __init__(self, place) -> None:
        self.everybody, self.groups, self.root = place / "io", place / "cgroup", place / "fs"
        self.root.mkdir()
        self.groups.write_text("1:cpu:/other\n0::/\n")
        self.waited(0.0)

    def waited(self, seconds: float) -> None:
        """Since it began, all in all."""
        self.everybody.write_text(_told(seconds))

    def has_group(self, own: str) -> None:
        self.groups.write_text(f"0::{own}\n")
        group = self.root / own.lstrip("/")
        group.mkdir(parents=True, exist_ok=True)
        (group / "cgroup.events").touch()
        self.waited_ourselves(0.0)

    def waited_ourselves(self, seconds: float) -> None:
        for group in self.root.rglob("cgroup.events"):
            (group.parent / "io.pressure").write_text(_told(seconds))


def _told(seconds: float) -> str:
    line = f"avg10=0.07 avg60=0.86 avg300=1.19 total={round(seconds * 1e6)}"
    return f"some {line}\nfull {line}\n"


@pytest.fixture
def kernel(tmp_path, monkeypatch) -> Kernel:
    (tmp_path / "kernel").mkdir()
    kernel = Kernel(tmp_path / "kernel")
    monkeypatch.setattr(pressure, "_EVERYBODY", kernel.everybody)
    monkeypatch.setattr(pressure, "_GROUPS", kernel.groups)
    monkeypatch.setattr(pressure, "_ROOT", kernel.root)
    return kernel


def test_others_who_wait_hold_us_back_until_they_are_done(kernel, clock):
    disk = DiskPressure(clock)
    assert not disk.holds_back(we_run=False)
    kernel.waited(3.0)
    clock.sleep(WINDOW_SECONDS)
    assert disk.holds_back(we_run=False)
    clock.sleep(WINDOW_SECONDS)
    assert not disk.holds_back(we_run=False)


def test_one_who_reads_his_batches_holds_nobody_back(kernel, clock):
    disk = DiskPressure(clock)
    kernel.waited(1.0)
    clock.sleep(WINDOW_SECONDS)
    assert not disk.holds_back(we_run=False)


def test_what_our_own_jobs_wait_for_is_not_held_against_others(kernel, clock):
    disk = DiskPressure(clock)
    disk.holds_back(we_run=True)
    kernel.waited(4.0)
    clock.sleep(WINDOW_SECONDS)
    assert not disk.holds_back(we_run=False)


@pytest.mark.parametrize("own", ["/system.slice/ckzd.service", "/"])
def test_in_a_group_of_our_own_we_are_told_apart(kernel, clock, own):
    kernel.has_group(own)
    disk = DiskPressure(clock)
    disk.holds_back(we_run=True)
    kernel.waited(4.0)
    kernel.waited_ourselves(3.5)
    clock.sleep(WINDOW_SECONDS)
    assert not disk.holds_back(we_run=True)
    kernel.waited(8.0)
    clock.sleep(WINDOW_SECONDS)
    assert disk.holds_back(we_run=True)


def test_a_disk_that_is_always_busy_stops_nobody_for_ever(kernel, clock):
    disk, answers = DiskPressure(clock), []
    for window in range(1, int(1.5 * PATIENCE_SECONDS / WINDOW_SECONDS)):
        kernel.waited(window * WINDOW_SECONDS)
        clock.sleep(WINDOW_SECONDS)
        answers.append(disk.holds_back(we_run=False))
    held = answers.index(False)
    assert held == int(PATIENCE_SECONDS / WINDOW_SECONDS)
    assert not any(answers[held:])
    assert disk.holds_back(we_run=True), "one job at a time"
    assert disk.holds_back(we_run=False), "and the next one is as patient"


@pytest.mark.parametrize("text", [None, "", "some avg10=0.00", "nothing total=7", "some total=x"])
def test_a_kernel_that_does_not_count_holds_nobody_back(kernel, clock, text):
    kernel.everybody.unlink() if text is None else kernel.everybody.write_text(text)
    disk = DiskPressure(clock)
    clock.sleep(WINDOW_SECONDS)
    assert not disk.holds_back(we_run=False)


def test_the_daemon_waits_says_so_and_goes_on(kernel, daemon):
    waited = 0.0

    def go() -> None:
        nonlocal waited
        for _ in range(20):
            waited += 0.5
            kernel.waited(waited)
            daemon.go(1)

    go()
    daemon.write(1, 2)
    go()
    assert daemon.executor.began == []
    assert daemon.metric("ckzd_disk_busy") == 1
    daemon.go()
    assert daemon.metric("ckzd_disk_busy") == 0
    assert daemon.states() == {"step_1": "replaced", "step_2": "verified"}


def test_a_pass_that_does_not_wait_goes_on(kernel, make_daemon):
    daemon = make_daemon(once=True, settle_seconds=0)
    daemon.write(1, 2)
    with daemon.service as service:
        kernel.waited(1e6)
        assert service.run() == 0
