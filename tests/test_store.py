"""The store: where archives lie, which one a delta is against, and who may touch it."""

import logging
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from making import put, put_chain

from ckzd.chains import read_manifest
from ckzd.errors import ConfigError, CorruptArchive, StoreLocked
from ckzd.locks import Process
from ckzd.store import References, Store, default_store


class TestPlaces:
    def test_a_store_is_made_once_and_opened_ever_after(self, run, store):
        assert store.root == run.parent / ".ckzd"
        again = Store.open_or_create(store.root)
        assert again.root == Store.open(store.root).root == store.root
        names = ["archives", "cache", "claims", "reserve", "store.json", "tmp", "trash"]
        assert sorted(path.name for path in store.root.iterdir()) == names

    @pytest.mark.leaves_temporaries
    def test_an_interrupted_creation_is_finished(self, tmp_path):
        (tmp_path / "s" / "tmp").mkdir(parents=True)
        (tmp_path / "s" / ".ckzd-01234567-1-1-1-abcdef.tmp").touch()  # the marker, not yet under its name
        assert Store.open_or_create(tmp_path / "s").trash.is_dir()

    def test_what_is_no_store_is_refused(self, tmp_path, run):
        (run / "precious.pt").touch()
        with pytest.raises(ConfigError, match="not a store"):
            Store.open_or_create(run)
        with pytest.raises(ConfigError, match="no store"):
            Store.open(tmp_path)
        with pytest.raises(ConfigError, match="no store"):
            Store.open(run / "precious.pt")
        (tmp_path / "store.json").write_text("{}")
        with pytest.raises(ConfigError, match="version None"):
            Store.open(tmp_path)
        (tmp_path / "store.json").write_text("[")
        with pytest.raises(CorruptArchive):
            Store.open(tmp_path)

    def test_names_of_archives(self, run, store):
        path = store.archive_path(run, "step_100.pt", "ab" * 32)
        assert path.name == "step_100.pt.abababababab.ckz"
        assert path.parent.parent == store.root / "archives"
        assert path.parent.name.startswith("gpt-")
        other = store.archive_path(run, "x" * 255, "ab" * 32)
        other.touch()

    def test_runs_are_told_apart_however_they_are_reached(self, run, store, tmp_path):
        twin = tmp_path / "elsewhere" / "gpt"
        twin.mkdir(parents=True)
        (tmp_path / "link").symlink_to(run)
        assert store.run_directory(twin) != store.run_directory(run)
        assert store.run_directory(tmp_path / "link") == store.run_directory(run)
        assert store.run_directory(run / ".." / "gpt") == store.run_directory(run)

    def test_a_tree_that_moves_as_a_whole_keeps_its_chains(self, run, store, tmp_path):
        put_chain(store, run, 2)
        moved = (tmp_path / "runs").rename(tmp_path / "moved")
        assert len(Store.open(moved / ".ckzd").archives(moved / "gpt")) == 2

    def test_nobody_reads_originals_who_could_not_before(self, run, store):
        run.chmod(0o750)
        assert store.archive_path(run, "a", "0" * 64).parent.stat().st_mode & 0o777 == 0o750
        for place in (store.trash, store.tmp, store.cache):
            assert place.stat().st_mode & 0o777 == 0o700


class TestDefaultStore:
    def test_it_is_beside_the_run(self, run):
        assert default_store(run) == run.parent / ".ckzd"
        assert default_store(run.parent / "gpt" / ".") == run.parent / ".ckzd"

    @pytest.mark.parametrize(
        ("names", "framework"),
        [
            (["checkpoints/checkpoint_0"], "Accelerate"),
            (["checkpoints/a--step=1-last-unfinished"], "NeMo"),
            (["checkpoints/epoch_0", "checkpoints/recipe_state"], "torchtune"),
        ],
    )
    def test_where_a_framework_lists_everything_a_store_has_to_be_chosen(self, tmp_path, names, framework):
        for name in names:
            (tmp_path / name).mkdir(parents=True)
        for run in (tmp_path / "checkpoints", tmp_path / "checkpoints" / "checkpoint_0"):
            with pytest.raises(ConfigError, match=framework) as caught:
                default_store(run)
            assert str(tmp_path / ".ckzd") in caught.value.hint

    def test_a_mount_point_needs_a_store_inside(self, run, monkeypatch):
        real = Path.stat

        def stat(self, **options):
            status = list(real(self, **options))
            status[2] += self == run
            return os.stat_result(status)

        monkeypatch.setattr(Path, "stat", stat)
        with pytest.raises(ConfigError, match="mount point") as caught:
            default_store(run)
        assert str(run / ".ckzd") in caught.value.hint


