"""Archives go out of the middle of chains: what is left restores bit for bit, and what is safe stays."""

import errno
import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest
from making import put, put_chain
from operations.merging import DAY, GOLDEN, chain_in, merged, rot, stopped_before_it_went
from plain_decoder import PlainArchive
from serving import write_checkpoint

import ckzd
from ckzd import cli, durable
from ckzd.archive import ArchiveReader, container
from ckzd.chains import is_sound, read_manifest
from ckzd.errors import ConfigError, CorruptArchive, SourceChanged
from ckzd.operations import merge as module
from ckzd.operations.merge import merge
from ckzd.operations.pointer import pointer_for
from ckzd.operations.prune import Run, prune
from ckzd.operations.replace import empty_trash, replace
from ckzd.operations.restore import restore
from ckzd.operations.slim import drop_moments
from ckzd.retention import Rules
from ckzd.store import Store, default_store


def restored(archive: Path, out: Path) -> dict[str, str]:
    out.unlink(missing_ok=True)
    restore(archive, output=out)
    return {"file": hashlib.sha256(out.read_bytes()).hexdigest(), "id": read_manifest(archive).reconstruction}


def forget_cache(store: Store) -> None:
    for entry in store.cache.iterdir():
        entry.unlink()


@pytest.mark.parametrize("preset", ["resume", "paper"])
@pytest.mark.parametrize("going", [(1,), (0,), (0, 1)], ids=str)
def test_what_is_left_restores_bit_for_bit(store, run, tmp_path, preset, going):
    archives = chain_in(store, run, preset)
    left = [archive for number, archive in enumerate(archives) if number not in going]
    before = {archive: restored(archive, tmp_path / "out") for archive in left}
    size, times = sum(path.stat().st_size for path in archives), {path: path.stat().st_mtime_ns for path in left}
    (report,) = merged(store, run, *(archives[number] for number in going))
    assert report.merged == tuple(str(archives[number]) for number in going)
    assert [archive for archive in archives if archive.exists()] == left
    forget_cache(store)
    assert {archive: restored(archive, tmp_path / "out") for archive in left} == before
    assert {path: path.stat().st_mtime_ns for path in left} == times
    assert all(map(is_sound, left))
    assert [ckzd.verify(archive).files for archive in left] == [1] * len(left)
    assert sum(path.stat().st_size for path in left) < size
    assert report.freed_bytes > 0
    reference = None
    for archive in left:
        reference = PlainArchive(archive, reference).own
    assert list(store.tmp.iterdir()) == []


def test_an_archive_that_carries_goes_too(store, run, tmp_path):
    base, middle, last = chain_in(store, run)
    before = restored(last, tmp_path / "out")
    merged(store, run, base)
    with ArchiveReader(middle) as reader:
        assert [link.manifest.name for link in reader.carried()] == ["step_20.pt"]
    merged(store, run, middle)
    forget_cache(store)
    assert restored(last, tmp_path / "out") == before
    manifest = read_manifest(last)
    assert (manifest.reference, manifest.depth, manifest.carried) == (None, 2, ["carried/0", "carried/1"])
    assert ckzd.inspect(last)["carries"] == ["step_20.pt", "step_40.pt"]


def test_what_gives_weights_alone_gives_them_still(store, run, tmp_path):
    _, middle, last = chain_in(store, run)
    drop_moments(store, middle, "2026-01-01")
    drop_moments(store, last, "2026-01-02")
    restore(last, output=tmp_path / "before", weights_only=True)
    merged(store, run, middle)
    forget_cache(store)
    restore(last, output=tmp_path / "after", weights_only=True)
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()
    with ArchiveReader(last) as reader:
        assert [link.manifest.moments_dropped for link in reader.links()] == ["2026-01-01", "2026-01-02"]


def test_no_archive_that_is_carried_is_held_whole(store, run, monkeypatch):
    archives = chain_in(store, run)
    monkeypatch.setattr(container, "CHUNK_BYTES", 1024)
    sizes, real = [], ArchiveReader._pread

    def seen(self, offset, nbytes, what):
        if what not in {"central directory", container.MANIFEST}:
            sizes.append(nbytes)
        return real(self, offset, nbytes, what)

    monkeypatch.setattr(ArchiveReader, "_pread", seen)
    merged(store, run, archives[0])
    merged(store, run, archives[1])
    drop_moments(store, archives[2], DAY)
    assert read_manifest(archives[2]).carried == ["carried/0", "carried/1"]
    assert max(sizes) == container.CHUNK_BYTES
    assert is_sound(archives[2])


