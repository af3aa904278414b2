"""Pointers of files that their framework would have deleted, had they been there, go with them."""

import pytest
from formats.test_rankings import lightning


@pytest.fixture
def save(daemon):
    """As ModelCheckpoint, which deletes what it keeps no more only where it is."""
    daemon.run.mkdir(parents=True)

    def _save(step, scores):
        kept = {f"step={number}": score for number, score in scores.items()}
        lightning(daemon.run / f"step={step}.ckpt", **kept)
        daemon.go()

    return _save


def pointers(daemon):
    return {int(path.name.split("=")[1].split(".")[0]) for path in daemon.run.glob("*.ckz")}


def test_the_pointer_of_what_fell_behind_goes(daemon, save):
    save(10, {10: 1.0})
    save(20, {10: 1.0, 20: 3.0})
    assert pointers(daemon) == {10}
    save(30, {20: 3.0, 30: 2.0})
    assert pointers(daemon) == {20}
    assert daemon.states() == {"step=10": "rotated", "step=20": "replaced", "step=30": "verified"}


def test_what_a_resumed_run_has_forgotten_stays(daemon, save):
    save(10, {10: 1.0})
    save(20, {10: 1.0, 20: 3.0})
    save(30, {30: 2.0})
    assert pointers(daemon) == {10, 20}
    save(40, {30: 2.0, 40: 0.5})
    assert pointers(daemon) == {10, 20, 30}
    save(50, {30: 2.0, 50: 1.5})
    assert pointers(daemon) == {10, 20, 30}, "worse than what is kept, but its saver knows nothing of it any more"


def test_what_another_fold_kept_stays(daemon, save):
    """A saver is told by its key, which two folds, seeds or runs have in common."""
    save(10, {10: 1.0})
    save(20, {10: 1.0, 20: 2.0})
    save(110, {110: 3.0})
    save(120, {110: 3.0, 120: 4.0})
    save(130, {120: 4.0, 130: 5.0})
    assert {10, 20} <= pointers(daemon)


def test_what_a_marker_names_stays(daemon, save):
    save(10, {10: 1.0})
    save(20, {10: 1.0, 20: 3.0})
    (daemon.run / "best.ckpt").symlink_to("step=10.ckpt")
    save(30, {20: 3.0, 30: 2.0})
    assert pointers(daemon) == {10, 20}


def test_a_file_under_the_name_of_a_pointer_stays(daemon, save):
    save(10, {10: 1.0})
    save(20, {10: 1.0, 20: 3.0})
    (daemon.run / "step=10.ckpt.ckz").write_bytes(b"PK not ours")
    save(30, {20: 3.0, 30: 2.0})
    assert (daemon.run / "step=10.ckpt.ckz").read_bytes() == b"PK not ours"


def test_where_originals_are_kept_so_are_pointers(make_daemon, clock):
    daemon = make_daemon(replace=False)
    daemon.service.start()
    daemon.run.mkdir(parents=True)
    lightning(daemon.run / "step=20.ckpt", **{"step=10": 1.0, "step=20": 3.0})
    lightning(daemon.run / "step=30.ckpt", **{"step=20": 3.0, "step=30": 2.0})
    (daemon.run / "step=10.ckpt.ckz").write_text("{}")
    daemon.go()
    assert pointers(daemon) == {10}
