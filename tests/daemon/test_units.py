"""Several files of one step: replaced all or none, counted once, held by what holds one of them."""

import os

import pytest
from serving import write_checkpoint

from ckzd.daemon.jobs import Failed
from ckzd.errors import BadCheckpoint, CkzdError


def pairs(run, *steps):
    """G_N.pt and D_N.pt of each step."""
    return [write_checkpoint(run / f"{name}_{step}.pt") for step in steps for name in "GD"]


def standing(run):
    return {path.name for path in run.glob("*.pt")}


def why(daemon, name):
    return {row["checkpoint"].rsplit("/", 1)[-1]: row["why"] for row in daemon.status()["checkpoints"]}[name]


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "gan"


def test_keep_raw_counts_steps(make_daemon, run):
    daemon = make_daemon(keep_raw=2)
    pairs(run, 1, 2, 3)
    daemon.service.start()
    daemon.go(60)

    assert standing(run) == {"G_2.pt", "D_2.pt", "G_3.pt", "D_3.pt"}
    assert "one of the newest 2" in why(daemon, "D_2.pt")


@pytest.mark.parametrize("hold", ["link", "symlink", "marker"])
def test_what_holds_one_file_holds_all_of_its_step(make_daemon, tmp_path, run, hold):
    daemon = make_daemon(keep_raw=1)
    pairs(run, 1, 2, 3)
    held = run / "D_1.pt"
    make = {
        "link": lambda: os.link(held, tmp_path / "kept"),
        "symlink": lambda: (run / "resume").symlink_to(held.name),
        "marker": lambda: (run / "latest").write_text("D_1.pt\n"),
    }
    make[hold]()
    daemon.service.start()
    daemon.go(60)

    assert standing(run) == {"G_1.pt", "D_1.pt", "G_3.pt", "D_3.pt"}
    assert why(daemon, "G_1.pt").startswith("D_1.pt, of the same step, stays: ")


def test_none_is_begun_while_another_is_not_archived(make_daemon, run):
    daemon = make_daemon(keep_raw=1)
    bad = pairs(run, 1, 2)[1]
    daemon.executor.behave = lambda job: CkzdError(bad, "is odd") if job.checkpoint == bad else None
    daemon.service.start()
    daemon.go(60)

    assert standing(run) == {"G_1.pt", "D_1.pt", "G_2.pt", "D_2.pt"}
    assert why(daemon, "G_1.pt") == "D_1.pt, of the same step, stays: it is not archived"


def test_none_is_begun_while_another_is_open_for_writing(make_daemon, run):
    daemon = make_daemon(keep_raw=1)
    paths = pairs(run, 1, 2)
    with paths[1].open("r+b"):
        daemon.service.start()
        daemon.go(60)

        assert standing(run) == {"G_1.pt", "D_1.pt", "G_2.pt", "D_2.pt"}


def test_a_refused_replacement_holds_the_whole_step(make_daemon, run):
    daemon = make_daemon(keep_raw=1)
    first = pairs(run, 1, 2)[0]

    def refuse(job):
        return (
            Failed(job, BadCheckpoint(first, "no")) if job.kind == "replace" and job.checkpoint.stem[2] == "1" else None
        )

    daemon.executor.behave = refuse
    daemon.service.start()
    daemon.go(60)

    assert standing(run) == {"G_1.pt", "D_1.pt", "G_2.pt", "D_2.pt"}
    assert sum(job.kind == "replace" for job in daemon.executor.began) == 1


def test_what_is_left_alone_is_said(make_daemon, tmp_path, run):
    daemon = make_daemon(keep_raw=1)
    for rank in range(2):
        write_checkpoint(tmp_path / "runs" / "sharded" / f"model_step1_rank{rank}.pt")
    pairs(run, 1)
    daemon.service.start()
    daemon.go(10)

    (left,) = daemon.status()["left_alone"]
    assert left["says"] == "holds parts of sharded checkpoints: not read (2)"
    assert b'ckzd_left_alone_checkpoints{kind="shards"} 2.0' in daemon.service.metrics.render("")[0]


def test_what_gains_too_little_stays(make_daemon, run):
    daemon = make_daemon(keep_raw=1)
    for step in (1, 2):
        write_checkpoint(run / f"e_{step}.pt", elements=16)
    daemon.service.start()
    daemon.go(60)

    assert standing(run) == {"e_1.pt", "e_2.pt"}
    assert "too little is gained" in why(daemon, "e_1.pt")


def models(run, *steps, names=("model", "optimizer")):
    """model_N.pt and optimizer_N.pt of each step, which are one checkpoint."""
    return [write_checkpoint(run / f"{name}_{step}.pt") for step in steps for name in names]


def archives(daemon, run):
    return {record.manifest.name: record.manifest.kind for record in daemon.store.archives(run)}


def test_files_that_are_one_checkpoint_have_one_archive_and_go_together(make_daemon, run):
    daemon = make_daemon(keep_raw=1)
    models(run, 1, 2)
    daemon.service.start()
    daemon.go(60)

    assert standing(run) == {"model_2.pt", "optimizer_2.pt"}
    assert sum(job.kind == "replace" for job in daemon.executor.began) == 1
    rows = {row["checkpoint"].rsplit("/", 1)[-1]: row for row in daemon.status()["checkpoints"]}
    assert {rows[f"{name}_1.pt"]["state"] for name in ("model", "optimizer")} == {"replaced"}
    assert len({row["archive"] for row in rows.values()}) == 2


def test_a_model_waits_for_its_optimizer(make_daemon, run):
    daemon = make_daemon(keep_raw=1)
    models(run, 1)
    daemon.service.start()
    daemon.go(20)
    models(run, 2, names=["model"])
    daemon.go(16)
    assert why(daemon, "model_2.pt") == "waits for optimizer_#.pt, as the step before had"
    models(run, 2, names=["optimizer"])
    daemon.go(20)
    archived = [job.checkpoint.name for job in daemon.executor.began if job.kind == "compress"]
    assert archived[2] in {"model_2.pt", "optimizer_2.pt"}
    assert len({row["archive"] for row in daemon.status()["checkpoints"] if "_2." in row["checkpoint"]}) == 1


def test_one_that_comes_too_late_makes_an_archive_of_both(make_daemon, run):
    daemon = make_daemon(keep_raw=2)
    models(run, 1, names=["model"])
    daemon.service.start()
    daemon.go(20)
    models(run, 1, names=["optimizer"])
    daemon.go(20)
    models(run, 2, 3)
    daemon.go(60)

    assert standing(run) == {f"{name}_{step}.pt" for name in ("model", "optimizer") for step in (2, 3)}
    rows = [row for row in daemon.status()["checkpoints"] if "_1." in row["checkpoint"]]
    assert [row["state"] for row in rows] == ["replaced"] * 2
    assert len({row["archive"] for row in rows}) == 1


def test_a_journal_that_was_lost_knows_each_file_again(make_daemon, revive, run):
    daemon = make_daemon(keep_raw=1)
    models(run, 1, 2)
    daemon.service.start()
    daemon.go(60)
    for file in (run.parents[1] / "state").glob("journal*"):
        file.unlink()
    again = revive(daemon, keep_raw=1)
    again.go(60)
    states = {row["checkpoint"].rsplit("/", 1)[-1]: row["state"] for row in again.status()["checkpoints"]}
    assert (states["model_1.pt"], states["optimizer_1.pt"]) == ("replaced", "replaced")
