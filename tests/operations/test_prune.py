"""Pruning on disk: what is deleted with an archive, what is safe whatever the rules say, what a crash leaves."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from making import put, put_chain, store_archive

from ckzd import durable
from ckzd.errors import CkzdError, CorruptArchive, NoSpace, SourceChanged, StoreLocked
from ckzd.operations import withdraw
from ckzd.operations.check import check
from ckzd.operations.places import Asked, places
from ckzd.operations.pointer import pointer_for
from ckzd.operations.prune import PruneReport, Run, prune
from ckzd.operations.replace import empty_trash, replace
from ckzd.retention import LINEAGE, NO_RULES, Quota, Rules
from ckzd.store import Store

NOW = time.time() + 1
ONE = Rules(newest=1)


def replaced(store: Store, run: Path, *steps: int, kind: str = "file") -> list[Path]:
    """Checkpoints whose archives are bases, replaced by pointers; where they stood."""
    checkpoints = []
    for step in steps:
        checkpoint = run / (f"step_{step}.pt" if kind == "file" else f"checkpoint-{step}")
        if kind == "file":
            checkpoint.write_bytes(b"x" * 100 + str(step).encode())
        else:
            (checkpoint / "inner").mkdir(parents=True)
            for name in ("model.safetensors", "inner/optimizer.pt"):
                (checkpoint / name).write_bytes(b"x" * 100 + f"{name} {step}".encode())
            for name in ("config.json", "trainer_state.json"):
                (checkpoint / name).write_text(json.dumps({"global_step": step}))
        archive = store_archive(store, checkpoint, step=step, reconstruction=f"{step:064}")
        replace(checkpoint, archive, store)
        checkpoints.append(checkpoint)
    empty_trash(store, 0.0, time.time() + 1)
    return checkpoints


def pruned(store: Store, run: Path, rules: Rules | None = ONE, **options) -> PruneReport:
    options = {"roots": [run.parent], "now": NOW, **options}
    return prune(store, [Run(run, run.parent, rules)], **options)


def why(report: PruneReport) -> dict[str, str]:
    return {Path(judged.checkpoint).name: judged.why for judged in report.judged if not judged.goes}


def gone(report: PruneReport) -> list[str]:
    return [Path(judged.checkpoint).name for judged in report.judged if judged.goes]


def names(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def _run_file_bytes(store, run) -> int:
    return (store.run_directory(run) / "run.json").stat().st_blocks * 512


class TestWhatGoes:
    def test_the_pointer_goes_with_the_archive_and_its_reconstruction(self, store, run):
        replaced(store, run, 1, 2, 3)
        for step in (1, 2, 3):
            store.cache_path(f"{step:064}").write_bytes(bytes(5000))
        report = pruned(store, run)
        assert gone(report) == ["step_1.pt", "step_2.pt"]
        assert names(run) == ["step_3.pt.ckz"]
        assert [record.manifest.step for record in store.archives(run)] == [3]
        assert [path.stem for path in store.cache.iterdir()] == [f"{3:064}"]
        assert report.freed_bytes == sum(judged.nbytes for judged in report.judged if judged.goes) + 2 * 8192

    def test_a_directory_goes_whole(self, store, run):
        replaced(store, run, 1, 2, kind="directory")
        assert gone(pruned(store, run)) == ["checkpoint-1"]
        assert names(run) == [f"checkpoint-2/{name}" for name in ("ckzd.json", "config.json", "trainer_state.json")]
        assert not (run / "checkpoint-1").exists()
        assert list(store.tmp.iterdir()) == []

    def test_what_was_written_into_a_directory_later_stays(self, store, run):
        first, _ = replaced(store, run, 1, 2, kind="directory")
        (first / "config.json").write_text('{"edited": true}')
        (first / "results").mkdir()
        (first / "results" / "eval.json").write_text("0.5")
        pruned(store, run)
        assert names(first) == ["config.json", "results/eval.json"]

    def test_a_small_file_that_was_written_again_is_not_ours_even_if_it_says_the_same(self, store, run):
        first, _ = replaced(store, run, 1, 2, kind="directory")
        (first / "config.json").write_text((first / "config.json").read_text())
        pruned(store, run)
        assert names(first) == ["config.json"]

    def test_a_dry_run_says_the_same_and_touches_nothing(self, store, run):
        replaced(store, run, 1, 2, 3)
        before = names(run.parent)
        told = pruned(store, run, dry_run=True)
        assert names(run.parent) == before
        assert told.dry_run
        assert pruned(store, run).judged == told.judged

    def test_without_rules_everything_stays_even_if_over_the_quota(self, store, run):
        replaced(store, run, 1, 2)
        report = pruned(store, run, None, quota=Quota(max_bytes=1))
        assert set(why(report).values()) == {NO_RULES}
        assert report.over_quota_bytes > 0

    def test_a_quota_takes_what_the_framework_has_rotated_and_no_pointers_archive(self, store, run):
        for checkpoint in replaced(store, run, 1, 2, 3, 4)[:2]:
            pointer_for(checkpoint).unlink()
        sizes = {Path(judged.checkpoint).name: judged.nbytes for judged in pruned(store, run, Rules(days=9)).judged}
        beside = _run_file_bytes(store, run)
        report = pruned(store, run, Rules(days=9), quota=Quota(max_bytes=sum(sizes.values()) + beside - 1))
        assert gone(report) == ["step_1.pt"]
        report = pruned(store, run, Rules(days=9), quota=Quota(max_bytes=0))
        assert gone(report) == ["step_2.pt"]
        assert report.over_quota_bytes == sizes["step_3.pt"] + sizes["step_4.pt"] + beside

    def test_a_quota_may_be_a_share_of_the_disk(self, store, run):
        replaced(store, run, 1, 2)
        assert pruned(store, run, quota=Quota(max_share=1.0)).quota_bytes > 1 << 20
        assert pruned(store, run, quota=Quota(max_bytes=7, max_share=1.0)).quota_bytes == 7

    def test_age_counts_from_when_it_was_archived_where_that_is_later(self, store, run):
        replaced(store, run, 3)
        for step in (1, 2):
            put(store, run, step, mtime_ns=0)  # written in 1970, copied here today
        assert gone(pruned(store, run, Rules(days=1))) == []
        assert gone(pruned(store, run, Rules(days=1), now=NOW + 2 * 86400)) == ["step_1.pt", "step_2.pt"]

    def test_cache_that_no_next_archive_needs_makes_way_before_any_archive(self, store, run):
        for checkpoint in replaced(store, run, 1, 2, 3)[:2]:
            pointer_for(checkpoint).unlink()
        for step in (1, 2, 3):
            store.cache_path(f"{step:064}").write_bytes(bytes(50_000))
            os.utime(store.cache_path(f"{step:064}"), (step, step))
        archives = sum(judged.nbytes for judged in pruned(store, run, None).judged) + _run_file_bytes(store, run)
        report = pruned(store, run, Rules(days=9), quota=Quota(max_bytes=archives + 2 * 53_248))
        assert gone(report) == []
        assert report.freed_bytes == 53_248
        assert sorted(path.stem[-1] for path in store.cache.iterdir()) == ["2", "3"]
        report = pruned(store, run, Rules(days=9), quota=Quota(max_bytes=archives + 53_247))
        assert gone(report) == ["step_1.pt"]
        assert [path.stem[-1] for path in store.cache.iterdir()] == ["3"]

    def test_where_pointers_cannot_be_looked_for_nothing_goes(self, store, run, tmp_path):
        replaced(store, run, 1, 2)
        with pytest.raises(CkzdError, match="a pointer there may name any archive"):
            pruned(store, run, roots=[run.parent, tmp_path / "not mounted"])
        assert len(store.archives(run)) == 2

    def test_a_full_disk_does_not_keep_it_from_making_room(self, store, run, monkeypatch):
        replaced(store, run, 1, 2)
        (store.run_directory(run) / "run.json").unlink()

        def full(target, **_):
            raise NoSpace(target, "full")

        monkeypatch.setattr(durable, "write_atomically", full)
        assert gone(pruned(store, run)) == ["step_1.pt"]


class TestWhatIsSafe:
    def test_an_archive_whose_original_stands(self, store, run):
        replaced(store, run, 2, 3)
        checkpoint = run / "step_1.pt"
        checkpoint.write_bytes(b"raw")
        os.utime(checkpoint, (1, 1))
        store_archive(store, checkpoint, step=1, reconstruction="a" * 64)
        assert why(pruned(store, run)) == {"step_1.pt": "its original stands", "step_3.pt": LINEAGE}

    def test_an_older_version_of_what_stands_may_go(self, store, run):
        replaced(store, run, 2, 3)
        checkpoint = run / "step_1.pt"
        for version in (1, 2):
            checkpoint.write_bytes(b"raw" * version)
            os.utime(checkpoint, (version, version))
            store_archive(store, checkpoint, step=1, reconstruction=f"{version}" * 64)
        report = pruned(store, run)
        assert gone(report) == ["step_1.pt", "step_2.pt"]
        assert why(report)["step_1.pt"] == "its original stands"

    def test_a_directory_that_a_trainer_writes_into_again(self, store, run):
        first, _ = replaced(store, run, 1, 2, kind="directory")
        (first / "model.safetensors").write_bytes(b"anew")
        assert why(pruned(store, run))["checkpoint-1"] == "its original stands"
        assert (first / "config.json").exists()

    def test_an_archive_whose_original_is_in_the_trash(self, store, run):
        replaced(store, run, 2, 3)
        checkpoint = run / "step_1.pt"
        checkpoint.write_bytes(b"raw")
        os.utime(checkpoint, (1, 1))
        replace(checkpoint, store_archive(store, checkpoint, step=1, reconstruction="a" * 64), store)
        assert why(pruned(store, run))["step_1.pt"] == "its original is still in the trash"
        empty_trash(store, 0.0, time.time() + 1)
        assert gone(pruned(store, run)) == ["step_1.pt"]

    def test_a_trash_that_cannot_be_read_ends_it(self, store, run):
        replaced(store, run, 1, 2)
        (store.trash / "odd").mkdir()
        (store.trash / "odd" / "intent.json").write_text("{")
        with pytest.raises(CorruptArchive, match="intent"):
            pruned(store, run)
        assert len(store.archives(run)) == 2

    @pytest.mark.parametrize("place", ["kept.pt.ckz", "../best/step_1.pt.ckz", "../mine/ckzd.json"])
    @pytest.mark.parametrize("make", [shutil.move, shutil.copy, os.symlink, os.link])
    def test_what_a_pointer_anywhere_else_names(self, store, run, place, make):
        first, *_ = replaced(store, run, 1, 2)
        target = Path(os.path.normpath(run / place))
        target.parent.mkdir(exist_ok=True)
        make(pointer_for(first), target)
        assert why(pruned(store, run))["step_1.pt"] == f"{target} names it"
        assert target.exists()

    def test_what_a_marker_names(self, store, run):
        first, *_ = replaced(store, run, 1, 2)
        report = pruned(store, run, markers=lambda _, checkpoints: {p: "best" for p in checkpoints if p == first})
        assert why(report)["step_1.pt"] == "best"

    def test_markers_are_asked_of_raw_ones_too(self, store, run):
        replaced(store, run, 1, 2)
        (run / "step_3.pt").write_bytes(b"PK")
        asked = []
        pruned(store, run, markers=lambda _, checkpoints: asked.extend(checkpoints) or {})
        assert {path.name for path in asked} >= {"step_1.pt", "step_2.pt"}

    def test_what_was_made_of_a_directory_that_was_moved(self, store, run, tmp_path):
        replaced(store, run, 1, 2)
        run.rename(tmp_path / "elsewhere")
        run.mkdir()
        replaced(store, run, 3, 4)
        report = pruned(store, run)
        assert gone(report) == ["step_3.pt"]
        assert why(report)["step_1.pt"] == "it is of another directory that stood here before"

    def test_a_copy_of_a_directory_that_stands_in_its_place_is_that_directory(self, store, run, tmp_path):
        """As when both come back from a backup: what no pointer in it names stays, for it may be another's."""
        first, *_ = replaced(store, run, 1, 2, 3)
        pointer_for(first).unlink()
        shutil.copytree(run, tmp_path / "copy")
        shutil.rmtree(run)
        (tmp_path / "blocker").mkdir()  # takes the number of the directory that is gone
        (tmp_path / "copy").rename(run)
        report = pruned(store, run)
        assert gone(report) == ["step_2.pt"]
        assert why(report)["step_1.pt"] == "it is of another directory that stood here before"

    def test_everything_where_nothing_of_the_run_is_in_sight(self, store, run):
        for checkpoint in replaced(store, run, 1, 2):
            pointer_for(checkpoint).unlink()
        assert set(why(pruned(store, run)).values()) == {"nothing of its run is in sight"}
        run.rmdir()
        assert set(why(pruned(store, run)).values()) == {"its run is not there"}

    @pytest.mark.parametrize("harm", [lambda path: path.write_bytes(b"PK no archive"), Path.unlink])
    def test_everything_where_an_archive_is_damaged_or_missing(self, store, run, harm):
        archives = put_chain(store, run, 4)
        (run / "step_300.pt").touch()
        put(store, run, 900)
        harm(archives[1])
        report = pruned(store, run)
        assert gone(report) == []
        assert all("is damaged, or what it needs is missing" in reason for reason in why(report).values())

    def test_everything_where_a_check_has_found_damage(self, store, run):
        """The container's end still says what it said: only who has read all of it knows."""
        archives = put_chain(store, run, 4)
        (run / "step_300.pt").touch()
        put(store, run, 900)
        data = archives[1].read_bytes()
        archives[1].write_bytes(data.replace(b"first", b"fIrst"))
        assert {outcome.outcome for outcome in check(places([Asked(run, store.root)]))} >= {"damaged"}
        report = pruned(store, run)
        assert gone(report) == []
        assert all("is damaged, or what it needs is missing" in reason for reason in why(report).values())

    def test_a_reconstruction_that_another_archive_shares(self, store, run):
        replaced(store, run, 1, 2)
        put(store, run, 0, name="other_0.pt", reconstruction="shared")
        put(store, run, 3, name="step_3.pt", reconstruction="shared")
        shared = store.archives(run)[0].manifest.reconstruction
        store.cache_path(shared).write_bytes(b"x")
        pruned(store, run)
        assert store.cache_path(shared).exists()