class TestArchives:
    def test_they_come_in_the_order_of_steps(self, run, store):
        for step in (1000, 20, 100, 3):
            put(store, run, step)
        put(store, run, None, name="zeta.pt", mtime_ns=1)
        put(store, run, None, name="alpha.pt", mtime_ns=2)
        records = store.archives(run)
        assert [record.manifest.step for record in records] == [3, 20, 100, 1000, None, None]
        assert [record.manifest.name for record in records][-2:] == ["zeta.pt", "alpha.pt"]

    def test_a_run_without_archives_has_none(self, run, store):
        assert store.archives(run) == []

    def test_a_corrupt_one_is_left_out_and_logged(self, run, store, caplog):
        good, bad = put(store, run, 100), put(store, run, 200)
        data = bytearray(bad.read_bytes())
        data[-3] ^= 1
        bad.write_bytes(data)
        with caplog.at_level(logging.WARNING):
            assert [record.path for record in store.archives(run)] == [good]
        assert [record.path for record in caplog.records] == [str(bad)]

    def test_a_checkpoint_is_found_by_what_it_was_and_by_what_was_restored(self, run, store):
        put(store, run, 100)
        path = put(store, run, 200)
        manifest = read_manifest(path)
        assert manifest.checkpoint != manifest.restored
        assert store.find_by_checkpoint(run, manifest.checkpoint).path == path
        assert store.find_by_checkpoint(run, manifest.restored).path == path
        assert store.find_by_checkpoint(run, "0" * 64) is None


class TestReference:
    def names(self, found):
        return found.own.manifest.name if found.own else None

    @pytest.mark.parametrize(
        ("step", "stride", "expected"),
        [
            (500, 1, 400),
            (500, 2, 300),
            (500, 9, 0),
            (250, 1, 200),
            (250, 2, 100),
            (100, 1, 0),
            (0, 1, None),
            (9999, 1, 400),
        ],
    )
    def test_it_is_the_largest_step_below_stride_back(self, run, store, step, stride, expected):
        put_chain(store, run, 5)
        found = store.references_for(run, step, f"step_{step}.pt", stride)
        assert self.names(found) == (None if expected is None else f"step_{expected}.pt")
        assert found.others == ()

    def test_a_step_that_was_written_again_counts_once_as_its_newest(self, run, store):
        put_chain(store, run, 2)
        again = put(store, run, 100, "step_0.pt", reconstruction="again", mtime_ns=10**12)
        assert store.references_for(run, 200, "step_200.pt", 1).own.path == again
        assert self.names(store.references_for(run, 200, "step_200.pt", 2)) == "step_0.pt"

    def test_without_a_step_it_is_the_newest(self, run, store):
        put(store, run, None, name="last.pt", mtime_ns=1)
        newest = put(store, run, None, name="last.pt", mtime_ns=2, content="again", reconstruction="again")
        assert store.references_for(run, None, "last.pt", 1).own.path == newest

    def test_of_each_other_series_it_is_the_newest_whatever_its_step(self, run, store):
        put_chain(store, run, 3)
        put(store, run, 7, name="ema_7.pt", mtime_ns=10**12)
        found = store.references_for(run, 1, "ckpt_1.pt")
        assert (found.own, [other.manifest.name for other in found.others]) == (None, ["ema_7.pt", "step_200.pt"])
        assert self.names(store.references_for(run, 300, "step_300.pt")) == "step_200.pt"
        assert self.names(store.references_for(run, 8, "ema_8.pt")) == "ema_7.pt"

    def test_over_damage_nothing_of_another_series_is_one(self, run, store, caplog):
        (base,) = put_chain(store, run, 1)
        put(store, run, 0, name="ema_0.pt")
        base.write_bytes(base.read_bytes().replace(b"firstsecond", b"firsT\0\0\0\0\0\0"))
        assert store.references_for(run, 100, "step_100.pt") == References(None)
        assert "becomes a new base" in caplog.text
        assert [other.manifest.name for other in store.references_for(run, 1, "ckpt_1.pt").others] == ["ema_0.pt"]

    def test_an_archive_whose_chain_is_broken_is_never_one(self, run, store, caplog):
        archives = put_chain(store, run, 4)
        archives[2].unlink()
        with caplog.at_level(logging.WARNING):
            assert self.names(store.references_for(run, 400, "step_400.pt", 1)) == "step_100.pt"
        assert "reference is missing" in caplog.text

    def test_ruined_ones_are_passed_over_as_if_they_were_not_there(self, run, store):
        """Neither stride nor depth count them, and the next ruined one is beside the first."""
        put_chain(store, run, 3)
        for step in (300, 310):
            assert self.names(store.references_for(run, step, f"step_{step}.pt")) == "step_200.pt"
            put(store, run, step, "step_200.pt", quality={"ruined": 0.5}, depth=3)
        put(store, run, 320, "step_200.pt", depth=3)
        assert self.names(store.references_for(run, 400, "step_400.pt")) == "step_320.pt"
        assert self.names(store.references_for(run, 400, "step_400.pt", 2)) == "step_200.pt"
        assert (
            self.names(store.references_for(run, 400, "step_400.pt", max_depth=3)) == "step_0.pt"
        )  # where branches begin

    def test_one_that_is_ruined_in_part_is_still_one(self, run, store):
        put(store, run, 100)
        put(store, run, 200, "step_100.pt", quality={"ruined": 0.4})
        assert self.names(store.references_for(run, 300, "step_300.pt")) == "step_200.pt"


