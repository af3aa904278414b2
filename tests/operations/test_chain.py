"""A chain in a real store: what is restored is the same everywhere; what cannot be is refused, with nothing written."""

import hashlib
import io
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from codec.chains import Zoo, same_tensor
from plain_decoder import PlainArchive

import ckzd
from ckzd import durable
from ckzd.archive import ArchiveReader, ArchiveWriter
from ckzd.chains import read_manifest
from ckzd.codec import zstd
from ckzd.codec.presets import PRESETS
from ckzd.errors import CkzdError, ConfigError, CorruptArchive, MissingReference, NoSpace, VerificationFailed
from ckzd.operations import verify as verifying
from ckzd.store import Store


class Chain:
    """A store with the archives of a few checkpoints, for many tests to read."""

    def __init__(self, place: Path) -> None:
        self.run, zoo = place / "run", Zoo()
        self.run.mkdir()
        self.checkpoints, self.archives = [], []
        for number in range(3):
            zoo.advance()
            self.checkpoints.append(zoo.save(self.run / f"step_{zoo.step}.pt", broken=number == 1))
            self.archives.append(Path(ckzd.compress(self.checkpoints[-1]).archive))
        self.store = Store.open(place / ".ckzd")
        self.hashes = [read_manifest(archive).files[0].sha256 for archive in self.archives]

    def copied(self, target: Path, *, archives: int = 3) -> list[Path]:
        """The newest archives alone in a folder, as somebody would take them elsewhere."""
        target.mkdir()
        return [Path(shutil.copy(archive, target)) for archive in self.archives[-archives:]]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Chain(tmp_path_factory.mktemp("chain"))
    torch.set_num_threads(threads)


RESTORE = """
import hashlib, sys
from pathlib import Path
from ckzd.codec.entropy import range_coder
archive, target, chunk = sys.argv[1:]
range_coder._CHUNK = int(chunk)
from ckzd.operations.restore import restore
restore(Path(archive), output=Path(target))
heavy = {"torch", "sklearn", "scipy", "hypothesis"} & set(sys.modules)
assert not heavy, heavy
print(hashlib.sha256(Path(target).read_bytes()).hexdigest())
"""