class TestInBetween:
    def test_nobody_else_is_at_work_meanwhile(self, store, run):
        replaced(store, run, 1, 2)
        with store.lock(shared=True), pytest.raises(StoreLocked):
            pruned(store, run)
        with store.lock(shared=True):
            assert gone(pruned(store, run, dry_run=True)) == ["step_1.pt"]

    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_what_comes_back_in_the_last_moment_stays_whole(self, store, run, kind, monkeypatch):
        first, _ = replaced(store, run, 1, 2, kind=kind)
        real, large = withdraw.withdraw, first if kind == "file" else first / "model.safetensors"

        def later(*arguments, **options):
            large.write_bytes(b"anew")
            real(*arguments, **options)

        monkeypatch.setattr("ckzd.operations.prune.withdraw", later)
        with pytest.raises(SourceChanged):
            pruned(store, run)
        assert pointer_for(first).exists()
        assert len(store.archives(run)) == 2

    def test_what_is_written_while_the_directory_goes_comes_back(self, store, run, monkeypatch):
        first, _ = replaced(store, run, 1, 2, kind="directory")
        real = withdraw.durable.rename

        def slow(source, target):
            if source == first:
                (first / "notes.txt").write_text("mine")
            real(source, target)

        monkeypatch.setattr(withdraw.durable, "rename", slow)
        with pytest.raises(SourceChanged):
            pruned(store, run)
        assert names(first) == ["ckzd.json", "notes.txt"]
        monkeypatch.undo()
        pruned(store, run)
        assert names(first) == ["notes.txt"]

    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_after_any_error_the_next_run_finishes(self, store, run, kind, monkeypatch):
        """Fails at the first, second, third ... thing that is deleted; what is left always leads to an archive."""
        replaced(store, run, *range(1, 5), kind=kind)
        calls = 0
        for fail_at in range(1, 30):
            count = 0

            def fails(path, real, fail_at=fail_at):
                nonlocal count
                count += 1
                if count == fail_at:
                    raise OSError(5, "no", str(path))
                return real(path)

            with monkeypatch.context() as patched:
                for name in ("remove", "remove_tree", "remove_empty_directory"):
                    real = getattr(withdraw.durable, name)
                    patched.setattr(withdraw.durable, name, lambda path, real=real: fails(path, real))
                try:
                    pruned(store, run)
                except OSError:
                    calls += 1
            archives = {record.manifest.name for record in store.archives(run)}
            standing = {path.name for path in run.iterdir() if path.is_dir()}
            standing |= {path.name.removesuffix(".ckz") for path in run.glob("*.ckz")}
            assert standing <= archives
        assert calls
        assert names(run)[0].startswith(("step_4", "checkpoint-4"))
        assert len({Path(name).parts[0] for name in names(run)}) == 1
