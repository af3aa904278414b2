"""Files that torch.save writes: every storage is one hole, and the holes can be filled again."""

import io
import math
import os
import time
import types
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from damaged.inputs import torch_file
from formats.helpers import assert_lossless, rebuilt, saved, zip_is_intact
from hypothesis import given, settings
from hypothesis import strategies as st

from ckzd.checkpoint import STORED_AS, ParamGroup
from ckzd.errors import BadCheckpoint
from ckzd.formats import read_checkpoint

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def shapes(path):
    """path -> (dtype, shape) of every tensor that is a hole."""
    return {".".join(t.path): (t.dtype, t.shape) for t in read_checkpoint(path).tensors}


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.complex64, torch.uint16, torch.float8_e4m3fn])
def test_every_dtype_round_trips(tmp_path, dtype):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(32, 16).to(dtype), "small": torch.ones(3).to(dtype)})
    checkpoint = read_checkpoint(path)
    (tensor,) = checkpoint.tensors
    assert tensor.dtype == str(dtype).removeprefix("torch.")
    assert tensor.shape == ((32, 16) if dtype in FLOATS else (512 * dtype.itemsize,))
    assert tensor.nbytes == 512 * dtype.itemsize
    assert_lossless(checkpoint, path)


def test_empty_and_tiny_storages_stay_in_the_skeleton(tmp_path):
    path = saved(
        tmp_path / "x.pt",
        {
            "empty": torch.empty(0),
            "empty 2d": torch.empty(4, 0),
            "scalar": torch.tensor(3.0),
            "63": torch.ones(63),
            "64": torch.ones(64),
        },
    )
    assert shapes(path) == {"64": ("float32", (64,))}
    assert_lossless(read_checkpoint(path), path)


def test_values_of_every_kind_are_read_bit_for_bit(tmp_path):
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45, 3.4e38] * 20)
    path = saved(tmp_path / "x.pt", {"odd": odd})
    checkpoint = read_checkpoint(path)
    read = np.frombuffer(checkpoint.payload(0), STORED_AS["float32"])
    assert read.tobytes() == odd.numpy().tobytes()
    assert_lossless(checkpoint, path)


def test_shapes_are_in_memory_order(tmp_path):
    image = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    path = saved(
        tmp_path / "x.pt",
        {
            "plain": torch.ones(16, 8),
            "transposed": torch.ones(16, 8).T,
            "channels_last": image.contiguous(memory_format=torch.channels_last),
            "permuted": torch.ones(4, 5, 6).permute(2, 0, 1),
            "ones": torch.ones(1, 128, 1),
            "strange ones": torch.ones(128, 1).as_strided((128, 1), (1, 77)),
        },
    )
    assert shapes(path) == {
        "plain": ("float32", (16, 8)),
        "transposed": ("float32", (16, 8)),
        "channels_last": ("float32", (2, 8, 8, 3)),
        "permuted": ("float32", (4, 5, 6)),
        "ones": ("float32", (1, 128, 1)),
        "strange ones": ("float32", (128, 1)),
    }
    assert_lossless(read_checkpoint(path), path)


def test_a_storage_in_memory_order_is_its_array(tmp_path):
    weight = torch.randn(4, 5, 6).permute(2, 0, 1)
    checkpoint = read_checkpoint(saved(tmp_path / "x.pt", {"w": weight}))
    read = np.frombuffer(checkpoint.payload(0), "<f4").reshape(checkpoint.tensors[0].shape)
    np.testing.assert_array_equal(read, weight.permute(1, 2, 0).numpy())


def test_shared_storages_are_one_hole_a_view(tmp_path):
    """What no view covers in one piece is there once, too; what has several names has the first."""
    tied = torch.ones(16, 8)
    flat = torch.arange(256.0)
    sliced = torch.ones(100, 8)[10:20]
    path = saved(
        tmp_path / "x.pt",
        {
            "embedding": tied,
            "head": tied,
            "first": flat[:128].view(16, 8),
            "second": flat[128:].view(16, 8),
            "slice": sliced,
            "expanded": torch.ones(1, 100).expand(5, 100),
            "overlapping": torch.ones(100).as_strided((99, 2), (1, 1)),
        },
    )
    assert shapes(path) == {
        "embedding": ("float32", (16, 8)),
        "first": ("float32", (16, 8)),
        "second": ("float32", (16, 8)),
        "slice": ("float32", (10, 8)),
        "slice.<rest>": ("float32", (80,)),
        "slice.<rest>#2": ("float32", (640,)),
        "expanded": ("float32", (100,)),
        "overlapping": ("float32", (100,)),
    }
    assert_lossless(read_checkpoint(path), path)


