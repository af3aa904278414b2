"""What in a run is a checkpoint, in what order, and when a writer has finished it."""

import contextlib
import os
import shutil
import struct
import threading
import time

import pytest
from damaged.inputs import make_safetensors, torch_file
from formats.test_directory import make_directory

from ckzd.errors import BadCheckpoint, CkzdError, SourceChanged
from ckzd.formats import completeness, is_run, list_checkpoints, looks_like_checkpoint, read_checkpoint
from ckzd.formats.names import natural_key, step_in_name

TORCH = torch_file()
SAFE = make_safetensors({"w": ("F32", (100,), bytes(400))})


def names(paths):
    return [path.name for path in paths]


def test_checkpoints_are_listed_by_step_and_nothing_else_is(tmp_path):
    for name in ["step_100.pt", "step_20.pt", "step_3.pt", "best.pt", "epoch=1-step=50.ckpt", "9.safetensors"]:
        (tmp_path / name).write_bytes(SAFE if name.endswith("safetensors") else TORCH)
    for name in [
        "step_7.pt.ckz",
        ".step_8.pt",
        "step_9.pt.part",
        "tmp.pth.tar",
        "recovery_tmp.pth.tar",
        "notes.txt",
        "a.npz",
    ]:
        (tmp_path / name).write_bytes(TORCH)
    (tmp_path / "log.pt").write_text("not a checkpoint")
    (tmp_path / "empty_4.pt").write_bytes(b"")
    (tmp_path / "last.pt").symlink_to("step_100.pt")
    (tmp_path / ".ckzd").mkdir()
    make_directory(tmp_path / "checkpoint-60", 60)
    (tmp_path / "tmp-checkpoint-70").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-80").mkdir()
    (tmp_path / "checkpoint-80" / "ckzd.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe.pt")
    assert names(list_checkpoints(tmp_path)) == [
        "step_3.pt",
        "9.safetensors",
        "step_20.pt",
        "epoch=1-step=50.ckpt",
        "checkpoint-60",
        "step_100.pt",
        "best.pt",
    ]
    assert is_run(tmp_path)


def test_parts_of_a_directory_are_no_checkpoints_beside_it(tmp_path):
    run = make_directory(tmp_path / "run", 9)
    (run / "trainer_state.json").unlink()
    assert list_checkpoints(run) == []
    make_directory(run / "checkpoint-5", 5)
    make_directory(run / "checkpoint-10", 10)
    assert names(list_checkpoints(run)) == ["checkpoint-5", "checkpoint-10"]
    assert is_run(run)
    assert not is_run(run / "checkpoint-5")
    assert looks_like_checkpoint(run / "checkpoint-5")
    (run / "trainer_state.json").write_text("{}")
    assert not looks_like_checkpoint(run)


def test_a_trainer_directory_of_any_name_is_a_checkpoint(tmp_path):
    path = make_directory(tmp_path / "restored", 7)
    assert looks_like_checkpoint(path)
    assert completeness(path) is None
    assert read_checkpoint(path).step == 7


def test_pointers_make_a_run_and_archives_do_not(tmp_path):
    run, store = tmp_path / "run", tmp_path / "store"
    for path in (run, store, tmp_path / "hf"):
        path.mkdir()
    (run / "step_1.pt.ckz").write_text('{"ckzd_pointer": 1}')
    (store / "step_1.pt.abcdef.ckz").write_bytes(b"PK\x03\x04")
    (store / "step_1.pt.ckz").write_bytes(b"PK\x03\x04")
    (tmp_path / "hf" / "checkpoint-3").mkdir()
    (tmp_path / "hf" / "checkpoint-3" / "ckzd.json").write_text("{}")
    assert is_run(run)
    assert is_run(tmp_path / "hf")
    assert not is_run(store)
    assert not is_run(tmp_path)
    assert not is_run(tmp_path / "hf" / "checkpoint-3")
    assert not is_run(tmp_path / "gone")
    assert not is_run(run / "step_1.pt.ckz")


def test_what_ckzd_put_there_is_named(tmp_path):
    pointer = tmp_path / "step_1.pt.ckz"
    pointer.write_text("{}")
    with pytest.raises(BadCheckpoint, match="archive or a pointer"):
        read_checkpoint(pointer)
    with pytest.raises(BadCheckpoint, match=r"replaced by its archive.*ckzd restore"):
        read_checkpoint(tmp_path / "step_1.pt")


def test_what_vanishes_is_not_there(tmp_path):
    gone = tmp_path / "step_1.pt"
    assert not looks_like_checkpoint(gone)
    assert "not there" in completeness(gone)
    for ask in (read_checkpoint, list_checkpoints):
        with pytest.raises(SourceChanged):
            ask(gone)


