"""Storages that several tensors view: each view in one piece is a tensor, and every byte is in exactly one."""

import io
import time
import zipfile

import torch
from formats.helpers import assert_lossless, rebuilt, saved, zip_is_intact
from hypothesis import given, settings
from hypothesis import strategies as st

from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.formats import read_checkpoint
from ckzd.formats.frameworks.flat_names import places_of
from ckzd.formats.survey import StorageUse
from ckzd.formats.tree import ROOT, StorageRef, TensorRef
from ckzd.formats.views import parts_of


def parts(path):
    """path -> shape of every tensor that is a hole, in the order of the checkpoint's tensors."""
    checkpoint = read_checkpoint(path)
    assert_lossless(checkpoint, path)
    return {"/".join(tensor.path): tensor.shape for tensor in checkpoint.tensors}


def laid_out(tensors, padding=0):
    """Copies of them in one storage, one behind the other, by name."""
    flat = torch.zeros(sum(tensor.numel() + padding for tensor in tensors.values()))
    at, views = 0, {}
    for name, tensor in tensors.items():
        views[name] = flat[at : at + tensor.numel()].view(tensor.shape).copy_(tensor)
        at += tensor.numel() + padding
    return flat, views


def test_views_stand_in_the_order_of_the_pickle_not_of_memory(tmp_path):
    """As in cuDNN's recurrent weights, where all biases lie behind all matrices: pairing goes by that order."""
    shapes = {"w0": (64, 16), "w1": (64, 32), "b0": (64,), "b1": (64,)}
    _, views = laid_out({name: torch.ones(shape) for name, shape in shapes.items()})
    ordered = {name: views[name] for name in ("w0", "b0", "w1", "b1")} | {"other": torch.ones(80)}
    assert list(parts(saved(tmp_path / "x.pt", ordered)).items()) == [
        ("w0", (64, 16)),
        ("b0", (64,)),
        ("w1", (64, 32)),
        ("b1", (64,)),
        ("other", (80,)),
    ]


def test_views_go_before_the_tensor_that_holds_them(tmp_path):
    """Though they leave some padding out; a few rows that somebody kept do not tear their matrix apart."""
    flat, views = laid_out({"a": torch.ones(20, 30), "b": torch.ones(40, 10)}, padding=3)
    matrix = torch.ones(500, 8)
    found = parts(saved(tmp_path / "x.pt", {"flat": flat, **views, "matrix": matrix, "rows": matrix[40:60]}))
    rest = {"flat/<rest>": (3,), "flat/<rest>#2": (3,)}
    assert found == {"a": (20, 30), "b": (40, 10), "matrix": (500, 8), **rest}


def test_small_views_and_strided_ones_are_the_rest(tmp_path):
    flat = torch.arange(2000.0)
    views = {"a": flat[:600].view(20, 30), "bias": flat[600:620], "even": flat[700:1300:2]}
    views["turned"] = flat[1300:1900].view(30, 20).T
    rest = {"a/<rest>": (700,), "a/<rest>#2": (100,)}
    assert parts(saved(tmp_path / "x.pt", views)) == {"a": (20, 30), "turned": (30, 20), **rest}


def test_of_views_that_overlap_those_are_taken_that_cover_most(tmp_path):
    flat = torch.arange(1000.0)
    views = {"left": flat[:350], "middle": flat[200:800], "right": flat[700:]}
    assert parts(saved(tmp_path / "x.pt", views)) == {"left": (350,), "right": (300,), "left/<rest>": (350,)}
    views = {"left": flat[:250], "middle": flat[200:800], "right": flat[750:]}
    rest = {"left/<rest>": (200,), "left/<rest>#2": (200,)}
    assert parts(saved(tmp_path / "y.pt", views)) == {"middle": (600,), **rest}