def test_a_tensor_and_its_transpose_are_one(tmp_path):
    weight = torch.ones(16, 8)
    assert shapes(saved(tmp_path / "x.pt", {"w": weight, "t": weight.T})) == {"w": ("float32", (16, 8))}


def test_paths_are_unique_and_never_empty(tmp_path):
    assert shapes(saved(tmp_path / "x.pt", torch.ones(64))) == {"tensor": ("float32", (64,))}
    path = saved(tmp_path / "y.pt", {1: torch.ones(64), "1": torch.ones(65), "1#2": torch.ones(66), "": torch.ones(67)})
    assert [t.path for t in read_checkpoint(path).tensors] == [("1",), ("1#2",), ("1#2#2",), ("",)]


def test_changed_payloads_give_a_file_that_torch_and_zipfile_accept(tmp_path):
    torch.manual_seed(0)
    original = {
        "w": torch.randn(20, 10),
        "t": torch.randn(20, 10).T,
        "h": torch.randn(200).half(),
        "b": torch.randn(200).bfloat16(),
        "i": torch.arange(200),
        "small": torch.ones(2),
        "step": 7,
    }
    path = saved(tmp_path / "x.pt", original)
    checkpoint = read_checkpoint(path)

    def doubled(tensor: int) -> bytes:
        spec = checkpoint.tensors[tensor]
        dtype = getattr(torch, spec.dtype)
        values = torch.frombuffer(bytearray(checkpoint.payload(tensor)), dtype=dtype)
        return (values * 2).view(torch.uint8).numpy().tobytes()

    (changed,) = rebuilt(checkpoint, doubled)
    assert zip_is_intact(changed)
    assert len(changed) == path.stat().st_size
    loaded = torch.load(io.BytesIO(changed), weights_only=True)
    for name in ("w", "t", "h", "b", "i"):
        assert torch.equal(loaded[name], original[name] * 2), name
        assert loaded[name].stride() == original[name].stride()
    assert torch.equal(loaded["small"], original["small"])
    assert loaded["step"] == 7


def test_checksums_that_torch_did_not_compute_stay_away(tmp_path):
    was = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "x.pt", {"w": torch.ones(100)})
    finally:
        torch.serialization.set_crc32_options(was)
    checkpoint = read_checkpoint(path)
    assert checkpoint.files[0].holes[0].crc_offsets == ()
    assert_lossless(checkpoint, path)


