"""Files in torch.save's format from before 1.6: read as the later ones are, or refused in one line."""

import io
import pickle
import struct
import warnings

import pytest
import torch
from formats.helpers import assert_lossless, rebuilt, saved
from hypothesis import given, settings
from hypothesis import strategies as st

from ckzd.errors import BadCheckpoint
from ckzd.formats import completeness, read_checkpoint
from ckzd.formats.torch_legacy import MAGIC

FLOATS = struct.pack("<100f", *range(100))
WHOLE = {"version": 1001, "system": {"little_endian": True}, "keys": ["7"], "storages": struct.pack("<Q", 100) + FLOATS}


def legacy(path, value, **keywords):
    with warnings.catch_warnings(action="ignore"):
        return saved(path, value, _use_new_zipfile_serialization=False, **keywords)


def by_hand(**changes) -> bytes:
    """{"w": 100 floats}, with one part changed."""
    parts = WHOLE | changes
    kind = b"ctorch\nFloatStorage\n"
    view = changes.get("view", b"N")
    storage = b"(X\x07\x00\x00\x00storage" + kind + b"X\x01\x00\x00\x007X\x03\x00\x00\x00cpuKd" + view + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00Kd\x85K\x01\x85\x89}tR"
    pickled = [pickle.dumps(parts[name], 2) for name in ("version", "system", "keys")]
    root = b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."
    return MAGIC + pickled[0] + pickled[1] + root + pickled[2] + parts["storages"]


def trained():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 20))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 20)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_it_reads_to_what_the_later_format_reads_to(tmp_path):
    model, optimizer = trained()
    value = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "tied": model[0].weight,
        "t": torch.randn(9, 40).T,
        "h": torch.randn(300).bfloat16(),
        "few": torch.ones(3),
        "step": 12,
    }
    old = read_checkpoint(legacy(tmp_path / "old.pt", value))
    new = read_checkpoint(saved(tmp_path / "new.pt", value))
    assert old.tensors == new.tensors
    assert (old.optimizers, old.step) == (new.optimizers, 12)
    assert [old.payload(n) for n in range(len(old.tensors))] == [new.payload(n) for n in range(len(new.tensors))]
    assert_lossless(old, tmp_path / "old.pt")


def test_changed_payloads_give_a_file_that_torch_loads(tmp_path):
    value = {"w": torch.randn(20, 10), "t": torch.randn(20, 10).T, "few": torch.ones(3)}
    checkpoint = read_checkpoint(legacy(tmp_path / "x.pt", value))
    (changed,) = rebuilt(checkpoint, lambda tensor: bytes(checkpoint.tensors[tensor].nbytes))
    loaded = torch.load(io.BytesIO(changed), weights_only=True)
    assert not loaded["w"].any()
    assert loaded["t"].stride() == value["t"].stride()
    assert torch.equal(loaded["few"], value["few"])


def test_a_whole_module_stands_beside_its_source(tmp_path):
    path = legacy(tmp_path / "x.pt", trained()[0])
    checkpoint = read_checkpoint(path)
    assert sorted(t.shape for t in checkpoint.tensors) == [(20, 30), (30, 20)]
    assert_lossless(checkpoint, path)


def test_the_one_made_by_hand_is_read(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(by_hand())
    assert torch.load(path, weights_only=True)["w"].tolist() == list(range(100))
    assert [(t.path, t.shape) for t in read_checkpoint(path).tensors] == [(("w",), (100,))]
    assert completeness(path) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": 1000}, "expected 1001"),
        ({"system": {"little_endian": False}}, "byte order: expected"),
        ({"system": []}, "byte order: expected"),
        ({"keys": {}}, "list of at most"),
        ({"keys": ["7", "7"]}, "stands there twice"),
        ({"keys": [7]}, "no text"),
        ({"keys": ["8"]}, "not those that its tensors refer to"),
        ({"keys": ["7", "8"]}, "not those that its tensors refer to"),
        ({"storages": struct.pack("<Q", 99) + FLOATS}, "expected 100 elements of float32, got 99"),
        (
            {"storages": struct.pack("<Q", 1 << 60) + FLOATS},
            "expected 100 elements of float32, got 1152921504606846976",
        ),
        ({"storages": struct.pack("<Q", 100) + FLOATS[4:]}, "cut off"),
        ({"storages": WHOLE["storages"] + b"!"}, "followed by something"),
        ({"storages": b""}, "refers to 8 bytes"),
        ({"view": b"(X\x01\x00\x00\x00rK\x00Kdt"}, "a view of a storage"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, changes, problem):
    path = tmp_path / "x.pt"
    path.write_bytes(by_hand(**changes))
    with pytest.raises(BadCheckpoint, match=problem):
        read_checkpoint(path)


def test_every_truncation_is_refused_and_waited_for(tmp_path):
    path, data = tmp_path / "x.pt", by_hand()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(BadCheckpoint):
            read_checkpoint(path)
        assert completeness(path) is not None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(by_hand()) - 1), st.integers(0, 255)), max_size=4))
def test_damage_raises_nothing_but_bad_checkpoint(tmp_path_factory, changes):
    path, damaged = tmp_path_factory.getbasetemp() / "damaged.pt", bytearray(by_hand())
    for position, value in changes:
        damaged[position] = value
    path.write_bytes(damaged)
    try:
        checkpoint = read_checkpoint(path)
    except BadCheckpoint:
        return
    assert checkpoint.nbytes == len(damaged)
    checkpoint.source.close()


def test_what_a_pickle_promises_is_not_allocated(tmp_path):
    """A string of 2^62 bytes in a file of a few."""
    path = tmp_path / "x.pt"
    path.write_bytes(MAGIC + b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62))
    with pytest.raises(BadCheckpoint, match="damaged pickle"):
        read_checkpoint(path)
