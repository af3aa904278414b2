"""What there is no room for: the trash goes first, and a full disk still has room for a replacement."""

import os
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from making import sha256, store_archive
from serving import write_checkpoint

from ckzd import durable
from ckzd.codec.presets import PRESETS
from ckzd.errors import NoSpace
from ckzd.formats import read_checkpoint
from ckzd.operations import room
from ckzd.operations.compress import compress
from ckzd.operations.replace import replace
from ckzd.operations.room import added_bytes, keep_free, make_room, space_needed, watch_room
from ckzd.store import RESERVE_BYTES, Store, default_store


@pytest.fixture
def run(tmp_path) -> Path:
    run = tmp_path / "disk" / "run"
    run.mkdir(parents=True)
    return run


@pytest.fixture
def replaced(run):
    """A store and three replaced checkpoints of 40 kB, the first one longest in the trash."""
    store = Store.open_or_create(default_store(run))
    for step in (1, 2, 3):
        path = write_checkpoint(run / f"step_{step}.safetensors", elements=10_000)
        archive = store_archive(store, path, step=step, reconstruction=f"{step:064}")
        replace(path, archive, store)
        (entry,) = [entry for entry in store.trash.iterdir() if (entry / "held" / path.name).exists()]
        os.utime(entry / "verified", (step, step))
    return store


def held(store: Store) -> list[str]:
    return sorted(path.name for path in store.trash.glob("*/held/*"))