def test_a_part_restores_as_before(store, run, tmp_path):
    place = store.archive_path(run, "x", "0" * 64).parent
    base, last = (Path(shutil.copy(path, place)) for path in sorted((GOLDEN / "sharded").glob("*.ckz")))
    write_checkpoint(run / "step_900.pt")
    restore(last, output=tmp_path / "before", only="__1_0.distcp")
    merged(store, run, base)
    forget_cache(store)
    restore(last, output=tmp_path / "after", only="__1_0.distcp")
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("before", "after")]
    assert files[0] == files[1]
    name = "__1_0.distcp"
    assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_a_dry_run_says_what_would_be_freed_and_does_nothing(store, run):
    archives = chain_in(store, run)
    before = {path: path.read_bytes() for path in archives}
    (told,) = merged(store, run, archives[1], dry_run=True)
    assert {path: path.read_bytes() for path in archives} == before
    (done,) = merged(store, run, archives[1])
    assert (told.merged, told.archive, told.dry_run) == (done.merged, done.archive, True)
    assert abs(told.freed_bytes - done.freed_bytes) <= 2 * 4096


# What stays


@pytest.mark.parametrize(
    ("number", "why"), [(2, "the next archive is a delta against it"), (3, "the next archive is a delta against it")]
)
def test_the_end_of_a_chain_stays(store, run, number, why):
    archives = [*chain_in(store, run), put(store, run, 5000, name="other_5000.pt")]
    with pytest.raises(ConfigError, match=why):
        merged(store, run, archives[number])


def test_what_several_hang_on_stays_and_nothing_is_done(store, run):
    base, middle, last, more = put_chain(store, run, 4)
    branch = put(store, run, 350, "step_100.pt", depth=2, name="step_350.pt")
    write_checkpoint(run / "step_900.pt")
    before = {path: path.read_bytes() for path in (base, middle, last, more, branch)}
    with pytest.raises(ConfigError, match="2 archives are deltas against it"):
        merged(store, run, base, middle)
    assert {path: path.read_bytes() for path in before} == before


def test_what_prune_holds_safe_stays(store, run, tmp_path):
    archives = chain_in(store, run)
    shutil.copy(archives[1], tmp_path / "copy")
    checkpoint = run / "step_40.pt"
    checkpoint.write_bytes(b"written anew")  # the newest of its name, whatever it holds
    with pytest.raises(ConfigError, match="its original stands"):
        merged(store, run, archives[1])
    checkpoint.unlink()
    (run / "step_900.pt").unlink()
    with pytest.raises(ConfigError, match="nothing of its run is in sight"):
        merged(store, run, archives[1])
    write_checkpoint(run / "step_900.pt")
    data = bytearray(archives[0].read_bytes())
    data[len(data) - 300] ^= 1
    archives[0].write_bytes(data)
    with pytest.raises(ConfigError, match="is damaged, or what it needs is missing"):
        merged(store, run, archives[1])
    assert archives[1].read_bytes() == (tmp_path / "copy").read_bytes()


def test_more_than_an_archive_may_carry_are_refused_before_anything_is_written(store, run, monkeypatch):
    archives = chain_in(store, run)
    monkeypatch.setattr(module, "MAX_CARRIED", 1)
    before = {path: path.read_bytes() for path in archives}
    with pytest.raises(ConfigError, match="would carry 2 archives, at most 1"):
        merged(store, run, *archives[:2])
    assert merged(store, run, rules=Rules(newest=1)) == []
    assert {path: path.read_bytes() for path in archives} == before
    merged(store, run, archives[0])
    with pytest.raises(ConfigError, match="would carry 2 archives, at most 1"):
        merged(store, run, archives[1])


def test_no_more_room_is_asked_for_than_is_written(store, run, monkeypatch):
    archives, asked, real = chain_in(store, run), [], durable.require_space
    monkeypatch.setattr(durable, "require_space", lambda path, nbytes: asked.append(nbytes) or real(path, nbytes))
    merged(store, run, *archives[:2])
    with ArchiveReader(archives[2]) as reader:
        links, written = [link.nbytes for link in reader.carried()], archives[2].stat().st_size
    (nbytes,) = asked
    assert nbytes == pytest.approx(written + max(links), rel=0.2)