@pytest.mark.parametrize(
    ("threads", "chunk", "alone"),
    [("1", 1 << 15, False), ("2", 1 << 15, True), ("2", 7, False), ("1", 1001, True)],
    ids=["one thread", "two threads, no cache", "tiny chunks", "one thread, no cache, odd chunks"],
)
def test_a_restore_gives_the_same_bytes_in_every_process(chain, tmp_path, threads, chunk, alone):
    """Another number of BLAS threads, another chunking, from the cache or through the whole chain: one sha256.

    And it never loads torch or scikit-learn.
    """
    archive = chain.copied(tmp_path / "folder")[-1] if alone else chain.archives[-1]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    command = [sys.executable, "-c", RESTORE, str(archive), str(tmp_path / "restored.pt"), str(chunk)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == chain.hashes[-1]


def test_every_link_restores_verifies_and_says_what_it_is(chain, tmp_path):
    for number, archive in enumerate(chain.archives):
        target = tmp_path / f"restored_{number}.pt"
        report = ckzd.restore(archive, output=target)
        assert hashlib.sha256(target.read_bytes()).hexdigest() == chain.hashes[number]
        assert (report.files, report.restored_bytes) == (1, chain.checkpoints[number].stat().st_size)
        assert target.stat().st_mtime_ns == chain.checkpoints[number].stat().st_mtime_ns
        assert target.stat().st_mode == chain.checkpoints[number].stat().st_mode
        state, original = (torch.load(path, weights_only=False) for path in (target, chain.checkpoints[number]))
        assert same_tensor(state["model"]["frozen"], original["model"]["frozen"])
        assert ckzd.verify(archive).ok
        said = ckzd.inspect(archive)
        assert said["depth"] == number
        assert said["archive_bytes"] == archive.stat().st_size == sum(said["parts"].values())
        assert json.dumps(said)
        assert said["promise"] == PRESETS["resume"].promise
        assert said["tightened"] is (said["quality"]["tightened_tensors"] > 0)
        assert said["quality"]["max_weight_error"] == PRESETS["resume"].budget.max_weight_error


def test_the_same_checkpoint_again_is_known_and_so_is_its_restored_form(chain, tmp_path):
    report = ckzd.compress(chain.checkpoints[1])
    assert report.already
    assert report.archive == str(chain.archives[1])
    assert report.reference == str(chain.archives[0])
    assert len(list(chain.archives[0].parent.glob("*.ckz"))) == 3


def test_two_stores_get_the_same_bytes(chain, tmp_path):
    """Encoding is deterministic, container and all: nothing in an archive says when or where."""
    run = tmp_path / "run"
    shutil.copytree(chain.run, run)  # with times
    for number, checkpoint in enumerate(chain.checkpoints[:2]):
        report = ckzd.compress(run / checkpoint.name)
        assert Path(report.archive).read_bytes() == chain.archives[number].read_bytes()


def test_the_cache_is_enough_for_the_last_link(chain, tmp_path):
    """Its own reconstruction makes the chain unnecessary; but a cache that lies is not believed."""
    root = tmp_path / ".ckzd"
    shutil.copytree(chain.store.root, root)
    store, archive = Store.open(root), root / chain.archives[-1].relative_to(chain.store.root)
    for other in archive.parent.glob("*.ckz"):
        if other != archive:
            other.unlink()
    assert ckzd.restore(archive, output=tmp_path / "restored.pt").files == 1
    cached = store.cache_path(read_manifest(archive).reconstruction)
    data = bytearray(cached.read_bytes())
    data[100] ^= 1
    cached.write_bytes(data)
    with pytest.raises(MissingReference, match="which is not in"):
        ckzd.restore(archive, output=tmp_path / "again.pt")
    assert not (tmp_path / "again.pt").exists()
    assert not cached.exists()  # it was not worth keeping


def test_a_missing_reference_is_named_and_nothing_is_written(chain, tmp_path):
    (archive,) = chain.copied(tmp_path / "folder", archives=1)
    before = sorted(tmp_path.rglob("*"))
    for action in (lambda: ckzd.restore(archive, output=tmp_path / "x.pt"), lambda: ckzd.verify(archive)):
        with pytest.raises(MissingReference, match=read_manifest(archive).reference) as caught:
            action()
        assert caught.value.exit_code == 5
        assert str(archive) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_reference_is_corrupt_and_nothing_is_written(chain, tmp_path):
    *_, middle, archive = chain.copied(tmp_path / "folder")
    with ArchiveReader(middle) as reader:
        member = next(m for name, m in reader._members.items() if name.startswith("weights/"))
    data = bytearray(middle.read_bytes())
    data[member.data_offset + 5] ^= 16
    middle.write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CorruptArchive, match="weights/0") as caught:
        ckzd.restore(archive, output=tmp_path / "x.pt")
    assert caught.value.exit_code == 4
    assert caught.value.subject == str(middle)
    assert sorted(tmp_path.rglob("*")) == before


def rewritten(archive: Path, changes) -> None:
    """The same archive with other entries, every hash and CRC right: what only decoding can find."""
    with ArchiveReader(archive) as reader:
        manifest, entries = reader.manifest, {name: reader.read(name) for name in reader.entries()}
    file = io.BytesIO()
    writer = ArchiveWriter(file)
    for name, data in entries.items():
        writer._write_entry(name, changes.get(name, lambda same: same)(data))
    writer.finish(manifest)
    archive.write_bytes(file.getvalue())


def flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def other_index(data: bytes) -> bytes:
    """A base's index that claims a larger file."""
    first, second = struct.unpack_from("<II", data)
    layout = json.loads(zstd.decompress(data[8 : 8 + first], 1 << 30))
    layout["files"][0][1] += 1 << 40
    block = zstd.compress(json.dumps(layout).encode())
    return struct.pack("<II", len(block), second) + block + data[8 + first :]


LIES = {
    "another weight": (2, {"weights/0": flipped}, "reconstruction|decoded"),
    "another moment": (2, {"first_moment/0": flipped}, "sha256|decoded"),
    "another skeleton": (
        0,
        {"skeleton": lambda data: zstd.compress(bytes(len(zstd.decompress(data, 1 << 30))))},
        "rec",
    ),
    "a shorter skeleton": (0, {"skeleton": lambda _: zstd.compress(b"abc")}, "reconstruction|skeleton"),
    "a larger file": (0, {"index": other_index}, "do not name the same files"),
    "no index": (0, {"index": lambda _: b""}, "cannot be decoded"),
    "other scales": (2, {"scales": lambda data: data[:-4] + b"abcd"}, "reconstruction|decoded"),
}


