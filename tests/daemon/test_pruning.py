"""The daemon prunes when it has nothing else to do; `ckzd prune` and `ckzd gc` beside it do it no harm."""

import os
import shutil
from pathlib import Path

import pytest
from serving import settings_for

from ckzd.chains import read_manifest
from ckzd.config import KeepSettings
from ckzd.daemon import status
from ckzd.daemon.jobs import Prune
from ckzd.daemon.pruning import Ruled, prune_store, ruled
from ckzd.daemon.stores import PRUNE_SECONDS
from ckzd.errors import StoreLocked
from ckzd.operations.places import places

ALONE = {"max_depth": 1, "trash_seconds": 0}  # every second archive is a base


def keep(**rules):
    return {"keep": KeepSettings(**rules)}


@pytest.fixture
def pruning(make_daemon):
    def _make(**options):
        daemon = make_daemon(**(ALONE | keep(newest=2) | options))
        daemon.service.start()
        daemon.go(2)  # there is nothing to prune yet
        return daemon

    return _make


def steps(daemon) -> list[str]:
    return sorted(daemon.states())


def test_nothing_is_pruned_unless_it_is_configured(pruning):
    daemon = pruning(keep=None)
    daemon.write(1, 2, 3, 4, 5)
    daemon.go(200)
    assert steps(daemon) == [f"step_{n}" for n in range(1, 6)]
    assert daemon.metric("ckzd_jobs_started_total", kind="prune") == 0


def test_what_the_rules_let_go_goes_with_its_pointer_and_row(pruning):
    daemon = pruning()
    daemon.write(1, 2, 3, 4, 5, 6, 7)
    daemon.go(300)
    archives = [path for path in daemon.place.rglob("*.ckz") if ".ckzd" in path.parts]
    assert len(archives) == 3
    assert steps(daemon) == ["step_4", "step_6", "step_7"]  # 6 is a delta against 4
    assert daemon.pointers() == [name for name in steps(daemon) if name != "step_7"]
    gone = 7 - len(archives)
    assert daemon.metric("ckzd_checkpoints_total", outcome="pruned") == gone
    assert daemon.metric("ckzd_pruned_bytes_total") >= 4096 * gone


def test_archiving_and_replacing_come_first(pruning):
    daemon = pruning()
    daemon.write(*range(1, 8))
    daemon.go(300)
    kinds = [job.kind for job in daemon.executor.began]
    assert "prune" not in kinds[1 : len(kinds) - kinds[::-1].index("compress")]
    assert "prune" in kinds


def test_a_run_that_is_never_idle_is_pruned_all_the_same(pruning, clock):
    daemon = pruning()
    daemon.write(1)
    daemon.go(60)
    clock.sleep(3 * PRUNE_SECONDS)
    daemon.write(*range(2, 9))
    before = len(daemon.executor.began)
    daemon.go(40)
    kinds = [job.kind for job in daemon.executor.began[before:]]
    assert "prune" in kinds[: len(kinds) - kinds[::-1].index("compress")]


def test_archives_grow_old_without_an_event(pruning, clock):
    daemon = pruning(**keep(days=1))
    daemon.write(1, 2, 3, 4, 5)
    daemon.go(300)
    assert len(steps(daemon)) == 5
    daemon.executor.behave = lambda job: None
    assert daemon.metric("ckzd_jobs_started_total", kind="prune") >= 1


def test_a_store_that_somebody_reads_is_pruned_later(pruning, clock):
    daemon = pruning()
    daemon.executor.behave = lambda job: StoreLocked("lock", "held") if job.kind == "prune" else None
    daemon.write(1, 2, 3, 4, 5, 6, 7)
    daemon.go(200)
    assert len(steps(daemon)) == 7
    daemon.executor.behave = lambda job: None
    daemon.go(200)
    assert len(steps(daemon)) < 7


def test_moments_beyond_the_newest_are_dropped_and_status_says_so(pruning, monkeypatch):
    """Real archives of it are in test_slim."""
    daemon = pruning(keep=None)
    daemon.write(1, 2)
    daemon.go(100)
    archive = daemon.row("step_1").archive
    freed = {"freed_bytes": 0, "over_quota_bytes": 0, "store": "s", "archives": [], "slimmed": {str(archive): 77}}
    daemon.service._outcomes._pruned(Prune(daemon.run.parent / ".ckzd"), freed)
    assert daemon.row("step_1").archive_bytes == 77
    assert daemon.metric("ckzd_checkpoints_total", outcome="moments dropped") == 1
    manifest = read_manifest(archive).model_copy(update={"moments_dropped": "2026-11-30"})
    monkeypatch.setattr(status, "read_manifest", lambda _: manifest)
    archive.touch()
    assert daemon.why("step_1") == "weights alone since 2026-11-30"


def test_what_the_quota_cannot_take_is_said(pruning):
    daemon = pruning(**keep(max_bytes=1))
    daemon.write(1, 2, 3)
    daemon.go(200)
    assert len(steps(daemon)) == 3  # pointers stand for them
    over = daemon.status()["stores"][0]["over_quota_bytes"]
    assert over > 0
    assert daemon.metric("ckzd_over_quota_bytes") == over