def test_a_cached_reconstruction_that_nothing_else_yields_stays(store, run):
    archives = chain_in(store, run)
    other = run.parent / "other"
    other.mkdir()
    shutil.copy(archives[2], store.archive_path(other, "x", "0" * 64).parent)  # its own copy of the middle is gone
    cached = [store.cache_path(read_manifest(archive).reconstruction) for archive in archives]
    for entry in cached:
        entry.write_bytes(b"cached")
    merged(store, run, *archives[:2])
    assert [entry.exists() for entry in cached] == [False, True, True]


def test_a_marker_holds_it(store, run):
    archives = chain_in(store, run)
    told = {run / "step_40.pt": "latest names it"}
    found = merge(store, Run(run, run), [archives[1]], day=DAY, now=time.time(), roots=[run], markers=lambda *_: told)
    with pytest.raises(ConfigError, match="latest names it"):
        list(found)


def test_a_rule_keeps_what_is_named(store, run):
    archives = chain_in(store, run)
    with pytest.raises(ConfigError, match="the first of every 40 steps"):
        merged(store, run, archives[1], rules=Rules(newest=1, every=40))


def test_of_a_run_goes_what_rules_let_go_and_others_need(store, run, tmp_path):
    archives = chain_in(store, run)
    before = restored(archives[2], tmp_path / "out")
    assert merged(store, run) == []  # no rule lets anything go
    assert [report.merged for report in merged(store, run, rules=Rules(newest=1))] == [tuple(map(str, archives[:2]))]
    forget_cache(store)
    assert restored(archives[2], tmp_path / "out") == before
    report = prune(store, [Run(run, run, Rules(newest=1))], roots=[run], now=time.time())
    assert [judged.goes for judged in report.judged] == [False]


def test_what_is_written_meanwhile_is_seen(store, run, monkeypatch):
    archives = chain_in(store, run)
    write = module._Merging._write

    def slow(self, step, temp, day):
        write(self, step, temp, day)
        (run / "step_40.pt").write_bytes(b"it is back")

    monkeypatch.setattr(module._Merging, "_write", slow)
    with pytest.raises(SourceChanged, match="is not merged: it stays: its original stands") as raised:
        merged(store, run, archives[1])
    assert "nothing" not in f"{raised.value} {raised.value.hint}"  # others may have been merged before
    assert all(path.exists() for path in archives)
    assert read_manifest(archives[2]).carried == []


def test_what_a_crash_left_goes_in_the_next_one(store, run, tmp_path):
    archives = stopped_before_it_went(store, run, tmp_path)
    last = archives[2].read_bytes()
    (report,) = merged(store, run, archives[1])
    assert report.merged == (str(archives[1]),)
    assert not archives[1].exists()
    assert archives[2].read_bytes() == last


def test_what_carries_it_already_is_read_back_before_it_goes(store, run, tmp_path):
    archives = stopped_before_it_went(store, run, tmp_path)
    rot(archives[2])
    with pytest.raises(CorruptArchive):
        merged(store, run, archives[1])
    assert archives[1].read_bytes() == (tmp_path / "copy").read_bytes()


def test_what_carries_it_already_is_proven_before_it_goes(store, run, tmp_path, monkeypatch):
    archives = stopped_before_it_went(store, run, tmp_path)
    asked, real = [], module.verifier
    monkeypatch.setattr(module, "verifier", lambda task: asked.append(task.archive) or real(task))
    merged(store, run, archives[1])
    assert asked == [archives[2]]


def test_a_pointer_goes_with_its_archive_if_a_rule_lets_it(store, run, tmp_path):
    archives = chain_in(store, run)
    checkpoint = run / "step_40.pt"
    restore(archives[1], output=checkpoint)
    replace(checkpoint, archives[1], store)
    empty_trash(store, 0.0, time.time() + 1)
    assert pointer_for(checkpoint).exists()
    with pytest.raises(ConfigError, match="a pointer stands for it, and no rule lets it go"):
        merged(store, run, archives[1])
    with pytest.raises(ConfigError, match="younger than 3 days"):
        merged(store, run, archives[1], rules=Rules(newest=1, days=3.0))
    shutil.copy(pointer_for(checkpoint), run / "kept.ckz")
    with pytest.raises(ConfigError, match=r"kept\.ckz names it"):
        merged(store, run, archives[1], rules=Rules(newest=1))
    (run / "kept.ckz").unlink()
    merged(store, run, archives[1], rules=Rules(newest=1))
    assert not pointer_for(checkpoint).exists()
    assert not archives[1].exists()
    assert is_sound(archives[2])