@pytest.mark.parametrize("name", LIES)
def test_an_archive_that_lies_with_right_hashes_is_refused(chain, tmp_path, name):
    number, changes, message = LIES[name]
    archive = chain.copied(tmp_path / "folder")[number]
    rewritten(archive, changes)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CorruptArchive, match=message):
        ckzd.restore(archive, output=tmp_path / "x.pt")
    with pytest.raises((CorruptArchive, VerificationFailed), match=message):
        ckzd.verify(archive)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_encoder_that_errs_publishes_nothing(tmp_path, monkeypatch):
    """The proof is made by another process from the bytes on disk; its word is final."""
    zoo = Zoo()
    zoo.advance()
    run = tmp_path / "run"
    run.mkdir()
    honest = ArchiveWriter.put

    def erring(writer, kind, data):
        return honest(writer, kind, flipped(data) if kind == "second_moment" and len(data) > 20 else data)

    monkeypatch.setattr(ArchiveWriter, "put", erring)
    with pytest.raises(VerificationFailed) as caught:
        ckzd.compress(zoo.save(run / "step_4.pt"), preset="paper")
    assert caught.value.hint == "nothing was published; the original is untouched"
    store = Store.open(tmp_path / ".ckzd")
    assert store.archives(run) == []
    assert [*store.tmp.iterdir(), *store.cache.iterdir()] == []


@pytest.fixture
def task(chain):
    """To prove an archive of which nothing was announced."""
    with tempfile.TemporaryFile() as reconstruction, tempfile.TemporaryFile() as scratch:
        files = (reconstruction.fileno(), scratch.fileno())
        yield verifying.Task(chain.archives[1], chain.archives[0], chain.store.root, files)


def test_modules_in_the_working_directory_are_none_of_ours(task, tmp_path, monkeypatch):
    """People run ckzd where their own `random.py` and `numpy/` lie."""
    for name in ("random", "numpy", "json", "runpy", "ckzd"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)
    with verifying.verifier(task) as proving:
        proving.finish()


def test_a_process_that_was_forked_meanwhile_holds_nothing_up(task):
    """A trainer's data loader inherits our end of the pipe, and keeps it open for as long as it lives."""
    with verifying.verifier(task) as proving:
        forked = os.fork()
        if not forked:
            signal.pause()
        try:
            started = time.monotonic()
            proving.finish()
            assert os.waitpid(forked, os.WNOHANG) == (0, 0)
            assert time.monotonic() - started < 30
        finally:
            os.kill(forked, signal.SIGKILL)
            os.waitpid(forked, 0)


@pytest.mark.parametrize("error", [NoSpace("tmp", "full"), MissingReference("a", "gone"), CkzdError("a", "killed")])
def test_a_verifier_that_could_not_work_is_no_mismatch(monkeypatch, tmp_path, error):
    """A full disk or a killed process must not stop all replacing, as a mismatch does."""

    class Ended:
        def finish(self, _: str) -> None:
            raise error

        tell = finish

    monkeypatch.setattr(verifying, "waiting_module", lambda *_, **__: nullcontext(Ended()))
    with verifying.verifier(verifying.Task(tmp_path / "a.ckz", None, tmp_path, (0, 1))) as proving:
        for say in (partial(proving.tell, "a tensor"), proving.finish):
            with pytest.raises(type(error)) as caught:
                say()
            assert caught.value is error