def trained(optimizer_class, **settings):
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.LayerNorm(32), torch.nn.Linear(32, 8))
    optimizer = optimizer_class(model.parameters(), **settings)
    model(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_the_optimizer_tells_its_groups_and_its_state_has_their_paths(tmp_path):
    model, optimizer = trained(torch.optim.AdamW, lr=1e-3, betas=(0.8, 0.95))
    value = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": 12}
    checkpoint = read_checkpoint(saved(tmp_path / "ckpt.pt", value))
    (found,) = checkpoint.optimizers
    assert found.path == ("optimizer",)
    assert found.groups == (ParamGroup(tuple("012345"), None, (0.8, 0.95), 1e-3, 1e-8, 1),)
    paths = {t.path: t.shape for t in checkpoint.tensors}
    assert paths["model", "0.weight"] == paths["optimizer", "state", "0", "exp_avg"] == (32, 16)
    assert paths["optimizer", "state", "4", "exp_avg_sq"] == (8, 32)
    assert checkpoint.step == 12


def test_parameter_names_and_several_optimizers(tmp_path):
    model = torch.nn.Linear(16, 16)
    adam = torch.optim.Adam(model.named_parameters())
    sgd = torch.optim.SGD(model.parameters(), momentum=0.9, lr=0.1)
    value = {"optimizer_states": [adam.state_dict(), sgd.state_dict()], "global_step": 3}
    checkpoint = read_checkpoint(saved(tmp_path / "x.ckpt", value))
    first, second = checkpoint.optimizers
    assert (first.path, second.path) == (("optimizer_states", "0"), ("optimizer_states", "1"))
    assert first.groups[0].names == ("weight", "bias")
    assert second.groups == (ParamGroup(("0", "1"), None, None, 0.1),)


@pytest.mark.parametrize("rate", [torch.tensor(1e-3), "1e-3", None, 0.0, -1.0, float("nan"), float("inf"), 10**400])
def test_a_learning_rate_that_is_no_ordinary_number_is_unknown(tmp_path, rate):
    state = {"state": {0: {"exp_avg": torch.ones(64)}}, "param_groups": [{"params": [0], "lr": rate}]}
    checkpoint = read_checkpoint(saved(tmp_path / "x.pt", {"optim": state}))
    assert checkpoint.optimizers[0].groups[0].learning_rate is None


def test_an_optimizer_keyed_by_name(tmp_path):
    state = {"state": {"a.weight": {"exp_avg": torch.ones(64)}}, "param_groups": [{"params": ["a.weight"], "lr": 1.0}]}
    checkpoint = read_checkpoint(saved(tmp_path / "x.pt", {"optim": state}))
    assert checkpoint.optimizers[0].groups[0].ids == ("a.weight",)
    assert checkpoint.tensors[0].path == ("optim", "state", "a.weight", "exp_avg")


@pytest.mark.parametrize(
    ("value", "name", "step"),
    [
        ({"step": 5}, "model_9.pt", 5),
        ({"global_step": 6, "epoch": 1}, "x.ckpt", 6),
        ({"iteration": 0}, "x-3.pt", 0),
        ({"step": True}, "model_9.pt", 9),
        ({"step": -1}, "step_000100.pt", 100),
        ({"step": 1.5}, "epoch=3-step=600-v2.ckpt", 600),
        ({}, "epoch=3-val_loss=0.25.ckpt", 3),
        ({}, "iter_0000100_rank0.pt", 100),
        ({}, "run2-checkpoint-17.pth.tar", 17),
        ({}, "s6-v1.ckpt", 6),
        ({}, "latest.pt", None),
        ({}, "x" + "9" * 30 + ".pt", None),
    ],
)
def test_the_step_is_in_the_file_or_else_in_the_name(tmp_path, value, name, step):
    assert read_checkpoint(saved(tmp_path / name, {"w": torch.ones(64), **value})).step == step


class Hyper:
    """An object of the user's, of which ckzd must not care."""

    def __init__(self):
        self.rate = 0.1
        self.prototype = torch.ones(100)


def test_a_lightning_checkpoint_with_objects_of_the_user(tmp_path):
    model, optimizer = trained(torch.optim.Adam)
    value = {
        "epoch": 0,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": model.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "/x/y.ckpt"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"hyper": Hyper(), "space": types.SimpleNamespace(table={"x": torch.ones(90)})},
    }
    stream = io.BytesIO()
    torch.save(value, stream)
    path = tmp_path / "epoch=0-step=40.ckpt"
    path.write_bytes(stream.getvalue())
    checkpoint = read_checkpoint(path)
    assert checkpoint.step == 40
    paths = {t.path for t in checkpoint.tensors}
    assert ("optimizer_states", "0", "state", "0", "exp_avg") in paths
    assert ("state_dict", "0.weight") in paths
    assert ("hyper_parameters", "hyper", "prototype") in paths
    assert ("hyper_parameters", "space", "table", "x") in paths
    assert checkpoint.optimizers[0].path == ("optimizer_states", "0")
    assert_lossless(checkpoint, path)


class Planted:
    """Runs a command in whoever unpickles it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return (os.system, (self.command,))


def test_a_planted_command_never_runs_and_comes_back_unchanged(tmp_path):
    witness = tmp_path / "ran"
    path = saved(tmp_path / "x.pt", {"w": torch.ones(100), "evil": Planted(f"touch {witness}")})
    checkpoint = read_checkpoint(path)
    assert [t.path for t in checkpoint.tensors] == [("w",)]
    assert_lossless(checkpoint, path)
    assert not witness.exists()


def test_constructors_that_nobody_knows_leave_opaque_storages(tmp_path):
    with warnings.catch_warnings(action="ignore"):
        quantized = torch.quantize_per_tensor(torch.ones(300), 0.1, 0, torch.qint8)
        sparse = torch.sparse_coo_tensor(torch.arange(100).reshape(1, 100), torch.ones(100), (100,))
    path = saved(tmp_path / "x.pt", {"q": quantized, "s": sparse, "storage": torch.ones(70).untyped_storage()})
    found = shapes(path)
    assert found["q.0"] == ("qint8", (300,))
    assert {dtype for name, (dtype, _) in found.items() if name.startswith("s.")} == {"int64", "float32"}
    assert found["storage"] == ("uint8", (280,))
    assert_lossless(read_checkpoint(path), path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path, protocol):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(100), "n": [1, {"a": (2,)}]}, pickle_protocol=protocol)
    assert shapes(path) == {"w": ("float32", (100,))}
    assert_lossless(read_checkpoint(path), path)


def test_torchscript_keeps_its_deflated_code_beside_the_tensors(tmp_path):
    path = tmp_path / "x.pt"
    with warnings.catch_warnings(action="ignore"):
        module = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.Linear(20, 2)))
        module.save(str(path))
    assert any(record.compress_type for record in zipfile.ZipFile(path).infolist())
    checkpoint = read_checkpoint(path)
    assert [(t.path[-2:], t.shape) for t in checkpoint.tensors] == [(("0", "weight"), (20, 20))]
    assert_lossless(checkpoint, path)
    (changed,) = rebuilt(checkpoint, lambda _: bytes(1600))
    assert zip_is_intact(changed)
    with warnings.catch_warnings(action="ignore"):
        loaded = torch.jit.load(io.BytesIO(changed))
        expected = module[1](module[0].bias * torch.ones(1, 20))
        assert torch.equal(loaded(torch.ones(1, 20)), expected)


def test_a_deflated_tensor_is_refused(tmp_path):
    """torch does not write one: its bytes would have to be inflated, and deflated again to the very same."""
    for name in ("x/data/0", "x/data.pkl"):
        path = tmp_path / "x.pt"
        path.write_bytes(torch_file(lambda record: replace(record, method=8), only=name))
        with pytest.raises(BadCheckpoint, match=f"{name}': expected stored as it is, got compressed"):
            read_checkpoint(path)


def test_another_byte_order_is_named(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(torch_file(lambda record: replace(record, data=b"big"), only="x/byteorder"))
    with pytest.raises(BadCheckpoint, match="expected 'little', got 'big'"):
        read_checkpoint(path)


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 8, 9, 21, 22, 40, 97, 98, 500, -1, -22, -23, -100, -400])
def test_a_file_that_is_cut_off_is_refused(tmp_path, cut):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadCheckpoint):
        read_checkpoint(path)


TENSORS = st.builds(
    lambda dtype, shape, order, cut: torch.ones(shape).to(dtype).permute(order(len(shape)))[cut:],
    st.sampled_from([*FLOATS, torch.int64, torch.uint8]),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.sampled_from([lambda n: tuple(range(n)), lambda n: tuple(reversed(range(n))), lambda n: (*range(1, n), 0)]),
    st.integers(0, 1),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.lists(TENSORS, max_size=3), max_size=5))
def test_any_tree_of_tensors_round_trips(tmp_path_factory, value):
    path = saved(tmp_path_factory.getbasetemp() / "tree.pt", value)
    assert_lossless(read_checkpoint(path), path)


def test_a_large_tree_is_read_fast(tmp_path):
    value = {f"layer.{n}.weight": torch.ones(64) for n in range(2000)}
    path = saved(tmp_path / "x.pt", value)
    started = time.perf_counter()
    assert len(read_checkpoint(path).tensors) == 2000
    assert time.perf_counter() - started < 2


def test_a_pickle_that_has_rotted_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(torch_file(lambda record: replace(record, crc=1, descriptor_crc=1), only="x/data.pkl"))
    with pytest.raises(BadCheckpoint, match=r"data.pkl': CRC-32 expected 00000001, got"):
        read_checkpoint(path)


def test_a_name_that_no_manifest_can_hold_is_refused(tmp_path):
    path = saved(tmp_path / "x\udcff.pt", {"w": torch.ones(3)})
    with pytest.raises(BadCheckpoint, match="not UTF-8"):
        read_checkpoint(path)