def test_which_directory_they_are_of_is_known_before_a_pointer_goes(store, run, monkeypatch):
    """Where the run was copied back: what was stopped half-way is taken for no other directory's afterwards."""
    archives = chain_in(store, run)
    restore(archives[1], output=run / "step_40.pt")
    replace(run / "step_40.pt", archives[1], store)
    empty_trash(store, 0.0, time.time() + 1)
    shutil.copytree(run, run.with_name("copy"))
    shutil.rmtree(run)
    run.with_name("copy").rename(run)
    remove = durable.remove

    def stopped(path: Path) -> None:
        if path == archives[1]:
            raise OSError(errno.EIO, "input/output error", str(path))
        remove(path)

    monkeypatch.setattr(durable, "remove", stopped)
    with pytest.raises(OSError, match="input/output"):
        merged(store, run, archives[1], rules=Rules(newest=1))
    monkeypatch.undo()
    assert not pointer_for(run / "step_40.pt").exists()
    merged(store, run, archives[1], rules=Rules(newest=1))
    assert not archives[1].exists()


# The command


def test_the_command_takes_what_is_named(store, run, capsys):
    archives = chain_in(store, run)
    assert cli.run(["merge", str(archives[1]), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"{archives[2]} would carry {archives[1].name}: " in said
    assert said.endswith("would be freed\n")
    assert archives[1].exists()
    assert cli.run(["merge", str(archives[1]), str(archives[0]), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["merged"] == list(map(str, archives[:2]))
    assert report["archive"] == str(archives[2])
    assert not archives[0].exists()
    assert cli.run(["list", str(run), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {row["checkpoint"]: (row["kind"], row["depth"], row["damaged"]) for row in rows if row["archive"]}
    assert found == {"step_60.pt": ("base", 2, None)}
    assert cli.run(["check", str(run), "--deep"]) == 0
    assert cli.run(["merge", str(archives[2])]) == ConfigError.exit_code
    assert "the next archive is a delta against it" in capsys.readouterr().err


def test_the_command_takes_what_rules_let_go(store, run, capsys, tmp_path):
    archives, config = chain_in(store, run), tmp_path / "ckzd.toml"
    assert cli.run(["merge", str(run)]) == 0
    assert "nothing may go that others need" in capsys.readouterr().out
    config.write_text(f"[[watch]]\npath = '{run}'\nreplace = true\n[watch.keep]\nnewest = 1\n")
    assert cli.run(["merge", "--config", str(config)]) == 0
    assert f"carries {archives[0].name}, {archives[1].name}: " in capsys.readouterr().out
    assert is_sound(archives[2])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_command_sees_who_holds_an_archive_beside_the_run(run, tmp_path, capsys, elsewhere):
    store = Store.open_or_create(tmp_path / "stores" / "one" if elsewhere else default_store(run))
    archives, best = chain_in(store, run), run.parent / "best"
    restore(archives[1], output=run / "step_40.pt")
    replace(run / "step_40.pt", archives[1], store)
    empty_trash(store, 0.0, time.time() + 1)
    best.mkdir()
    pointer = best / "step_40.pt.ckz"
    pointer_for(run / "step_40.pt").rename(pointer)
    assert cli.run(["merge", str(archives[1])]) == ConfigError.exit_code
    assert f"{pointer} names it" in capsys.readouterr().err
    pointer.unlink()
    marker = run.parent / "latest"
    marker.write_text(f"{run.name}/step_40.pt")
    assert cli.run(["merge", str(archives[1])]) == ConfigError.exit_code
    assert "a marker file names it" in capsys.readouterr().err
    marker.unlink()
    assert cli.run(["merge", str(archives[1])]) == 0


def test_the_command_needs_a_store(tmp_path, capsys):
    archive = shutil.copy(next((GOLDEN / "resume").glob("*.ckz")), tmp_path)
    assert cli.run(["merge", str(archive)]) == ConfigError.exit_code
    assert "lies in no store" in capsys.readouterr().err