def test_a_file_is_complete_when_its_end_is_there(tmp_path):
    path = tmp_path / "step_1.pt"
    for length in [0, 3, 4, 30, len(TORCH) // 2, len(TORCH) - 1]:
        path.write_bytes(TORCH[:length])
        assert completeness(path) is not None
    path.write_bytes(TORCH)
    assert completeness(path) is None


def test_a_safetensors_file_is_complete_when_its_size_fits(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(SAFE[:-1])
    assert completeness(path) is not None
    path.write_bytes(struct.pack("<Q", 1 << 60) + SAFE[8:])
    assert completeness(path) is not None
    path.write_bytes(SAFE)
    assert completeness(path) is None


def test_a_trainer_directory_is_complete_by_its_rule(tmp_path):
    path = make_directory(tmp_path / "checkpoint-100", 100)
    state = path / "trainer_state.json"
    text = state.read_text()

    state.unlink()
    assert completeness(path) == "checkpoint-100: trainer_state.json missing"
    state.write_text(text[:10])
    assert "still being written" in completeness(path)
    state.write_text(text.replace("100", "99"))
    assert completeness(path) == "checkpoint-100: trainer_state.json says step 99"
    state.write_text(text)
    marker = path / "checkpoint-is-incomplete.txt"
    marker.touch()
    assert "checkpoint-is-incomplete.txt" in completeness(path)
    marker.unlink()
    temporary = path / ".tmpQwErTy"
    temporary.touch()
    assert ".tmpQwErTy" in completeness(path)
    temporary.unlink()
    assert completeness(path) is None


def test_every_rank_must_have_written_its_random_state(tmp_path):
    path = make_directory(tmp_path / "checkpoint-100", 100)
    rng = path / "rng_state.pth"
    for rank in (0, 2):
        (path / f"rng_state_{rank}.pth").write_bytes(rng.read_bytes())
    assert completeness(path) == "checkpoint-100: rng_state_1.pth missing"
    rng.rename(path / "rng_state_1.pth")
    assert completeness(path) is None


def test_what_may_not_be_read_says_so(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = tmp_path / "step_1.pt"
    path.write_bytes(TORCH)
    path.chmod(0)
    with pytest.raises(CkzdError, match="permission denied"):
        read_checkpoint(path)
    assert "permission denied" in completeness(path)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_000100.pt", 100),
        ("checkpoint-500", 500),
        ("epoch=9-step=1234.ckpt", 1234),
        ("epoch=9-step=1234-v1.ckpt", 1234),
        ("ckpt_iter_20_loss_3.pt", 20),
        ("model_epoch12.pth", 12),
        ("global_step300_rank0.pt", 300),
        ("last.ckpt", None),
        ("v2.pt", 2),
    ],
)
def test_steps_in_names(name, step):
    assert step_in_name(name) == step


def test_names_sort_naturally_whatever_is_in_them():
    names = ["a10", "a9", "a", "10", "9", "\u0663", "a\u0663b1", "", "9" * 40]
    assert sorted(names, key=natural_key)[:6] == ["", "9", "10", "9" * 40, "a", "a9"]


def busy_writer(run, stop):
    """A job that overwrites, truncates, replaces, rotates and recreates as fast as it can."""
    file, whole = run / "ckpt_1.pt", run / "checkpoint-100"
    keep = {entry.name: entry.read_bytes() for entry in whole.iterdir()}
    while not stop.is_set():
        with file.open("wb") as out:
            for start in range(0, len(TORCH), 200):
                out.write(TORCH[start : start + 200])
                out.flush()
        (run / "new").write_bytes(TORCH)
        (run / "new").rename(run / "ckpt_2.pt")
        file.unlink()
        shutil.rmtree(whole)
        whole.mkdir()
        for name, data in keep.items():
            (whole / name).write_bytes(data)


def test_only_errors_of_ckzd_come_out_beside_a_busy_writer(tmp_path):
    make_directory(tmp_path / "checkpoint-100", 100)
    stop = threading.Event()
    writer = threading.Thread(target=busy_writer, args=(tmp_path, stop))
    writer.start()
    read = 0
    try:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            is_run(tmp_path)
            for path in {*list_checkpoints(tmp_path), tmp_path / "ckpt_1.pt", tmp_path / "checkpoint-100"}:
                completeness(path)
                with contextlib.suppress(BadCheckpoint, SourceChanged):
                    checkpoint = read_checkpoint(path)
                    for number in range(len(checkpoint.tensors)):
                        checkpoint.payload(number)
                    checkpoint.source.close()
                    read += 1
    finally:
        stop.set()
        writer.join()
    assert read