def test_what_is_seen_as_two_kinds_of_numbers_is_opaque():
    """A float that loses precision would change the integers that are the same bytes. torch.save refuses such views."""
    storage = StorageRef("0", "uint8", 1, 4096)
    views = {
        "floats": TensorRef(storage, "float32", 4, 0, (512,), (1,)),
        "counts": TensorRef(storage, "int32", 4, 256, (512,), (1,)),
        "brain": TensorRef(storage, "bfloat16", 2, 1536, (16, 32), (32, 1)),
    }
    use = StorageUse(storage, (0, ROOT.down("floats")))
    for place, (name, view) in enumerate(views.items()):
        use.add(view, place, ROOT.down(name), "x.pt")
    found = [(part.start, part.tensor.path, part.tensor.dtype) for part in parts_of(use, 4096, (), "x.pt")]
    assert found == [(0, ("floats", "<rest>"), "uint8"), (3072, ("brain",), "bfloat16")]


def test_the_rest_of_an_optimizers_storage_is_no_moment(tmp_path):
    """A lone momentum is told by there being nothing beside it."""
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 40)).sum().backward()
    optimizer.step()
    states = {str(n): optimizer.state[p]["momentum_buffer"] for n, p in enumerate(model.parameters())}
    _, views = laid_out(states)
    saved_state = optimizer.state_dict()
    for number, view in views.items():
        saved_state["state"][int(number)]["momentum_buffer"] = view
    found = parts(saved(tmp_path / "x.pt", {"inner": {"optimizer": saved_state}}))
    assert found == {
        "inner/optimizer/state/0/momentum_buffer": (30, 40),
        "inner/optimizer/state/2/momentum_buffer": (20, 30),
        "inner/optimizer/<rest>": (30,),
        "inner/optimizer/<rest>#2": (20,),
    }


def test_slices_of_columns_show_what_matrix_they_are_of(tmp_path):
    """torch saves all of it: a part of a tensor-parallel layer, an output of fewer words than its table has."""
    wide, kernels = torch.ones(40, 96), torch.ones(20, 24, 3, 3)
    content = {"left": wide[:, :32], "right": wide[:, 32:].T, "some": kernels[:, 8:]}
    assert parts(saved(tmp_path / "x.pt", content)) == {"left": (40, 96), "some": (20, 24, 3, 3)}


def test_strides_that_are_no_matrix_leave_a_storage_flat(tmp_path):
    flat = torch.ones(1000)
    content = {"even": flat[::2], "spread": torch.ones(999).as_strided((9, 50), (100, 1)), "twice": torch.ones(300)}
    content["twice"] = content["twice"].as_strided((50, 2), (3, 3))
    found = {"even": (1000,), "spread": (999,), "twice": (300,)}
    assert parts(saved(tmp_path / "x.pt", content)) == found


def test_a_file_of_many_optimizers_is_read_in_linear_time(tmp_path):
    def seconds(optimizers):
        ids = range(2000 // optimizers)
        states = [{number: {"exp_avg": torch.ones(128)} for number in ids} for _ in range(optimizers)]
        found = [{"state": state, "param_groups": [{"params": list(state)}]} for state in states]
        path = saved(tmp_path / f"{optimizers}.pt", {"optimizers": found, "w": torch.ones(128)})
        start = time.process_time()
        pair(Inputs(read_checkpoint(path), None))
        return time.process_time() - start

    assert seconds(2000) < 4 * seconds(2) + 0.2


def test_flat_names_of_many_optimizers_are_told_in_linear_time():
    def seconds(optimizers):
        start = time.process_time()
        names = [f"o{number % optimizers}.state.{number}.exp_avg" for number in range(4000)]
        places = places_of([*names, *(f"model.{number}.step" for number in range(4000))])
        assert len({place.optimizer for place in places.values()} - {()}) == optimizers
        return time.process_time() - start

    assert seconds(4000) < 8 * seconds(2) + 0.1


def test_a_crc_before_its_bytes_leaves_a_storage_whole(tmp_path):
    _, views = laid_out({"a": torch.ones(20, 30), "b": torch.ones(40, 10)})
    path, again = saved(tmp_path / "x.pt", views), tmp_path / "again.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(again, "w") as target:
        for name in source.namelist():
            target.writestr(zipfile.ZipInfo(name), source.read(name))
    assert parts(again) == {"a": (1000,)}


def test_a_changed_view_changes_the_crc_of_its_storage(tmp_path):
    _, views = laid_out({"a": torch.ones(20, 30), "b": torch.ones(40, 10), "c": torch.ones(5)})
    path = saved(tmp_path / "x.pt", views)
    checkpoint = read_checkpoint(path)
    changed = {n: torch.full(t.shape, n + 2.0).numpy().tobytes() for n, t in enumerate(checkpoint.tensors)}
    (data,) = rebuilt(checkpoint, changed.__getitem__)
    assert zip_is_intact(data)
    read = torch.load(io.BytesIO(data))
    assert {name: read[name].unique().tolist() for name in "abc"} == {
        checkpoint.tensors[n].path[-1].replace("<rest>", "c"): [n + 2.0] for n in range(3)
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 900)), min_size=1, max_size=12))
def test_any_views_leave_no_byte_out_and_none_twice(tmp_path_factory, spans):
    flat = torch.arange(1800.0)
    views = {str(number): flat[start : start + length] for number, (start, length) in enumerate(spans)}
    path = saved(tmp_path_factory.mktemp("views") / "x.pt", views)
    checkpoint = read_checkpoint(path)
    assert_lossless(checkpoint, path)
    assert sum(tensor.nbytes for tensor in checkpoint.tensors) == flat.nbytes