@contextmanager
def disk(place: Path, nbytes: int):
    """A file system of this size."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(place)]
    mounted = subprocess.run(command, check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def free(monkeypatch, replaced):
    """As free as it is told, and by what has left the trash since."""

    def _set(nbytes: int) -> None:
        before = len(held(replaced))
        monkeypatch.setattr(room.durable, "free_bytes", lambda _: nbytes + 40_960 * (before - len(held(replaced))))

    return _set


def test_the_oldest_of_the_trash_goes_first_and_no_more_than_has_to(replaced, run, free):
    free(100_000)
    make_room(replaced, run, 60_000, 20_000)
    assert len(held(replaced)) == 3 - 2, "what is added by 60 kB takes two"
    assert held(replaced) == ["step_3.safetensors"]


def test_trash_stays_where_there_is_room_and_more_was_given_back_than_is_added(replaced, run, free):
    free(10**9)
    make_room(replaced, run, 30_000, 20_000)
    assert held(replaced) == ["step_2.safetensors", "step_3.safetensors"]
    make_room(replaced, run, 5_000, 20_000)
    assert held(replaced) == ["step_2.safetensors", "step_3.safetensors"]


def test_the_trash_is_emptied_for_space_even_of_other_runs(replaced, tmp_path, free):
    other = tmp_path / "disk" / "other"
    other.mkdir()
    free(0)
    make_room(replaced, other, 40_000, 30_000)
    assert held(replaced) == ["step_3.safetensors"]


def test_while_something_else_is_done_the_trash_makes_way_for_the_trainer(replaced, free, monkeypatch):
    monkeypatch.setattr(room, "LOOK_SECONDS", 0.01)
    free(10**9)
    with watch_room(replaced.root, 60_000):
        time.sleep(0.1)
        assert len(held(replaced)) == 3
        free(0)
        deadline = time.monotonic() + 30
        while len(held(replaced)) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert held(replaced) == ["step_3.safetensors"]


def test_an_original_stays_whose_archive_is_damaged(replaced, run, free):
    victim = next(path for path in replaced.root.rglob("step_1*.ckz") if path.parent.parent.name == "archives")
    victim.write_bytes(victim.read_bytes()[:-100])
    free(0)
    with pytest.raises(NoSpace):
        make_room(replaced, run, 10**6, 0)
    assert held(replaced) == ["step_1.safetensors"]


def test_reconstructions_of_other_runs_go_last(replaced, run, free):
    own = replaced.archives(run)[-1].manifest.reconstruction
    for identity in (own, "f" * 64):
        replaced.cache_path(identity).write_bytes(bytes(5000))
    free(0)
    with pytest.raises(NoSpace):
        make_room(replaced, run, 10**6, 0)
    assert [path.stem for path in replaced.cache.glob("*")] == [own]


def test_a_disk_is_watch_room_by_the_trash_and_then_the_cache(replaced, free):
    replaced.cache_path("f" * 64).write_bytes(bytes(5000))
    free(10_000)
    assert keep_free(replaced, 5_000) == 0
    assert keep_free(replaced, 50_000) == 40_960
    assert held(replaced) == ["step_2.safetensors", "step_3.safetensors"]
    assert list(replaced.cache.glob("*.rec"))
    keep_free(replaced, 10**9)
    assert held(replaced) == []
    assert list(replaced.cache.glob("*.rec")) == []


def test_what_is_added_is_archives_and_cache_less_what_was_deleted(replaced, run):
    records = replaced.archives(run)
    archives = sum(record.path.stat().st_size for record in records)
    originals = sum(record.manifest.original_bytes for record in records)
    assert added_bytes(replaced, run) == pytest.approx(archives, abs=3 * 4096), "all of it is in the trash"
    replaced.cache_path(records[0].manifest.reconstruction).write_bytes(bytes(5000))
    room.empty_trash(replaced, 0.0, time.time())
    assert added_bytes(replaced, run) == archives + 5000 - originals


def test_the_first_archives_are_estimated_from_the_codec_and_later_ones_from_the_last(run):
    store = Store.open_or_create(default_store(run))
    path = write_checkpoint(run / "step_1.safetensors", elements=100_000)
    checkpoint = read_checkpoint(path)
    first = space_needed(store, run, checkpoint, PRESETS["resume"], restored=False)
    assert first > 400_000 + 200_000, "a reconstruction of weights alone is as large as they, their levels are half"
    assert space_needed(store, run, checkpoint, PRESETS["resume"], restored=True) == first + checkpoint.nbytes
    checkpoint.source.close()

    archive = store_archive(store, path, step=1, preset="resume")
    (record,) = store.archives(run)
    store.cache_path(record.manifest.reconstruction).write_bytes(bytes(10_000))
    known = space_needed(store, run, checkpoint, PRESETS["resume"], restored=False)
    expected = archive.stat().st_size + 10_000 * room._BASES + 100_000 * room._LEVELS
    assert known == pytest.approx(1.1 * expected, rel=0.01)
    store.cache_path(record.manifest.reconstruction).unlink()
    assert space_needed(store, run, checkpoint, PRESETS["resume"], restored=False) > first


def test_what_an_archive_needs_is_known_from_its_own_series(run):
    """A small one beside it, archived last, says little of a large one."""
    store = Store.open_or_create(default_store(run))
    for name, elements, cached in (("G_1", 100_000, 500_000), ("D_1", 100_000, 100)):
        path = write_checkpoint(run / f"{name}.safetensors", elements=elements)
        store_archive(store, path, step=1, preset="resume", reconstruction=sha256(name.encode()))
        store.cache_path(sha256(name.encode())).write_bytes(bytes(cached))
    for name in ("G_2", "D_2"):
        checkpoint = read_checkpoint(write_checkpoint(run / f"{name}.safetensors", elements=100_000))
        needed = space_needed(store, run, checkpoint, PRESETS["resume"], restored=False)
        assert (needed > 2 * 500_000) == (name == "G_2")
        checkpoint.source.close()


def write_training_state(path: Path, step: int, width: int = 256) -> Path:
    """Weights and Adam's moments after some steps: 12 bytes a parameter."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(width, width)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    for _ in range(3 * step):
        layer(torch.randn(8, width)).square().mean().backward()
        optimizer.step()
    torch.save({"model": layer.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)
    return path


class Peak(threading.Thread):
    """The most that was used of a file system, above what it was told to expect."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place, self.ended = place, threading.Event()
        self.most = 0

    def run(self) -> None:
        while not self.ended.wait(0.005):
            status = os.statvfs(self.place)
            self.most = max(self.most, (status.f_blocks - status.f_bfree) * status.f_frsize)


def test_a_run_with_its_archives_and_trash_takes_no_more_than_its_originals(tmp_path):
    """As the daemon does it by default: all but the newest two are replaced, none leaves the trash by its age."""
    count, size = 5, write_training_state(tmp_path / "probe.pt", 1).stat().st_size
    with disk(tmp_path / "disk", 2 * count * size) as place:
        (place / "run").mkdir()
        peak = Peak(place)
        peak.start()
        try:
            archives = []
            for step in range(1, count + 1):
                path = write_training_state(place / "run" / f"step_{step}.pt", step)
                if len(archives) >= 2:
                    replace(path.with_name(f"step_{step - 2}.pt"), archives[-2], Store.open(place / ".ckzd"))
                archives.append(Path(compress(path, min_free=0).archive))
        finally:
            peak.ended.set()
            peak.join()
    assert peak.most <= count * size + 2 * RESERVE_BYTES


def test_where_a_delta_has_no_room_a_base_may_have_some(run, monkeypatch):
    paths = [write_training_state(run / f"step_{step}.pt", step) for step in (1, 2)]
    compress(paths[0], min_free=0)
    store = Store.open(default_store(run))
    checkpoint = read_checkpoint(paths[1])
    checkpoint.source.close()
    base, delta = (
        space_needed(store, run, checkpoint, PRESETS["resume"], restored=False, as_base=as_base)
        for as_base in (True, False)
    )
    assert base < delta
    monkeypatch.setattr(durable, "free_bytes", lambda _: base - 1)
    with pytest.raises(NoSpace):
        compress(paths[1], min_free=0)
    monkeypatch.setattr(durable, "free_bytes", lambda _: base)
    assert compress(paths[1], min_free=0).reference is None
    monkeypatch.setattr(durable, "free_bytes", lambda _: 10**9)
    assert compress(write_training_state(run / "step_3.pt", 3), min_free=0).reference is not None


def test_what_a_branch_begins_with_is_decoded_first_and_takes_room_for_it(run, monkeypatch):
    """Only the newest reconstruction is cached: where a delta against an older one does not fit, a base does."""
    paths = [write_training_state(run / f"step_{step}.pt", step) for step in (1, 2, 3, 4)]
    for path in paths[:3]:
        compress(path, min_free=0, max_depth=2)
    store = Store.open(default_store(run))
    first, _, newest = store.archives(run)
    checkpoint = read_checkpoint(paths[3])
    checkpoint.source.close()
    needed = partial(space_needed, store, run, checkpoint, PRESETS["resume"], restored=False)
    assert needed(reference=newest) == needed() < needed(reference=first)
    monkeypatch.setattr(durable, "free_bytes", lambda _: needed(reference=first) - 1)
    assert compress(paths[3], min_free=0, max_depth=2).reference is None
    again = write_training_state(run / "step_5.pt", 5)
    monkeypatch.setattr(durable, "free_bytes", lambda _: 10**9)
    assert compress(again, min_free=0, max_depth=2).reference is not None


def test_a_replacement_fits_on_a_disk_without_a_free_byte(tmp_path):
    with disk(tmp_path / "disk", 8_000_000) as place:
        path = write_checkpoint(place / "run" / "step_1.safetensors", elements=10_000)
        report = compress(path, preset="lossless")
        descriptor = os.open(place / "full", os.O_WRONLY | os.O_CREAT)
        with suppress(OSError):
            while os.write(descriptor, bytes(4096)):
                pass
        os.close(descriptor)
        assert os.statvfs(place).f_bavail == 0
        assert compress(path, preset="lossless", replace=True).archive == report.archive
        assert not path.exists()
        assert path.with_name(path.name + ".ckz").exists()