def test_markers_of_every_kind_hold_a_replaced_checkpoint(pruning):
    """They may come to name it long after it was replaced."""
    daemon = pruning(keep=None)
    daemon.write(*range(1, 10))
    daemon.go(300)
    for step, name in ((3, "best.safetensors"), (5, "link")):
        where = f"step_{step}.safetensors" if step == 3 else f"step_{step}.safetensors.ckz"
        (daemon.run / name).symlink_to(where)
    (daemon.run.parent / "latest").write_text("gpt/step_4.safetensors\n")
    daemon.settings = settings_for(daemon.place, **(ALONE | keep(newest=1)))
    root, of_store = next(iter(meant(daemon.settings).items()))
    report = prune_store(root, of_store.runs, roots=[daemon.run.parent], quota=of_store.quota, dry_run=True)
    told = {judged.step: judged.why for judged in report.judged}
    assert told[3] == "a symlink points to it"
    assert told[5] == "a symlink points to it"
    assert told[4] == "a marker file names it"
    assert sum(judged.goes for judged in report.judged) >= 2


def test_on_rotate_drop_leaves_what_is_kept_for_ever(make_daemon):
    daemon = make_daemon(on_rotate="drop", **ALONE, **keep(every=4, days=1000))
    daemon.service.start()
    daemon.write(*range(1, 10))
    daemon.go(300)
    for path in [*daemon.run.iterdir()]:
        if "step_9" not in path.name:
            path.unlink()
    daemon.write(10)
    daemon.go(200)
    daemon.clock.sleep(1000)
    daemon.go(200)
    left = set(steps(daemon))
    assert left >= {"step_1", "step_4", "step_8", "step_10"}
    assert not left & {"step_3", "step_5", "step_6"}


def test_a_pass_that_does_not_wait_prunes_at_its_end(make_daemon):
    daemon = make_daemon(once=True, **ALONE, **keep(newest=1))
    for number, path in enumerate(daemon.write(1, 2, 3, 4, 5, 6, 7)):
        os.utime(path, (daemon.clock.time() - 100 + number,) * 2)
    assert daemon.service.run() == 0
    assert [job.kind for job in daemon.executor.began][-1] == "prune"
    assert steps(daemon) == ["step_7"]


def test_pruning_beside_the_daemon_leaves_no_row_behind(pruning):
    daemon = pruning(keep=None)
    daemon.write(*range(1, 8))
    daemon.go(300)
    settings = settings_for(daemon.place, **(ALONE | keep(newest=1)))
    root, of_store = next(iter(meant(settings).items()))
    report = prune_store(root, of_store.runs, roots=[daemon.run.parent], quota=of_store.quota)
    gone = {f"step_{judged.step}" for judged in report.judged if judged.goes}
    assert gone
    daemon.go(60)
    assert not gone & set(steps(daemon))
    assert len(daemon.executor.names("compress")) == 7


class TestMeant:
    """`ckzd prune` and `ckzd gc` begin with what `ckzd list` shows."""

    def test_all_that_is_watched_or_what_is_named(self, pruning):
        daemon = pruning(keep=None)
        daemon.write(1, 2)
        daemon.go(60)
        shutil.copytree(daemon.run, daemon.run.parent / "vit")
        settings = settings_for(daemon.place, **keep(newest=1))
        root = daemon.run.parent / ".ckzd"
        for paths in ([], [daemon.run], [daemon.run.parent], [root], [daemon.run / ".."]):
            ((found, of_store),) = meant(settings, *paths).items()
            assert found == root
            rules = {run.path: run.rules.newest for run in of_store.runs}
            assert rules[daemon.run] == 1
            assert rules.keys() <= {daemon.run, daemon.run.parent / "vit"}

    def test_what_is_not_watched_has_no_rules(self, pruning, tmp_path):
        daemon = pruning(keep=None)
        daemon.write(1, 2)
        daemon.go(60)
        (tmp_path / "elsewhere").mkdir()
        settings = settings_for(tmp_path / "elsewhere", **keep(newest=1))
        ((_, of_store),) = meant(settings, daemon.run).items()
        assert [run.rules for run in of_store.runs] == [None]

    def test_rules_speak_of_the_store_that_a_run_is_archived_in(self, pruning, tmp_path):
        """What it had in another one nothing lets go."""
        daemon = pruning(keep=None)
        daemon.write(1, 2)
        daemon.go(60)
        settings = settings_for(daemon.place, store=tmp_path / "new", **keep(newest=1))
        ((root, of_store),) = meant(settings).items()
        assert root == daemon.run.parent / ".ckzd"  # pointers lead there
        assert {run.path: run.rules for run in of_store.runs} == {daemon.run: None}

    def test_a_run_is_watched_under_another_name_too(self, pruning, tmp_path):
        daemon = pruning(keep=None)
        daemon.write(1, 2)
        daemon.go(60)
        (tmp_path / "link").symlink_to(daemon.run.parent)
        settings = settings_for(daemon.place, **keep(newest=1))
        watch = settings.watch[0].model_copy(update={"path": tmp_path / "link"})
        settings = settings.model_copy(update={"watch": (watch,)})
        ((_, of_store),) = meant(settings, daemon.run.parent / ".ckzd").items()
        assert [(run.path, run.root) for run in of_store.runs] == [(tmp_path / "link" / "gpt", tmp_path / "link")]
        assert of_store.runs[0].rules.newest == 1


def meant(settings, *paths) -> dict[Path, Ruled]:
    return ruled(settings, places(settings.asked(paths)))
