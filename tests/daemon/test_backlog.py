"""A run that saves faster than it is archived is archived with less effort, until it has caught up."""

from pathlib import Path

import pytest

from ckzd.daemon.backlog import Backlog
from ckzd.defaults import Effort
from ckzd.errors import SourceChanged

RUN, OTHER = Path("/run"), Path("/other")


@pytest.mark.parametrize(
    ("waiting", "behind"),
    [
        ([1, 1, 1, 1], [0, 0, 0, 0]),
        ([30, 29, 28, 27], [0, 0, 0, 0]),  # there before the daemon, and getting fewer
        ([2, 2, 2], [0, 0, 0]),  # two are no queue
        ([1, 2, 3, 4, 3, 2, 1, 1], [0, 0, 1, 1, 1, 1, 0, 0]),
        ([5, 5, 4, 4, 1, 3], [0, 1, 1, 1, 0, 1]),
        ([3], [0]),
    ],
)
def test_it_is_behind_from_when_the_queue_grows_until_it_is_gone(waiting, behind):
    backlog = Backlog()
    assert [backlog.look(RUN, count) for count in waiting] == [bool(each) for each in behind]
    assert backlog.behind == ({RUN} if behind[-1] else frozenset())


def test_runs_do_not_know_of_each_other():
    backlog = Backlog()
    for count in (3, 4, 5):
        backlog.look(RUN, count)
        backlog.look(OTHER, 1)
    assert backlog.behind == {RUN}


def test_the_daemon_takes_less_effort_says_so_and_goes_back(make_daemon):
    daemon = make_daemon(replace=False)
    daemon.service.start()
    steps, seen = iter(range(1, 100)), []

    def saves_on(job):
        seen.append(daemon.status()["runs"][0])
        if len(seen) <= 4:  # two come while one is archived
            daemon.write(next(steps), next(steps))
            daemon.clock.sleep(60)

    daemon.executor.behave = saves_on
    daemon.write(0)
    daemon.go(400)
    efforts = [job.effort.value for job in daemon.executor.began if job.kind == "compress"]
    assert len(efforts) == 9
    first, last = efforts.index("fast"), len(efforts) - efforts[::-1].index("fast")
    assert set(efforts[first:last]) == {"fast"}
    assert efforts[:first] == ["best"] * first != []
    assert efforts[last:] == ["best"] * (9 - last) != []
    assert [run["effort"] for run in seen] == efforts
    assert [run["falling_behind"] for run in seen] == [effort == "fast" for effort in efforts]
    assert daemon.metric("ckzd_archives_total", effort="fast") == efforts.count("fast")
    assert daemon.metric("ckzd_archives_total", effort="best") == efforts.count("best")
    assert daemon.metric("ckzd_runs_falling_behind") == 0


def test_what_waited_and_is_gone_is_no_backlog(make_daemon):
    """A trainer that deletes what waits ends the backlog as well as archives do."""
    daemon = make_daemon(replace=False)
    daemon.service.start()
    steps = iter(range(1, 100))

    def saves_on(job):
        if not job.checkpoint.exists():
            return SourceChanged(job.checkpoint, "is gone")
        if job.effort is Effort.FAST:
            for path in daemon.run.glob("*.safetensors"):
                if path.name != job.checkpoint.name:
                    path.unlink()
        elif len(daemon.executor.began) <= 8:
            daemon.write(next(steps), next(steps))
            daemon.clock.sleep(60)
        return None

    daemon.executor.behave = saves_on
    daemon.write(0)
    daemon.go(400)
    assert any(job.effort is Effort.FAST for job in daemon.executor.began)
    daemon.clock.sleep(5000)
    daemon.go(100)
    assert not daemon.status()["runs"][0]["falling_behind"]
    assert daemon.metric("ckzd_runs_falling_behind") == 0


def test_runs_that_are_gone_are_forgotten():
    backlog = Backlog()
    for count in (3, 4):
        backlog.look(RUN, count)
        backlog.look(OTHER, count)
    backlog.forget_all_but([OTHER])
    assert backlog.behind == {OTHER}
    assert not backlog.look(RUN, 5), "it begins anew"


def test_a_preset_without_bases_knows_no_less_effort(make_daemon):
    daemon = make_daemon(replace=False, preset="lossless", effort="fast")
    daemon.service.start()
    daemon.write(1)
    daemon.go(100)
    assert [job.effort.value for job in daemon.executor.began] == ["best"]
    assert daemon.status()["runs"][0]["effort"] == "best"


def test_a_watch_may_ask_for_less_effort_always(make_daemon):
    daemon = make_daemon(replace=False, effort="fast")
    daemon.service.start()
    daemon.write(1, 2)
    daemon.go(200)
    assert [job.effort.value for job in daemon.executor.began] == ["fast", "fast"]
    assert daemon.status()["runs"][0]["effort"] == "fast"
    assert not daemon.status()["runs"][0]["falling_behind"]


def test_a_pass_that_does_not_wait_has_all_the_time(make_daemon):
    daemon = make_daemon(replace=False, once=True, settle_seconds=0.0)
    daemon.write(*range(8))
    daemon.clock.sleep(100)
    daemon.service.start()
    daemon.go(200)
    assert {job.effort.value for job in daemon.executor.began if job.kind == "compress"} == {"best"}
