"""What people get wrong and disks do, through the real command line: a clear error, its exit code, nothing written."""

import gzip
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from damaged.inputs import (
    ONE_TENSOR,
    TORCH_RECORDS,
    ZipRecord,
    lying_safetensors,
    lying_zips,
    make_zip,
    torch_file,
)
from making import tree_of
from serving import write_checkpoint

from ckzd.store import Store

MAX_MEGABYTES = 1200  # torch alone takes 320
TOO_LARGE = 99  # exit code of MEASURED where a process of the command took more
# A process's mark begins with that of whoever starts it, so a small one stands between these tests and the command.
MEASURED = f"""
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
sys.exit({TOO_LARGE} if resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10 >= {MAX_MEGABYTES} else code)
"""


@dataclass(frozen=True)
class Said:
    code: int
    out: list[dict]
    errors: list[dict]


def ckzd(*arguments: object) -> Said:
    """`ckzd ... --json`: every line on both outputs is one JSON object, and memory stays bounded."""
    command = [sys.executable, "-c", MEASURED, sys.executable, "-m", "ckzd", *map(str, arguments), "--json"]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.run(command, stdout=out, stderr=errors, check=False)
        assert process.returncode != TOO_LARGE
        for file in (out, errors):
            file.seek(0)
        return Said(process.returncode, list(map(json.loads, out)), list(map(json.loads, errors)))


def reducing_to(command: str) -> bytes:
    """A pickle that runs a shell command when it is loaded."""

    class Planted:
        def __reduce__(self):
            return os.system, (command,)

    return pickle.dumps(Planted(), 2)