@contextmanager
def other_process(code: str, *arguments):
    """A second process that runs `code`, says so, and holds on until it is told to end."""
    script = f"import sys\nfrom pathlib import Path\nfrom ckzd.store import Store\n{code}"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == "ready"
        yield process
        process.stdin.close()


HOLD = """
store = Store.open(Path(sys.argv[1]))
with {lock}:
    print("ready", flush=True)
    sys.stdin.read()
"""
SHARED, EXCLUSIVE, DAEMON = "store.lock(shared=True)", "store.lock(shared=False)", "store.daemon_lock()"


class TestLocks:
    @pytest.mark.parametrize(
        ("theirs", "ours", "allowed"),
        [
            (SHARED, SHARED, True),
            (SHARED, EXCLUSIVE, False),
            (EXCLUSIVE, SHARED, False),
            (DAEMON, DAEMON, False),
            (DAEMON, EXCLUSIVE, True),
        ],
    )
    def test_between_processes(self, store, theirs, ours, allowed):
        with other_process(HOLD.format(lock=theirs), store.root) as process:
            lock = {SHARED: store.lock, EXCLUSIVE: lambda: store.lock(shared=False), DAEMON: store.daemon_lock}[ours]
            if allowed:
                with lock():
                    pass
            else:
                with pytest.raises(StoreLocked, match=rf"held by (process {process.pid} |another)"), lock():
                    pass
        with lock():
            pass

    def test_a_killed_holder_leaves_no_lock(self, store):
        with other_process(HOLD.format(lock=EXCLUSIVE), store.root) as process:
            process.kill()
            process.wait()
            with store.lock(shared=False):
                pass

    def test_waiting_has_a_limit_and_an_end(self, store):
        with other_process(HOLD.format(lock="store.replace_lock(wait_seconds=0)"), store.root) as process:
            with pytest.raises(StoreLocked), store.replace_lock(wait_seconds=0.1):
                pass
            process.stdin.close()
            with store.replace_lock(wait_seconds=30):
                pass


class TestTemps:
    def test_those_of_the_living_stay(self, store):
        mine = store.new_temp(".ckz")
        mine.touch()
        code = (
            't = Store.open(Path(sys.argv[1])).new_temp(".x"); t.touch(); print("ready", flush=True); sys.stdin.read()'
        )
        with other_process(code, store.root):
            assert store.sweep_temps(now=time.time() + 10**6) == []
        removed = store.sweep_temps()
        assert len(removed) == 1
        assert list(store.tmp.iterdir()) == [mine]

    def test_a_recycled_process_number_is_not_the_owner(self, store):
        ours = Process.this()
        dead = Process(ours.boot, ours.namespace, ours.pid, "1")
        (store.tmp / f"{dead}-abc.d").mkdir()
        assert len(store.sweep_temps()) == 1

    def test_what_cannot_be_told_stays_for_a_day(self, store):
        elsewhere = store.tmp / f"{Process('0' * 8, '1', 1, '1')}-abc.ckz"
        elsewhere.touch()
        assert store.sweep_temps() == []
        assert store.sweep_temps(now=time.time() + 25 * 3600) == [elsewhere]

    def test_what_is_not_ours_stays_forever(self, store):
        (store.tmp / "somebody's.ckz").touch()
        assert store.sweep_temps(now=time.time() + 10**9) == []


class TestCache:
    def test_the_longest_untouched_goes_first(self, store):
        for age, name in enumerate(["new", "middle", "old", "needed"]):
            path = store.cache_path(name)
            path.write_bytes(bytes(100))
            os.utime(path, (1000 - age, 1000 - age))
        assert store.evict_cache(keep={"needed"}, max_bytes=250) == 200
        assert sorted(path.stem for path in store.cache.iterdir()) == ["needed", "new"]
        assert store.evict_cache(keep={"needed"}, max_bytes=0) == 100
        assert [path.stem for path in store.cache.iterdir()] == ["needed"]