def test_who_comes_second_throws_its_own_away(chain, tmp_path):
    """Another machine published the same checkpoint while this one worked: its archive stays."""
    run = tmp_path / "run"
    run.mkdir()
    checkpoint = Path(shutil.copy2(chain.checkpoints[0], run))
    store = Store.open_or_create(tmp_path / ".ckzd")

    def on_stage(stage, _):
        if stage == "verified":
            target = store.archive_path(run, checkpoint.name, read_manifest(chain.archives[0]).checkpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(chain.archives[0], target)

    report = ckzd.compress(checkpoint, preset="lossless", on_stage=on_stage)
    assert report.preset == "resume"
    assert Path(report.archive).read_bytes() == chain.archives[0].read_bytes()
    assert [*store.tmp.iterdir(), *store.cache.iterdir()] == []


def test_a_changed_shape_makes_a_new_base_and_says_so(tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    for step, rows in ((1, 20), (2, 24)):
        torch.save({"model": {"w": torch.ones(rows, 8)}, "step": step}, run / f"step_{step}.pt")
    with caplog.at_level(logging.WARNING):
        reports = [ckzd.compress(run / f"step_{step}.pt", preset="lossless") for step in (1, 2)]
    assert [report.reference for report in reports] == [None, None]
    (record,) = [record for record in caplog.records if "changed its shape" in record.message]
    assert record.tensor == "model/w"
    assert read_manifest(Path(reports[1].archive)).depth == 0


def test_stages_come_in_order_and_stride_reaches_back(chain, tmp_path):
    run, stages = tmp_path / "run", []
    shutil.copytree(chain.run, run)
    reports = [
        ckzd.compress(run / c.name, preset="lossless", stride=2, on_stage=lambda *said: stages.append(said))
        for c in chain.checkpoints
    ]
    assert [Path(r.reference).name[:6] if r.reference else None for r in reports] == [None, "step_4", "step_4"]
    names = [name for name, _ in stages[: len(stages) // 3]]
    assert list(dict.fromkeys(names)) == ["read", "encode", "written", "verified", "publish"]
    assert all(0 <= fraction <= 1 for _, fraction in stages)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "best"}, "preset"),
        ({"stride": 0}, "stride"),
        ({"device": "abacus"}, "device"),
        ({"device": "cuda:99"}, "device"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_made(chain, tmp_path, arguments, message):
    checkpoint = Path(shutil.copy(chain.checkpoints[0], tmp_path / "step_4.pt"))
    with pytest.raises(ConfigError, match=message):
        ckzd.compress(checkpoint, store=tmp_path / "store", **arguments)
    assert not (tmp_path / "store").exists()


def test_no_room_is_said_before_anything_is_written(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "free_bytes", lambda _: 1000)
    with pytest.raises(NoSpace):
        ckzd.restore(chain.archives[0], output=tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_weights_alone(chain, tmp_path):
    """All float tensors that are no optimizer state, under names that are unique."""
    from safetensors.torch import load_file

    target = tmp_path / "weights.safetensors"
    report = ckzd.restore(chain.archives[-1], output=target, weights_only=True)
    assert report.restored_bytes == target.stat().st_size
    ckzd.restore(chain.archives[-1], output=tmp_path / "all.pt")
    state = torch.load(tmp_path / "all.pt", weights_only=False)
    weights = load_file(target)
    for name in ("wide", "brain", "half", "tied", "frozen", "sgd"):
        assert same_tensor(weights[f"model.{name}"], state["model"][name])
    assert not any("exp_avg" in name for name in weights)
    assert ckzd.inspect(chain.archives[-1])["parameters"] == sum(tensor.numel() for tensor in weights.values())


def test_names_that_would_be_one_are_told_apart(tmp_path):
    from safetensors.torch import load_file

    run = tmp_path / "run"
    run.mkdir()
    state = {"a": {"b.c": torch.zeros(70)}, "a.b": {"c": torch.ones(80)}, "__metadata__": torch.ones(90)}
    torch.save(state, run / "1.pt")
    report = ckzd.compress(run / "1.pt", preset="lossless")
    ckzd.restore(Path(report.archive), output=tmp_path / "w.safetensors", weights_only=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "w.safetensors").items()}
    assert shapes == {"a.b.c": (70,), "a.b.c#1": (80,), "__metadata__#2": (90,)}


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["resume", "paper", "lossless"])
def test_a_decoder_written_from_the_format_page_restores_the_same(chain, tmp_path, preset):
    """Every dtype, broken values, codebooks and fills, read by no line of the codec."""
    run, reference = tmp_path / "run", None
    shutil.copytree(chain.run, run)
    for checkpoint in chain.checkpoints:
        report = ckzd.compress(run / checkpoint.name, preset=preset)
        archive = PlainArchive(Path(report.archive), reference)
        reference = archive.own
        assert hashlib.sha256(reference.to_bytes()).hexdigest() == archive.manifest["reconstruction"]
        (data,) = archive.files().values()
        assert hashlib.sha256(data).hexdigest() == archive.manifest["files"][0]["sha256"]