@pytest.fixture(scope="module")
def archived(tmp_path_factory) -> tuple[Path, Path]:
    """The archives of two checkpoints; the second needs the first."""
    run = tmp_path_factory.mktemp("archived") / "run"
    for step in (1, 2):
        write_checkpoint(run / f"step_{step}.safetensors", elements=4096)
    said = ckzd("compress", run, "--preset", "lossless")
    assert said.code == 0, said.errors
    base, delta = (Path(line["archive"]) for line in said.out)
    assert said.out[1]["reference"] == str(base)
    return base, delta


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if (
        os.geteuid()
        or not shutil.which("mount")
        or subprocess.run(command, check=False, capture_output=True).returncode
    ):
        pytest.skip("may not mount a file system here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_what_is_no_checkpoint_is_refused_one_by_one(tmp_path):
    whole = torch_file()
    hostile = {
        "empty.pt": b"",
        "random.pt": random.Random(0).randbytes(10_000),
        "half.pt": whole[: len(whole) // 2],
        "last byte missing.pt": whole[:-1],
        "preallocated.pt": whole[:300] + bytes(len(whole) - 300),
        "code.pt": reducing_to(f"touch {tmp_path}/ran"),
        "deep.pt": make_zip(
            [ZipRecord("x/data.pkl", b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."), *TORCH_RECORDS[1:]]
        ),
        "rotten tensor.pt": torch_file(lambda record: replace(record, crc=1, descriptor_crc=1)),
        "rotten pickle.pt": torch_file(lambda record: replace(record, crc=1, descriptor_crc=1), only="x/data.pkl"),
        "name\udcff.pt": whole,
        **{f"zip {name}.pt": lying_zips()[name] for name in ("every size too large", "compressed", "gap")},
        **{
            f"{name}.safetensors": lying_safetensors()[name]
            for name in ("header of 2^60 bytes", "overlap", "huge product")
        },
    }
    run = tmp_path / "run"
    run.mkdir()
    for name, data in hostile.items():
        (run / name).write_bytes(data)
    os.mkfifo(run / "pipe.pt")
    (run / "link.pt").symlink_to(run / "empty.pt")
    names = [*hostile, "pipe.pt", "link.pt", "missing.pt"]

    said = ckzd("compress", *(run / name for name in names))
    assert said.code == 1
    assert said.out == []
    assert len(said.errors) == len(names)
    for error, name in zip(said.errors, names, strict=True):
        assert set(error) == {"error", "subject", "problem", "hint", "exit_code"}
        assert error["error"] == ("SourceChanged" if name == "missing.pt" else "BadCheckpoint"), error
        assert error["hint"], error
    assert {path.name for path in run.iterdir()} == {*names} - {"missing.pt"}
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("run", ".ckzd")] == []
    assert list(tmp_path.glob(".ckzd/tmp/*")) == list(tmp_path.glob(".ckzd/archives/*/*")) == []


FOREIGN = {  # what is no checkpoint that ckzd reads, and what is said of it
    "model.gguf": (b"GGUF\x03" + bytes(3000), "a GGUF file"),
    "gguf_4.pt": (b"GGUF\x03" + bytes(3000), "a GGUF file"),
    "h5_5.pt": (b"\x89HDF\r\n\x1a\n" + bytes(3000), "an HDF5 file"),
    "gz_6.pth": (gzip.compress(bytes(3000), mtime=0), "a gzip file"),
    "tar_7.pth.tar": (bytes(257) + b"ustar\x0000" + bytes(3000), "a tarball"),
    "pickle_8.pt": (pickle.dumps({"w": [1.0] * 100}), "a pickle that torch.save did not write"),
    "lfs_9.pt": (b"version https://git-lfs.github.com/spec/v1\n", "what git-lfs leaves"),
    "onnx_10.bin": (b"\x08\x07\x12\x07pytorch" + bytes(3000), r"it begins with b'\x08\x07\x12\x07pyto'"),
    "short_11.pt": (b"\x80", r"it begins with b'\x80'"),
    "empty_12.pt": (b"", "empty"),
    "arrays_13.pt": (make_zip([ZipRecord("w.npy", b"\x93NUMPY")]), "a zip without data.pkl"),
    "big_14.pt": (torch_file(lambda record: replace(record, data=b"big"), only="x/byteorder"), "got 'big'"),
}


def write_foreign(run: Path) -> list[Path]:
    """FOREIGN, in a directory."""
    run.mkdir(exist_ok=True)
    for name, (data, _) in FOREIGN.items():
        (run / name).write_bytes(data)
    return [run / name for name in FOREIGN]


def write_old(run: Path) -> dict[Path, bytes]:
    """TorchScript, and torch.save's format from before 1.6."""
    run.mkdir(exist_ok=True)
    old, script = run / "old_1.pt", run / "script_2.pt"
    with warnings.catch_warnings(action="ignore"):
        torch.save({"w": torch.zeros(100, 100)}, old, _use_new_zipfile_serialization=False)
        torch.jit.script(torch.nn.Embedding(200, 50, _weight=torch.zeros(200, 50))).save(str(script))
    return {path: path.read_bytes() for path in (old, script)}


def test_files_of_others_are_called_by_their_names(tmp_path):
    paths = write_foreign(tmp_path / "run")
    before = tree_of(tmp_path / "run")
    said = ckzd("compress", *paths)
    assert (said.code, said.out) == (1, [])
    for error, path, (_, told) in zip(said.errors, paths, FOREIGN.values(), strict=True):
        assert error["error"] == "BadCheckpoint"
        assert error["subject"].startswith(str(path))
        assert told in error["problem"]
        assert "\n" not in error["problem"] + error["hint"]
        assert error["hint"]
    assert tree_of(tmp_path / "run") == before


def test_a_pass_of_the_daemon_takes_old_files_and_leaves_those_of_others(tmp_path):
    run = tmp_path / "runs" / "run"
    run.parent.mkdir()
    foreign, old = write_foreign(run), write_old(run)
    before = tree_of(run)
    config = tmp_path / "ckzd.toml"
    watch = f'[[watch]]\npath = "{run.parent}"\nreplace = true\nkeep_raw = 0\npreset = "lossless"\nsettle_seconds = 1\n'
    config.write_text(f'{watch}[daemon]\nstate_dir = "{tmp_path / "state"}"\nport = 0\n')
    time.sleep(1.1)  # until they have settled

    said = ckzd("serve", "--once", "--config", config)
    assert said.code == 0, said.errors
    assert {path.name for path in run.iterdir()} == {*FOREIGN, *(f"{path.name}.ckz" for path in old)}
    after = tree_of(run)
    assert {path.name: after[path.name] for path in foreign} == {path.name: before[path.name] for path in foreign}
    assert [ckzd("restore", path).code for path in old] == [0, 0]
    assert {path: path.read_bytes() for path in old} == old


def test_code_in_a_pickle_is_kept_and_never_run(tmp_path):
    """Planted beside a tensor it is bytes like any others: they come back the same."""
    (tmp_path / "run").mkdir()
    checkpoint, ran = tmp_path / "run" / "step_1.pt", tmp_path / "ran"
    planted = reducing_to(f"touch {ran}")[2:-1]
    pickled = ONE_TENSOR[:-2] + b"sX\x04\x00\x00\x00hook" + planted + b"s."
    checkpoint.write_bytes(make_zip([ZipRecord("x/data.pkl", pickled), *TORCH_RECORDS[1:]]))
    original = checkpoint.read_bytes()
    assert pickle.loads(reducing_to("true")) == 0  # the trap works

    said = ckzd("compress", checkpoint, "--preset", "lossless", "--replace")
    assert said.code == 0  # kept: so small a file gains nothing
    assert ckzd("restore", said.out[0]["archive"], "-o", tmp_path / "restored.pt").code == 0
    assert (tmp_path / "restored.pt").read_bytes() == original
    assert not ran.exists()


def test_a_flipped_byte_is_found_and_named(archived, tmp_path):
    base, delta = archived
    copies = []
    for number in range(24):
        archive = archived[number % 2]
        data = bytearray(archive.read_bytes())
        data[random.Random(number).randrange(len(data))] ^= 1 << number % 8
        folder = tmp_path / str(number)
        folder.mkdir()
        copies.append(folder / archive.name)
        copies[-1].write_bytes(data)
        if archive is delta:
            shutil.copy(base, folder)
    copies += [tmp_path / name for name in ("empty.ckz", "cut.ckz", "longer.ckz")]
    for path, data in zip(copies[-3:], (b"", base.read_bytes()[:-9], base.read_bytes() + b"\0"), strict=True):
        path.write_bytes(data)
    before = tree_of(tmp_path)

    said = ckzd("verify", *copies)
    assert (said.code, said.out) == (4, [])
    assert [error["subject"] for error in said.errors] == list(map(str, copies))
    assert all("entry" in error["problem"] or "central directory" in error["problem"] for error in said.errors)
    assert ckzd("restore", copies[0], "-o", tmp_path / "out").code == 4
    assert tree_of(tmp_path) == before


def test_a_missing_or_swapped_reference_is_named(archived, tmp_path):
    base, delta = archived
    shutil.copy(delta, tmp_path)
    archive = tmp_path / delta.name
    needed = ckzd("inspect", archive).out[0]["reference"]
    for swapped in (False, True):
        if swapped:
            shutil.copy(delta, tmp_path / base.name)
        for arguments in (["verify", archive], ["restore", archive, "-o", tmp_path / "out"]):
            said = ckzd(*arguments)
            assert said.code == 5
            assert needed in said.errors[0]["problem"]
    assert {path.name for path in tmp_path.iterdir()} == {base.name, delta.name}


def test_a_full_disk_is_told_before_anything_is_written(small_disk):
    checkpoint = write_checkpoint(small_disk / "run" / "step_1.safetensors", elements=40_000)
    before = tree_of(small_disk)
    said = ckzd("compress", checkpoint, "--replace")
    assert said.code == 7
    assert "needs" in said.errors[0]["problem"]
    assert tree_of(small_disk) == before


def test_a_read_only_store_restores_elsewhere(small_disk, archived, tmp_path):
    """And a full one: what is written while decoding then goes to the system's temporary directory."""
    without_reserve = shutil.ignore_patterns("reserve")  # it is larger than this disk
    shutil.copytree(archived[1].parents[2], small_disk / "store", ignore=without_reserve)
    archive = next(small_disk.glob(f"store/archives/*/{archived[1].name}"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert ckzd("verify", archive).code == 0
    assert ckzd("restore", archive, "-o", tmp_path / "out").code == 0
    said = ckzd("restore", archive, "-o", small_disk / "out")
    assert (said.code, "read-only" in said.errors[0]["problem"]) == (1, True)


def test_a_second_daemon_on_a_store_is_refused(archived, tmp_path):
    store = archived[0].parents[2]
    config = tmp_path / "ckzd.toml"
    watch = f'[[watch]]\npath = "{store.parent / "run"}"\nreplace = false\n'
    config.write_text(f'{watch}[daemon]\nstate_dir = "{tmp_path / "state"}"\nport = 0\n')
    before = tree_of(store)
    with Store.open(store).daemon_lock():
        said = ckzd("serve", "--once", "--config", config)
    assert said.code == 6
    assert said.errors[-1]["error"] == "StoreLocked"
    assert tree_of(store).keys() - before.keys() <= {"daemon.lock"}
