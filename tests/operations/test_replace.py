"""Replacing a checkpoint: what training and its user see of it, and when it is refused."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making import archive_bytes, made_manifest, manifest_of, sha256, store_archive, tree_of

from ckzd import durable
from ckzd.errors import BadCheckpoint, ConfigError, CorruptArchive, MissingReference, NoSpace, SourceChanged
from ckzd.operations import replace as replacing
from ckzd.operations.replace import empty_trash, pointer_for, recover, replace, resolve
from ckzd.store import Store


@pytest.fixture
def single(run) -> Path:
    path = run / "step_100.pt"
    path.write_bytes(bytes(range(256)) * 40)
    os.utime(path, ns=(10**18, 10**18 + 1))
    return path


@pytest.fixture
def folder(run) -> Path:
    """As Hugging Face leaves it, with a directory inside and a link."""
    path = run / "checkpoint-100"
    (path / "shards").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "shards/more.bin"):
        (path / name).write_bytes(name.encode() * 500)
    (path / "trainer_state.json").write_text('{"global_step": 100}')
    (path / "shards" / "index.json").write_text("{}")
    (path / "latest").symlink_to("trainer_state.json")
    (path / "trainer_state.json").chmod(0o640)
    (path / "shards").chmod(0o700)
    path.chmod(0o2750)
    for name in ("shards", "trainer_state.json", "."):
        os.utime(path / name, ns=(10**18, 10**18 + 7))
    return path


@pytest.fixture(params=["exchange", "pieces"])
def method(request, monkeypatch) -> str:
    if request.param == "pieces":
        monkeypatch.setattr(durable, "exchange", no_exchange)
    return request.param


def no_exchange(a: Path, b: Path) -> None:
    raise OSError(errno.EINVAL, "invalid argument", str(a))


def give_away(path: Path) -> None:
    try:
        os.chown(path, 1234, 4321, follow_symlinks=False)
    except PermissionError:
        pytest.skip("may not give files away")


def trashed(store: Store) -> list[Path]:
    return sorted(store.trash.iterdir())


def assert_untouched(store: Store, checkpoint: Path, before: dict) -> None:
    assert tree_of(checkpoint) == before
    assert not (checkpoint.parent / f"{checkpoint.name}.ckz").exists()
    assert trashed(store) == []
    assert list(store.tmp.iterdir()) == []


class TestFile:
    def test_a_pointer_stands_where_the_file_stood(self, store, single):
        archive, content = store_archive(store, single), single.read_bytes()
        steps = []
        allocated = single.stat().st_blocks * 512
        assert replace(single, archive, store, on_step=steps.append) == allocated
        assert steps == ["intent", "pointer", "moved", "checked", "verified"]
        assert [path.name for path in single.parent.iterdir()] == ["step_100.pt.ckz"]
        pointer = json.loads(pointer_for(single).read_text())
        manifest = manifest_of(trashed(store)[0] / "held" / single.name)
        assert pointer == {
            "ckzd_pointer": 1,
            "archive": os.path.relpath(archive, single.parent),
            "archive_absolute": str(archive),
            "checkpoint": "step_100.pt",
            "reconstruction": manifest.reconstruction,
            "restore": f"ckzd restore {single}",
        }
        assert (trashed(store)[0] / "held" / single.name).read_bytes() == content
        assert recover(store) == []
        assert empty_trash(store, 0.0, time.time() + 1) == allocated
        assert trashed(store) == []
        assert resolve(single).path == archive

    def test_replacing_twice_is_replacing_once(self, store, single):
        archive = store_archive(store, single)
        assert replace(single, archive, store) > 0
        assert replace(single, archive, store) == 0
        assert len(trashed(store)) == 1

    def test_a_restored_file_is_accepted_too(self, store, single):
        restored = sha256(single.read_bytes())
        manifest = manifest_of(single)
        files = [manifest.files[0].model_copy(update={"original_sha256": sha256(b"the lossless original")})]
        archive = store.archive_path(single.parent, single.name, "0" * 64)
        archive.write_bytes(archive_bytes(made_manifest(files, name=single.name)))
        assert files[0].sha256 == restored
        assert replace(single, archive, store) > 0

    def test_the_pointer_belongs_to_the_owner(self, store, single):
        give_away(single)
        replace(single, store_archive(store, single), store)
        status = pointer_for(single).stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o644)

    @pytest.mark.parametrize("step", ["intent", "pointer", "moved"])
    def test_a_rewritten_file_stays(self, store, single, step):
        archive = store_archive(store, single)
        place = {"moved": lambda: trashed(store)[0] / "held" / single.name}.get(step, lambda: single)

        def rewrite(name):
            if name == step:  # same size, same time: only the content tells
                times = place().stat()
                place().write_bytes(b"x" * times.st_size)
                os.utime(place(), ns=(times.st_atime_ns, times.st_mtime_ns))

        with pytest.raises(SourceChanged, match="sha256"):
            replace(single, archive, store, on_step=rewrite)
        assert set(single.read_bytes()) == {ord("x")}
        assert_untouched(store, single, tree_of(single))

    def test_a_file_of_another_size_never_leaves_its_place(self, store, single):
        archive = store_archive(store, single)
        single.write_bytes(b"short")
        before = tree_of(single)
        with pytest.raises(SourceChanged, match="expected the 10240 bytes that were archived, got 5"):
            replace(single, archive, store, on_step=pytest.fail)
        assert_untouched(store, single, before)

    @pytest.mark.parametrize("step", [None, "intent", "pointer"])
    def test_what_training_rotated_away_is_not_brought_back(self, store, single, step):
        archive = store_archive(store, single)
        if step is None:
            single.unlink()
        with pytest.raises(SourceChanged, match="is gone"):
            replace(single, archive, store, on_step=lambda name: single.unlink() if name == step else None)
        # once there is a pointer, nobody can tell any more whether it is all that leads to the archive
        assert list(single.parent.iterdir()) == ([pointer_for(single)] if step == "pointer" else [])
        assert trashed(store) == []
        assert archive.exists()

    def test_a_file_that_is_written_while_a_changed_one_is_put_back_wins_and_neither_is_lost(self, store, single):
        archive = store_archive(store, single)

        def interfere(name):
            if name == "moved":
                (trashed(store)[0] / "held" / single.name).write_bytes(b"y" * 10240)
                single.write_bytes(b"newest")

        with pytest.raises(SourceChanged):
            replace(single, archive, store, on_step=interfere)
        assert single.read_bytes() == b"newest"
        assert not pointer_for(single).exists()
        kept = trashed(store)[0] / "held" / single.name
        assert kept.read_bytes() == b"y" * 10240
        assert empty_trash(store, 0.0, time.time() + 1) == 0
        assert recover(store) == [f"kept {kept}: {single} was written anew"]
        assert kept.exists()

    def test_a_file_that_somebody_writes_to_stays(self, store, single):
        archive = store_archive(store, single)
        before = tree_of(single)
        with single.open("r+b"), pytest.raises(SourceChanged, match="open for writing"):
            replace(single, archive, store)
        assert_untouched(store, single, before)

    def test_a_reader_keeps_reading(self, store, single):
        archive, content = store_archive(store, single), single.read_bytes()
        with single.open("rb") as file:
            replace(single, archive, store)
            empty_trash(store, 0.0, time.time() + 1)
            assert file.read() == content

    def test_links_are_refused(self, store, single):
        archive = store_archive(store, single)
        link, twin = single.with_name("best.pt"), single.with_name("twin.pt")
        link.symlink_to(single)
        with pytest.raises(BadCheckpoint, match="symbolic link"):
            replace(link, archive, store)
        os.link(single, twin)
        with pytest.raises(BadCheckpoint, match="2 names"):
            replace(single, archive, store)
        assert link.exists()
        assert single.read_bytes() == twin.read_bytes()
        assert trashed(store) == []

    def test_a_foreign_file_in_the_pointers_place_is_not_overwritten(self, store, single):
        archive = store_archive(store, single)
        pointer_for(single).write_text("somebody's notes")
        with pytest.raises(CorruptArchive, match="no pointer"):
            replace(single, archive, store)
        assert pointer_for(single).read_text() == "somebody's notes"
        assert single.exists()

    def test_a_later_version_supersedes_the_pointer_and_gives_it_back_on_error(self, store, single):
        first = store_archive(store, single)
        replace(single, first, store)
        old = pointer_for(single).read_text()
        single.write_bytes(b"the next version")
        second = store_archive(store, single)

        def fail(name):
            if name == "moved":
                raise OSError(errno.EIO, "input/output error")

        with pytest.raises(OSError, match="input/output"):
            replace(single, second, store, on_step=fail)
        assert pointer_for(single).read_text() == old
        assert single.read_bytes() == b"the next version"
        replace(single, second, store)
        assert resolve(single).path == second


class TestArchiveFirst:
    """Nothing moves unless the archive is whole and its chain is there, read from disk now."""

    def test_a_corrupt_archive(self, store, single):
        archive, before = store_archive(store, single), tree_of(single)
        data = bytearray(archive.read_bytes())
        data[40] ^= 1
        archive.write_bytes(data)
        with pytest.raises(CorruptArchive):
            replace(single, archive, store, on_step=pytest.fail)
        assert_untouched(store, single, before)

    def test_a_missing_archive(self, store, single):
        before = tree_of(single)
        with pytest.raises(FileNotFoundError):
            replace(single, store.root / "archives" / "nothing.ckz", store, on_step=pytest.fail)
        assert_untouched(store, single, before)

    def test_a_broken_chain(self, store, single):
        archive, before = store_archive(store, single, reference="1" * 64, depth=1), tree_of(single)
        with pytest.raises(MissingReference):
            replace(single, archive, store, on_step=pytest.fail)
        assert_untouched(store, single, before)

    def test_the_trash_keeps_what_lost_its_archive(self, store, single):
        archive = store_archive(store, single)
        replace(single, archive, store)
        saved = archive.read_bytes()
        for damage in (saved[:-1], None):
            archive.unlink() if damage is None else archive.write_bytes(damage)
            assert empty_trash(store, 0.0, time.time() + 1) == 0
            assert len(trashed(store)) == 1
        archive.write_bytes(saved)
        assert empty_trash(store, 0.0, time.time() + 1) > 0

    def test_another_file_system_is_refused(self, store, single, monkeypatch):
        archive, before = store_archive(store, single), tree_of(single)

        def other_mount(source, target):
            raise OSError(errno.EXDEV, "invalid cross-device link", str(source))

        real = os.rename
        monkeypatch.setattr(os, "rename", lambda *paths: (other_mount if paths[0] == single else real)(*paths))
        with pytest.raises(ConfigError, match="nothing can be renamed"):
            replace(single, archive, store)
        assert_untouched(store, single, before)

    def test_a_really_other_file_system_is_refused(self, tmp_path, single):
        place = tmp_path / "mount"
        place.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "none", place], capture_output=True, check=False).returncode != 0:
            pytest.skip("may not mount a tmpfs")
        try:
            far = Store.open_or_create(place / "store")
            archive, before = store_archive(far, single), tree_of(single)
            with pytest.raises(ConfigError, match="not on the file system"):
                replace(single, archive, far)
            assert_untouched(far, single, before)
        finally:
            subprocess.run(["umount", place], check=True)


class TestDirectory:
    def test_the_large_files_leave_and_the_rest_stays_as_it_was(self, store, folder, method):
        archive, before = store_archive(store, folder), tree_of(folder)
        large = ["model.safetensors", "optimizer.pt", "shards/more.bin"]
        allocated = sum((folder / name).stat().st_blocks * 512 for name in large)
        inode = folder.stat().st_ino
        assert replace(folder, archive, store) == allocated
        after = tree_of(folder)
        assert set(before) - set(after) == set(large)
        assert set(after) - set(before) == {"ckzd.json"}
        kept = set(after) & set(before)
        if method == "pieces":
            kept -= {"shards"}  # its time is new; only the checkpoint's own is what rotation goes by
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
        assert (folder.stat().st_ino == inode) is (method == "pieces")
        assert resolve(folder).path == resolve(folder / "ckzd.json").path == archive
        held = trashed(store)[0] / "held" / folder.name
        assert all(tree_of(held)[name][0] == before[name][0] for name in large)
        assert replace(folder, archive, store) == 0
        assert recover(store) == []
        assert empty_trash(store, 0.0, time.time() + 1) == allocated
        assert trashed(store) == []

    def test_owners_stay(self, store, folder):
        for path in [folder, *folder.rglob("*")]:
            give_away(path)
        os.utime(folder, ns=(5, 5))
        before = tree_of(folder)
        replace(folder, store_archive(store, folder), store)
        after = tree_of(folder)
        assert all(after[name] == before[name] for name in set(after) & set(before))
        assert after["ckzd.json"][2:4] == (1234, 4321)

    def test_extended_attributes_stay(self, store, folder):
        try:
            os.setxattr(folder, "user.note", b"mine")
            os.setxattr(folder / "trainer_state.json", "user.note", b"too")
        except OSError:
            pytest.skip("no extended attributes here")
        replace(folder, store_archive(store, folder), store)
        assert os.getxattr(folder, "user.note") == b"mine"
        assert os.getxattr(folder / "trainer_state.json", "user.note") == b"too"

    def test_without_exchange_no_one_ever_sees_weights_without_adam(self, store, folder, monkeypatch):
        monkeypatch.setattr(durable, "exchange", no_exchange)
        seen = []

        def look(name):
            seen.append(((folder / "model.safetensors").exists(), (folder / "optimizer.pt").exists()))
            assert folder.stat().st_mtime_ns == 10**18 + 7
            if name == "checked":
                raise OSError(errno.EIO, "input/output error")

        before = tree_of(folder)
        real = durable.rename

        def watched(source, target):
            real(source, target)
            seen.append(((folder / "model.safetensors").exists(), (folder / "optimizer.pt").exists()))

        monkeypatch.setattr(durable, "rename", watched)
        with pytest.raises(OSError, match="input/output"):
            replace(folder, store_archive(store, folder), store, on_step=look)
        assert (False, False) in seen
        assert (True, False) not in seen
        assert {n: v for n, v in tree_of(folder).items() if n != "shards"} == {
            n: v for n, v in before.items() if n != "shards"
        }

    @pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json", "shards/index.json"])
    @pytest.mark.parametrize("step", [None, "intent"])
    def test_a_changed_directory_stays(self, store, folder, method, name, step):
        archive = store_archive(store, folder)

        def rewrite(now):
            if now == step:
                (folder / name).write_bytes(b"x" * (folder / name).stat().st_size)

        rewrite(None)
        if step is None:
            before = tree_of(folder)
        with pytest.raises(SourceChanged):
            replace(folder, archive, store, on_step=rewrite)
        if step is None and (method == "exchange" or name != "model.safetensors"):
            assert_untouched(store, folder, before)
        assert set((folder / name).read_bytes()) == {ord("x")}
        assert not (folder / "ckzd.json").exists()
        assert trashed(store) == []

    @pytest.mark.parametrize(
        ("step", "change"),
        [
            ("prepared", lambda place: (place / "late.txt").write_text("late")),
            ("prepared", lambda place: (place / "trainer_state.json").write_text("{}")),
            ("prepared", lambda place: (place / "shards" / "index.json").write_text("[]")),
            ("prepared", lambda place: (place / "optimizer.pt").unlink()),
            ("prepared", lambda place: (place / "model.safetensors").write_bytes(b"z")),
        ],
    )
    def test_a_change_before_the_exchange_is_seen_after_it(self, store, folder, step, change):
        archive = store_archive(store, folder)
        seen = {}

        def interfere(name):
            if name == step:
                change(folder)
                seen.update(tree_of(folder))

        with pytest.raises(SourceChanged):
            replace(folder, archive, store, on_step=interfere)
        assert_untouched(store, folder, seen)

    def test_what_training_writes_into_the_place_meanwhile_survives_being_put_back(self, store, folder):
        archive = store_archive(store, folder)

        def interfere(name):
            if name == "exchanged":
                (folder / "late").mkdir()
                (folder / "late" / "rng_state_1.pth").write_text("rank 1")
                (folder / "trainer_state.json").write_text("newer")
                held = trashed(store)[0] / "held" / folder.name
                times = (held / "model.safetensors").stat()
                (held / "model.safetensors").write_bytes(b"x" * times.st_size)

        with pytest.raises(SourceChanged):
            replace(folder, archive, store, on_step=interfere)
        assert (folder / "late" / "rng_state_1.pth").read_text() == "rank 1"
        assert (folder / "trainer_state.json").read_text() == "newer"
        assert set((folder / "model.safetensors").read_bytes()) == {ord("x")}
        assert (folder / "optimizer.pt").exists()
        assert not (folder / "ckzd.json").exists()
        assert trashed(store) == []

    @pytest.mark.parametrize("step", [None, "intent", "prepared"])
    def test_what_training_rotated_away_is_not_brought_back(self, store, folder, method, step):
        if method == "pieces" and step == "prepared":
            step = "pointer"
        archive = store_archive(store, folder)
        if step is None:
            shutil.rmtree(folder)
        with pytest.raises(SourceChanged, match="is gone"):
            replace(folder, archive, store, on_step=lambda name: shutil.rmtree(folder) if name == step else None)
        assert list(folder.parent.iterdir()) == []
        assert trashed(store) == []

    def test_rotation_after_the_exchange_is_fine(self, store, folder):
        archive = store_archive(store, folder)
        replace(folder, archive, store, on_step=lambda name: shutil.rmtree(folder) if name == "exchanged" else None)
        assert not folder.exists()
        assert empty_trash(store, 0.0, time.time() + 1) > 0
        assert resolve(folder).path == archive

    def test_files_that_the_archive_does_not_know_stay(self, store, folder, method):
        archive = store_archive(store, folder)
        (folder / "notes.txt").write_text("mine")
        replace(folder, archive, store)
        assert (folder / "notes.txt").read_text() == "mine"

    def test_links_are_refused(self, store, folder):
        archive = store_archive(store, folder)
        os.link(folder / "trainer_state.json", folder.parent / "twin.json")
        with pytest.raises(BadCheckpoint, match="2 names"):
            replace(folder, archive, store)
        (folder.parent / "twin.json").unlink()
        (folder / "model.safetensors").rename(folder.parent / "m")
        (folder / "model.safetensors").symlink_to("../m")
        with pytest.raises(BadCheckpoint, match="symbolic link"):
            replace(folder, archive, store)
        link = folder.parent / "last"
        link.symlink_to(folder)
        with pytest.raises(BadCheckpoint, match="symbolic link"):
            replace(link, archive, store)

    def test_a_pipe_is_refused(self, store, folder):
        archive = store_archive(store, folder)
        os.mkfifo(folder / "pipe")
        with pytest.raises(BadCheckpoint, match="neither a file nor a directory"):
            replace(folder, archive, store)

    def test_a_directory_without_tensors_is_refused(self, store, run):
        place = run / "checkpoint-1"
        place.mkdir()
        (place / "a.json").write_text("{}")
        with pytest.raises(BadCheckpoint, match="nothing to replace"):
            replace(place, store_archive(store, place), store)

    def test_a_file_in_the_place_of_a_directory_is_refused(self, store, folder):
        archive = store_archive(store, folder)
        shutil.rmtree(folder)
        folder.write_text("a file now")
        with pytest.raises(SourceChanged, match="is no directory"):
            replace(folder, archive, store)
        assert folder.read_text() == "a file now"

    def test_a_full_disk_deletes_nothing(self, store, folder, monkeypatch):
        archive, before = store_archive(store, folder), tree_of(folder)
        monkeypatch.setattr(durable, "free_bytes", lambda path: 3)
        with pytest.raises(NoSpace):
            replace(folder, archive, store)
        assert_untouched(store, folder, before)


class TestTrash:
    def test_it_is_kept_for_as_long_as_one_wishes(self, store, single):
        replace(single, store_archive(store, single), store)
        now = time.time()
        assert empty_trash(store, 3600.0, now + 3000) == 0
        assert len(trashed(store)) == 1
        assert empty_trash(store, 3600.0, now + 4000) > 0
        assert trashed(store) == []

    def test_an_interrupted_deletion_is_finished(self, store, folder):
        replace(folder, store_archive(store, folder), store)
        entry = trashed(store)[0]
        shutil.rmtree(entry / "held" / folder.name / "shards")
        (entry / "held" / folder.name / "model.safetensors").unlink()
        assert recover(store) == []
        assert empty_trash(store, 0.0, time.time() + 1) > 0
        assert trashed(store) == []
        (store.trash / "leftover").mkdir()
        recover(store)
        assert trashed(store) == []

    def test_what_it_does_not_understand_it_leaves_and_says_so(self, store, caplog):
        (store.trash / "odd" / "held").mkdir(parents=True)
        (store.trash / "odd" / "held" / "model.pt").write_bytes(b"precious")
        (report,) = recover(store)
        assert report.startswith(f"failed {store.trash / 'odd'}")
        assert (store.trash / "odd" / "held" / "model.pt").exists()
        caplog.clear()


class TestResolve:
    def test_an_archive_is_itself(self, store, single):
        archive = store_archive(store, single)
        link = single.with_name("link.ckz")
        link.symlink_to(archive)
        assert resolve(archive).path == resolve(link).path == archive

    def test_a_damaged_archive_is_still_the_archive_that_is_meant(self, store, single):
        archive = store_archive(store, single)
        archive.write_bytes(b"\0" + archive.read_bytes()[1:])
        assert resolve(archive).path == archive
        archive.write_bytes(archive.read_bytes()[:-1])
        with pytest.raises(CorruptArchive) as caught:
            resolve(archive)
        assert caught.value.subject == str(archive)

    def test_a_pointer_follows_a_tree_that_moves(self, store, single, tmp_path):
        archive = store_archive(store, single)
        replace(single, archive, store)
        moved = (tmp_path / "runs").rename(tmp_path / "moved")
        assert resolve(moved / "gpt" / "step_100.pt").path == moved / archive.relative_to(tmp_path / "runs")

    def test_a_pointer_alone_finds_its_archive_where_it_was(self, store, single, tmp_path):
        archive = store_archive(store, single)
        replace(single, archive, store)
        alone = Path(shutil.move(pointer_for(single), tmp_path / "x.ckz"))
        assert resolve(alone).path == archive
        archive.unlink()
        with pytest.raises(MissingReference, match="points to"):
            resolve(alone)

    def test_an_archived_checkpoint_that_is_still_there_names_its_archive(self, store, single, folder):
        for checkpoint in (single, folder):
            assert store_archive(store, checkpoint) == resolve(checkpoint).path

    def test_one_that_was_written_again_does_not(self, store, single):
        archive = store_archive(store, single)
        replace(single, archive, store)
        single.write_bytes(b"a later version")
        with pytest.raises(ConfigError, match="written again") as caught:
            resolve(single)
        assert str(archive) in caught.value.hint

    def test_an_archive_named_like_a_pointer_is_meant_itself(self, store, single):
        archive = shutil.move(store_archive(store, single), pointer_for(single))
        assert resolve(single).path == archive

    @pytest.mark.parametrize(("characters", "error"), [(300, MissingReference), (5000, CorruptArchive)])
    def test_a_pointer_to_a_name_that_is_too_long(self, run, characters, error):
        pointer = run / "ckzd.json"
        fields = dict.fromkeys(("archive_absolute", "checkpoint", "reconstruction", "restore"), "/")
        pointer.write_text(json.dumps({"ckzd_pointer": 1, "archive": "a" * characters, **fields}))
        with pytest.raises(error):
            resolve(pointer)

    def test_what_is_not_archived_is_told_from_what_is_not_there(self, store, single, run):
        with pytest.raises(ConfigError, match="nothing says that it is archived"):
            resolve(single)
        with pytest.raises(ConfigError, match="is not there"):
            resolve(run / "step_7.pt")
        with pytest.raises(ConfigError, match="nothing says that it is archived"):
            resolve(run)

    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"ckzd_pointer":2}', '{"ckzd_pointer":1}', "[" * 60_000, "{" + " " * 70_000]
    )
    def test_a_damaged_pointer_is_corrupt(self, run, text):
        pointer = run / "ckzd.json"
        pointer.write_text(text)
        with pytest.raises(CorruptArchive, match="no pointer"):
            resolve(run)


class Killed(BaseException):
    """In place of a SIGKILL: nothing is put back."""


def killed_after(step: str, checkpoint: Path, archive: Path, store: Store, monkeypatch) -> None:
    """What is left of a replacement that was killed right after a step."""

    def die(name):
        if name == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(replacing, "put_back", lambda entry: None)
        with pytest.raises(Killed):
            replace(checkpoint, archive, store, on_step=die)


class TestAfterAnEarlierAttempt:
    """An intent that somebody left must not be carried out, nor undone, on top of a later replacement."""

    @pytest.mark.parametrize("step", ["intent", "pointer", "moved"])
    def test_a_file_that_is_replaced_again_stays_replaced(self, store, single, monkeypatch, step):
        archive = store_archive(store, single)
        killed_after(step, single, archive, store, monkeypatch)
        if single.exists():  # else the second run finds nothing to do
            assert replace(single, archive, store) > 0
        empty_trash(store, 0.0, time.time() + 1)
        recover(store)
        empty_trash(store, 0.0, time.time() + 1)
        assert trashed(store) == []
        assert resolve(single).path == archive

    @pytest.mark.parametrize("step", ["intent", "prepared", "pointer", "exchanged", "moved model.safetensors"])
    def test_so_does_a_directory(self, store, folder, method, monkeypatch, step):
        if step not in {"pieces": ("pointer", "moved model.safetensors")}.get(
            method, ("intent", "prepared", "exchanged")
        ):
            pytest.skip("the other way has no such step")
        archive = store_archive(store, folder)
        killed_after(step, folder, archive, store, monkeypatch)
        replace(folder, archive, store)
        empty_trash(store, 0.0, time.time() + 1)
        recover(store)
        assert trashed(store) == []
        assert resolve(folder).path == archive
        assert (folder / "trainer_state.json").exists()

    def test_even_one_that_nobody_settled_leaves_the_pointer_alone(self, store, single, monkeypatch):
        """As versions did that did not look for older intents."""
        archive = store_archive(store, single)
        killed_after("pointer", single, archive, store, monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(replacing, "_settle_older", lambda *_: None)
            replace(single, archive, store)
        empty_trash(store, 0.0, time.time() + 1)
        assert len(trashed(store)) == 1
        recover(store)
        assert trashed(store) == []
        assert resolve(single).path == archive

    def test_another_checkpoints_intent_is_left_to_those_who_recover(self, store, single, folder, monkeypatch):
        archives = store_archive(store, single), store_archive(store, folder)
        killed_after("pointer", single, archives[0], store, monkeypatch)
        replace(folder, archives[1], store)
        assert len(trashed(store)) == 2
        assert single.exists()

    def test_what_took_the_pointers_place_is_nobodys_pointer(self, store, single, monkeypatch):
        killed_after("pointer", single, store_archive(store, single), store, monkeypatch)
        pointer_for(single).unlink()
        pointer_for(single).mkdir()
        assert recover(store) == [f"undone {single}"]
        assert trashed(store) == []
        assert single.exists()
        assert pointer_for(single).is_dir()

    def test_one_that_cannot_be_undone_stops_the_next(self, store, single, monkeypatch):
        archive = store_archive(store, single)
        killed_after("pointer", single, archive, store, monkeypatch)

        def fail(path):
            raise OSError(errno.EIO, "input/output error", str(path))

        with monkeypatch.context() as patch:
            patch.setattr(durable, "remove", fail)
            with pytest.raises(OSError, match="input/output"):
                replace(single, archive, store, on_step=pytest.fail)
        assert single.exists()
        assert replace(single, archive, store) > 0


class TestConcurrently:
    def test_two_who_replace_the_same_do_it_once(self, store, folder):
        archive = store_archive(store, folder)
        code = (
            "import sys; from pathlib import Path; from ckzd.store import Store\n"
            "from ckzd.operations.replace import replace\n"
            "checkpoint, archive, root = map(Path, sys.argv[1:])\n"
            "print(replace(checkpoint, archive, Store.open(root)))"
        )
        command = [sys.executable, "-c", code, folder, archive, store.root]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        freed = sorted(int(process.communicate()[0]) for process in both)
        assert freed[0] == 0 < freed[1]
        assert len(trashed(store)) == 1


def test_a_name_with_no_room_for_a_pointer_is_refused(store, run):
    long = run / ("x" * 252)
    long.write_bytes(b"weights")
    with pytest.raises(BadCheckpoint, match="at most 251 bytes"):
        replace(long, store_archive(store, long), store)
    assert long.read_bytes() == b"weights"
