"""Directories as Hugging Face's Trainer writes them become one checkpoint, file by file, or are refused whole."""

import json
import os

import pytest
import torch
from damaged.inputs import make_safetensors
from formats.helpers import assert_lossless, rebuilt, saved

from ckzd.checkpoint import FileStat
from ckzd.errors import BadCheckpoint, SourceChanged
from ckzd.formats import completeness, directory, is_replaced, parsed, read_checkpoint
from ckzd.formats.frameworks import framework, hugging_face

WEIGHT = bytes(range(256)) * 4


@pytest.fixture
def checkpoint_100(tmp_path):
    """A small directory in the shape of Hugging Face's."""
    return make_directory(tmp_path / "checkpoint-100", 100)


def make_directory(path, step):
    path.mkdir()
    model = torch.nn.Linear(16, 16)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 16)).sum().backward()
    optimizer.step()
    tensors = {"weight": ("F32", (16, 16), WEIGHT), "bias": ("F32", (16,), bytes(64))}
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(make_safetensors(tensors, {"format": "pt"}))
    saved(path / "training_args.bin", {"lr": 0.1})
    saved(path / "optimizer.pt", optimizer.state_dict())
    saved(path / "scheduler.pt", {"last_epoch": 3, "step": 9})
    saved(path / "rng_state.pth", {"cpu": torch.get_rng_state()})
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    return path


def test_all_files_are_one_checkpoint(checkpoint_100):
    os.utime(checkpoint_100, ns=(1, 1_600_000_000_000_000_001))
    checkpoint = read_checkpoint(checkpoint_100)
    assert (checkpoint.name, checkpoint.is_directory, checkpoint.step) == ("checkpoint-100", True, 100)
    stat = checkpoint_100.stat()
    assert checkpoint.stat == FileStat(stat.st_mode & 0o7777, stat.st_uid, stat.st_gid, 1_600_000_000_000_000_001)
    assert [layout.name for layout in checkpoint.files] == sorted(entry.name for entry in checkpoint_100.iterdir())
    assert {t.path: (t.dtype, t.shape) for t in checkpoint.tensors} == {
        ("model.safetensors", "weight"): ("float32", (16, 16)),
        ("optimizer.pt", "state", "0", "exp_avg"): ("float32", (16, 16)),
        ("optimizer.pt", "state", "0", "exp_avg_sq"): ("float32", (16, 16)),
        ("rng_state.pth", "cpu"): ("uint8", (5056,)),
    }
    assert [optimizer.path for optimizer in checkpoint.optimizers] == [("optimizer.pt",)]
    assert_lossless(checkpoint, checkpoint_100)
    assert completeness(checkpoint_100) is None


def test_modes_and_times_of_files_are_kept(checkpoint_100):
    model = checkpoint_100 / "model.safetensors"
    model.chmod(0o640)
    os.utime(model, ns=(1, 12345))
    found = {layout.name: layout.stat for layout in read_checkpoint(checkpoint_100).files}
    assert found["model.safetensors"] == FileStat(0o640, model.stat().st_uid, model.stat().st_gid, 12345)


def test_changed_payloads_change_their_file_only(checkpoint_100):
    checkpoint = read_checkpoint(checkpoint_100)
    before = rebuilt(checkpoint)
    weight = next(n for n, t in enumerate(checkpoint.tensors) if t.path == ("model.safetensors", "weight"))
    after = rebuilt(checkpoint, lambda n: bytes(1024) if n == weight else checkpoint.payload(n))
    names = [layout.name for layout in checkpoint.files]
    assert [name for name, old, new in zip(names, before, after, strict=True) if old != new] == ["model.safetensors"]


def test_shards_named_by_an_index_must_be_there(checkpoint_100):
    (checkpoint_100 / "model.safetensors").unlink()
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for n, shard in enumerate(shards):
        (checkpoint_100 / shard).write_bytes(make_safetensors({f"w{n}": ("F32", (256,), WEIGHT)}))
    index = checkpoint_100 / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w0": shards[0], "w1": shards[1]}}))
    checkpoint = read_checkpoint(checkpoint_100)
    assert (shards[1], "w1") in {t.path for t in checkpoint.tensors}
    assert_lossless(checkpoint, checkpoint_100)
    assert completeness(checkpoint_100) is None

    (checkpoint_100 / shards[1]).unlink()
    with pytest.raises(BadCheckpoint, match=r"model-00002-of-00002.safetensors.*is not there"):
        read_checkpoint(checkpoint_100)
    assert "is not there" in completeness(checkpoint_100)
    index.write_text(json.dumps({"weight_map": {"w0": "../../etc/passwd"}}))
    with pytest.raises(BadCheckpoint, match="is not there"):
        read_checkpoint(checkpoint_100)
    index.write_text(json.dumps({"weight_map": {"w0": ["a"]}}))
    with pytest.raises(BadCheckpoint, match="is not there"):
        read_checkpoint(checkpoint_100)


def test_the_step_is_in_trainer_state_or_else_in_the_name(checkpoint_100):
    state = checkpoint_100 / "trainer_state.json"
    state.write_text('{"global_step": 70}')
    assert read_checkpoint(checkpoint_100).step == 70
    state.unlink()
    assert read_checkpoint(checkpoint_100).step == 100


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"global_step": "5"}', '{"global_step": -1}', "[" * 9999, "\xff"]
)
def test_a_half_written_trainer_state_is_refused(checkpoint_100, text):
    (checkpoint_100 / "trainer_state.json").write_text(text, encoding="latin-1")
    with pytest.raises(BadCheckpoint, match=r"trainer_state.json"):
        read_checkpoint(checkpoint_100)
    assert "trainer_state.json" in completeness(checkpoint_100)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "training_args.bin"])