def flat_optimizer(elements, key=0):
    """A state dict of Adam over one flat parameter."""
    moments = {name: torch.ones(elements) for name in ("exp_avg", "exp_avg_sq")}
    return {"state": {key: {"step": torch.tensor(1.0), **moments}}, "param_groups": [{"params": [key], "lr": 1e-3}]}


def test_a_flat_moment_is_parted_as_the_storage_of_its_views(tmp_path):
    """In memory biases come last, in the pickle each behind its weight; padding belongs to nobody."""
    shapes = {"a.weight": (20, 30), "b.weight": (40, 10), "a.bias": (64,), "b.bias": (80,)}
    _, views = laid_out({name: torch.ones(shape) for name, shape in shapes.items()}, padding=1)
    model = {name: views[name] for name in ("a.weight", "a.bias", "b.weight", "b.bias")}
    path = saved(tmp_path / "x.pt", {"model": model, "optimizer": flat_optimizer(1148)})
    found = parts(path)
    assert [found[f"optimizer/state/0[{n}]/exp_avg"] for n in (0, 2, 4, 6)] == list(shapes.values())
    assert found["optimizer/<rest>"] == (1,)
    (group,) = read_checkpoint(path).optimizers[0].groups
    assert group.ids == ("0[0]", "0[4]", "0[2]", "0[6]")


def test_a_flat_moment_stays_whole_where_it_may_be_anothers(tmp_path):
    tensors = {"a": torch.ones(20, 30), "b": torch.ones(40, 10)}
    _, views = laid_out(tensors)
    copies = {f"ema.{name}": view for name, view in laid_out(tensors)[1].items()}
    turned = {f"other.{name}": tensor for name, tensor in reversed(tensors.items())}
    moments = {}
    for name, more in {"copy": copies, "others": laid_out(turned)[1], "flat": {"c": torch.ones(1000)}}.items():
        state = {"model": views | more, "optimizer": flat_optimizer(1000)}
        moments[name] = parts(saved(tmp_path / f"{name}.pt", state)).get("optimizer/state/0/exp_avg")
    assert moments == {"copy": None, "others": (1000,), "flat": (1000,)}


def test_slices_of_a_matrix_do_not_take_its_place(tmp_path):
    """An optimizer knows the matrix: a padded vocabulary whose head leaves the padding out, a fused projection."""
    table, fused = torch.ones(1024, 16), torch.ones(96, 32)
    thirds = dict(zip("qkv", fused.split(32), strict=True))
    found = parts(saved(tmp_path / "x.pt", {"head": table[:1000], "table": table, "fused": fused, **thirds}))
    assert found == {"table": (1024, 16), "fused": (96, 32)}


def test_rows_that_were_saved_one_by_one_are_no_tensors(tmp_path):
    rows = list(torch.randn(500, 64).unbind(0))
    assert list(parts(saved(tmp_path / "x.pt", {"rows": rows})).values()) == [(32000,)]
    table = torch.randn(500, 64)
    whole = parts(saved(tmp_path / "y.pt", {"rows": list(table.unbind(0)), "table": table}))
    assert whole == {"table": (500, 64)}
