"""One pass: `serve --once` does what is there and ends."""

import os

import pytest
from serving import Daemon, Gone

from ckzd.daemon import status
from ckzd.daemon.jobs import NotStarted
from ckzd.errors import (
    BadCheckpoint,
    ConfigError,
    NoSpace,
)


def age(daemon, seconds: float = 100.0) -> None:
    for path in daemon.run.iterdir():
        then = daemon.clock.time() - seconds
        os.utime(path, (then, then))


def one_pass(make_daemon, *steps: int, prepare=lambda _: None, **options) -> tuple[Daemon, int]:
    daemon = make_daemon(once=True, settle_seconds=30, **options)
    daemon.write(*steps)
    age(daemon)
    prepare(daemon)
    with daemon.service as service:
        code = service.run()
    daemon.service = Gone()
    return daemon, code


def test_one_pass_does_everything_and_ends(make_daemon):
    daemon, code = one_pass(make_daemon, 1, 2, 3, trash_seconds=0)

    assert code == 0
    assert daemon.raw() == ["step_3"]
    assert list((daemon.place / "runs" / ".ckzd" / "trash").iterdir()) == []
    assert not (daemon.place / "state" / status.ENDPOINT).exists()


def test_one_pass_leaves_what_was_just_written(make_daemon):
    def prepare(daemon):
        daemon.write(4)

    daemon, code = one_pass(make_daemon, 1, 2, 3, prepare=prepare)

    assert code == 0
    assert daemon.executor.names("compress") == [f"step_{step}.safetensors" for step in (1, 2, 3)]


def test_one_pass_tries_each_once_and_says_that_some_failed(make_daemon):
    def prepare(daemon):
        daemon.executor.behave = lambda job: (
            BadCheckpoint(job.checkpoint, "no") if job.checkpoint.stem == "step_2" else None
        )

    daemon, code = one_pass(make_daemon, 1, 2, 3, prepare=prepare)

    assert code == 3
    assert daemon.executor.names("compress").count("step_2.safetensors") == 1
    assert daemon.raw() == ["step_2", "step_3"]


def test_one_pass_without_space_says_so(make_daemon):
    def prepare(daemon):
        daemon.executor.behave = lambda job: NoSpace(job.store, "full")

    assert one_pass(make_daemon, 1, 2, prepare=prepare)[1] == 7


def test_one_pass_with_workers_that_do_not_start_gives_up(make_daemon):
    def prepare(daemon):
        daemon.executor.behave = lambda job: NotStarted(job, "no torch")

    daemon, code = one_pass(make_daemon, 1, prepare=prepare)

    assert code == 3
    assert len(daemon.executor.began) == 3


def test_one_pass_over_nothing_is_done(make_daemon):
    daemon = make_daemon(once=True)
    with daemon.service as service:
        assert service.run() == 0
    daemon.service = Gone()


def test_one_pass_over_a_missing_directory_is_a_mistake(make_daemon, tmp_path):
    daemon = make_daemon(once=True)
    (tmp_path / "runs").rmdir()
    with daemon.service as service, pytest.raises(ConfigError, match=r"watch\[0\].path: expected a directory"):
        service.run()
    daemon.service = Gone()