def test_one_file_cut_off_spoils_the_whole(checkpoint_100, name):
    path = checkpoint_100 / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadCheckpoint, match=name):
        read_checkpoint(checkpoint_100)
    assert name in completeness(checkpoint_100)


def link(path):
    path.symlink_to("config.json")


def mkfifo(path):
    os.mkfifo(path)


def deep(path):
    (path / "a/b/c/d").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "words"), [(link, "symbolic link"), (mkfifo, "no regular file"), (deep, "5 directories deep")]
)
def test_what_an_archive_could_not_give_back_is_refused(checkpoint_100, make, words):
    make(checkpoint_100 / "extra")
    with pytest.raises(BadCheckpoint, match=words):
        read_checkpoint(checkpoint_100)
    assert "extra" in completeness(checkpoint_100)


def test_a_name_that_is_no_text_is_refused(checkpoint_100):
    (checkpoint_100 / os.fsdecode(b"\xff")).touch()
    with pytest.raises(BadCheckpoint, match="UTF-8"):
        read_checkpoint(checkpoint_100)


def test_writers_at_work_and_pointers_are_refused(checkpoint_100):
    temporary = checkpoint_100 / ".tmpAbC123"
    temporary.write_bytes(b"")
    with pytest.raises(BadCheckpoint, match="still being written"):
        read_checkpoint(checkpoint_100)
    temporary.unlink()
    (checkpoint_100 / "ckzd.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"replaced by its archive.*ckzd restore"):
        read_checkpoint(checkpoint_100)


def at(path, seconds):
    os.utime(path, (seconds, seconds))


def test_a_checkpoint_that_was_saved_again_over_its_pointer_is_one(checkpoint_100):
    (checkpoint_100 / "ckzd.json").write_text("{}")
    for entry in checkpoint_100.iterdir():
        at(entry, 1000)
    at(checkpoint_100 / "model.safetensors", 2000)
    assert is_replaced(checkpoint_100), "half-written: a trainer writes trainer_state.json last"
    at(checkpoint_100 / "trainer_state.json", 2000)
    assert not is_replaced(checkpoint_100)
    assert completeness(checkpoint_100) is None
    assert "ckzd.json" not in [layout.name for layout in read_checkpoint(checkpoint_100).files]


@pytest.mark.parametrize("younger", [(), ("trainer_state.json",), ("trainer_state.json", "config.json")])
def test_a_replaced_directory_whose_small_files_were_edited_is_replaced(checkpoint_100, younger):
    (checkpoint_100 / "ckzd.json").write_text("{}")
    for entry in checkpoint_100.iterdir():
        at(entry, 2000 if entry.name in younger else 1000)
    assert is_replaced(checkpoint_100)


def test_a_directory_without_tensors_is_no_checkpoint(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadCheckpoint, match="no tensor file"):
        read_checkpoint(tmp_path / "empty")


def test_long_files_of_unknown_format_are_opaque_holes(checkpoint_100, monkeypatch):
    for module in (framework, parsed):
        monkeypatch.setattr(module, "OPAQUE_HOLE_BYTES", 1000)
    (checkpoint_100 / "weights.bin").write_bytes(os.urandom(2500))
    (checkpoint_100 / "short.bin").write_bytes(os.urandom(1000))
    saved(checkpoint_100 / "legacy.bin", {"w": torch.ones(100)}, _use_new_zipfile_serialization=False)
    checkpoint = read_checkpoint(checkpoint_100)
    found = [(t.path[1:], t.shape) for t in checkpoint.tensors if t.path[0] == "weights.bin"]
    assert found == [(("<bytes>", "0"), (1000,)), (("<bytes>", "1"), (1000,)), (("<bytes>", "2"), (500,))]
    assert not [t for t in checkpoint.tensors if t.path[0] == "short.bin"]
    assert_lossless(checkpoint, checkpoint_100)


def test_too_much_that_is_no_tensor_is_refused(checkpoint_100, monkeypatch):
    monkeypatch.setattr(directory, "MAX_VERBATIM_BYTES", 1000)
    with pytest.raises(BadCheckpoint, match="besides its tensors"):
        read_checkpoint(checkpoint_100)


def test_files_that_come_or_go_while_it_is_read_are_noticed(checkpoint_100, monkeypatch):
    parse = hugging_face.parse_file

    def slow_parse(view):
        if view.name == "scheduler.pt":
            (checkpoint_100 / "rng_state_1.pth").write_bytes(b"")
        return parse(view)

    monkeypatch.setattr(hugging_face, "parse_file", slow_parse)
    with pytest.raises(SourceChanged, match="came or went"):
        read_checkpoint(checkpoint_100)


def test_rotation_in_the_middle_is_source_changed(checkpoint_100):
    checkpoint = read_checkpoint(checkpoint_100)
    (checkpoint_100 / "optimizer.pt").unlink()
    number = next(n for n, t in enumerate(checkpoint.tensors) if t.path[0] == "optimizer.pt")
    with pytest.raises(SourceChanged):
        checkpoint.payload(number)
    checkpoint.source.close()
