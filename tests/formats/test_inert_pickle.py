"""The inert machine agrees with pickle on containers, never runs anything, and refuses the rest within bounds."""

import builtins
import collections
import contextlib
import enum
import importlib
import io
import os
import pickle
import struct
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckzd.errors import BadCheckpoint
from ckzd.formats import inert_pickle, tree
from ckzd.formats.tree import Call, Global, Mapping, SetOf, TensorRef

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(1 << 2100), max_value=1 << 2100)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
KEYS = st.text() | st.integers() | st.tuples(st.text(), st.integers()) | st.none()
CONTAINERS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(KEYS, inner)
        | st.dictionaries(st.text(), inner).map(collections.OrderedDict)
        | st.sets(st.text() | st.integers())
        | st.frozensets(st.integers())
    ),
    max_leaves=25,
)

REBUILDS = {
    ("_codecs", "encode"): lambda text, _encoding: text.encode("latin-1"),
    ("builtins", "bytes"): bytes,
    ("__builtin__", "bytes"): bytes,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
    ("builtins", "frozenset"): frozenset,
}


def as_python(node):
    """The plain value that a tree stands for."""
    match node:
        case Mapping():
            return {as_python(key): as_python(value) for key, value in node.pairs}
        case SetOf():
            return (frozenset if node.frozen else set)(as_python(item) for item in node.items)
        case Call(function=Global(module=module, name=name)):
            return REBUILDS[module, name](*as_python(node.args))
        case list() | tuple():
            return type(node)(as_python(item) for item in node)
        case _:
            return node


@settings(deadline=None)
@given(CONTAINERS, st.integers(0, 5))
def test_containers_are_read_as_pickle_reads_them(value, protocol):
    data = pickle.dumps(value, protocol)
    assert as_python(inert_pickle.load(data, "x")) == pickle.loads(data) == value


@settings(deadline=None)
@given(CONTAINERS)
def test_what_the_python_pickler_writes_is_read_too(value):
    stream = io.BytesIO()
    pickle._Pickler(stream, 2).dump(value)
    assert as_python(inert_pickle.load(stream.getvalue(), "x")) == value


def test_shared_and_cyclic_containers_keep_their_identity():
    inner = {"a": 1}
    cycle = [inner, inner]
    cycle.append(cycle)
    node = inert_pickle.load(pickle.dumps(cycle), "x")
    assert node[0] is node[1]
    assert node[2] is node
    assert len(list(tree.walk(node, "x"))) == 2


class Planted:
    """Pickles into a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return (os.system, (self.command,))


@pytest.mark.parametrize("protocol", range(6))
def test_a_planted_command_is_recorded_and_never_runs(tmp_path, protocol):
    witness = tmp_path / "ran"
    data = pickle.dumps({"model": Planted(f"touch {witness}")}, protocol)
    call = inert_pickle.load(data, "x").get("model")
    assert isinstance(call, Call)
    assert call.function in (Global("posix", "system"), Global("os", "system"))
    assert not witness.exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"ios\nsystem\n(X\x04\x00\x00\x00true.",
        b"(cos\nsystem\nX\x04\x00\x00\x00trueo.",
        b"cbuiltins\n__import__\nX\x0a\x00\x00\x00no_such_mod\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x04exit\x85R.",
        b"cno_such_module\nThing\n)\x81}X\x01\x00\x00\x00aK\x01sb.",
    ],
)
def test_no_name_is_resolved(stream, monkeypatch):
    called = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "system", called.append)
        patched.setattr(builtins, "eval", called.append)
        patched.setattr(importlib, "import_module", called.append)
        import_as_usual = builtins.__import__
        patched.setattr(
            builtins, "__import__", lambda *args, **kw: called.append(args[0]) or import_as_usual(*args, **kw)
        )
        called.clear()
        read_and_walk(stream)
        came_of_it = list(called)
    assert came_of_it == []


class Color(enum.Enum):
    RED = 1


class Settings:
    """A user's object, as in Lightning's hyper_parameters."""

    def __init__(self):
        self.width = 3
        self.table = {"weight": torch.ones(100)}


def tensors_of(value):
    """(path, view) of the tensors in what torch.save would pickle."""
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    records = torch._C.PyTorchFileReader(stream)
    root = inert_pickle.load(records.get_record("data.pkl"), "x")
    return [(trail.path("x"), node) for trail, node in tree.walk(root, "x") if isinstance(node, TensorRef)]


def test_tensors_are_found_inside_objects_parameters_and_subclasses():
    tagged = torch.nn.Parameter(torch.ones(5))
    tagged.note = "has a state"
    attributed = torch.ones(6)
    attributed.ds_id = 3
    found = tensors_of(
        {
            "parameter": torch.nn.Parameter(torch.ones(4, 4)),
            "tagged": tagged,
            "attributed": attributed,
            "settings": Settings(),
            "color": Color.RED,
            "module": torch.nn.Linear(3, 2),
            "list": [torch.zeros(2), (torch.zeros(3),)],
            7: torch.zeros(1),
        }
    )
    assert [path for path, _ in found] == [
        ("parameter",),
        ("tagged",),
        ("attributed",),
        ("settings", "table", "weight"),
        ("module", "_parameters", "weight"),
        ("module", "_parameters", "bias"),
        ("list", "0"),
        ("list", "1", "0"),
        ("7",),
    ]


def test_views_keep_offset_shape_and_stride():
    base = torch.arange(24.0).reshape(4, 6)
    ((_, view),) = tensors_of({"view": base[1:3, ::2].T})
    assert (view.offset, view.shape, view.stride) == (6, (3, 2), (2, 6))
    assert (view.storage.elements, view.dtype) == (24, "float32")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint16])
def test_dtypes_have_their_torch_names(dtype):
    ((_, view),) = tensors_of({"x": torch.zeros(3, dtype=dtype)})
    assert view.dtype == str(dtype).removeprefix("torch.")


def test_float8_is_named_by_its_tensor():
    ((_, view),) = tensors_of({"x": torch.zeros(3).to(torch.float8_e4m3fn)})
    assert (view.dtype, view.element_bytes, view.storage.dtype) == ("float8_e4m3fn", 1, "uint8")


UNTIL_KIND = b"(X\x07\x00\x00\x00storagectorch\n"
AFTER_KIND = b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"


def storage_pickle(kind=b"FloatStorage", elements=b"K\x04", shape=b"K\x04\x85", stride=b"K\x01\x85", offset=b"K\x00"):
    """The pickle of one tensor, built by hand so that it can lie."""
    persistent_id = UNTIL_KIND + kind + AFTER_KIND + elements + b"tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + persistent_id + offset + shape + stride + b"\x89}tR."


HUGE = b"\x8a\x08" + struct.pack("<q", 1 << 60)
WORDS = "no count|reaches past|no tuple|strides"


@pytest.mark.parametrize(
    "lie",
    [
        {"elements": HUGE},
        {"elements": b"J\xff\xff\xff\xff"},
        {"elements": b"\x88"},
        {"elements": b"N"},
        {"shape": b"K\x05\x85"},
        {"shape": HUGE + b"\x85"},
        {"shape": b"N"},
        {"shape": b"K\x02K\x02\x86"},
        {"stride": b"K\x02\x85"},
        {"stride": b"J\xff\xff\xff\xff\x85"},
        {"offset": b"K\x01"},
        {"offset": b"G" + struct.pack(">d", 0.0)},
        {"shape": b"(" + b"K\x01" * 65 + b"t", "stride": b"(" + b"K\x01" * 65 + b"t"},
    ],
)
def test_a_tensor_that_lies_about_its_storage_is_refused(lie):
    assert isinstance(inert_pickle.load(storage_pickle(), "x"), TensorRef)
    with pytest.raises(BadCheckpoint, match=WORDS):
        inert_pickle.load(storage_pickle(**lie), "x")


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return b"\x80\x02" + opening * depth + closing * depth + b"."


@pytest.mark.parametrize("stream", [nested(b"]", b"a", 300_000)[:-2] + b".", b"\x80\x02)" + b"\x85" * 300_000 + b"."])
def test_deep_nesting_is_refused_by_the_walker_without_recursion(stream):
    root = inert_pickle.load(stream, "x")
    with pytest.raises(BadCheckpoint, match="nested more than"):
        list(tree.walk(root, "x"))


def test_shared_tuples_that_double_are_walked_once():
    """(t, t) forty times over would take 2^40 steps for whoever compares, hashes, prints or walks it naively."""
    doubled = b"\x80\x02K\x01\x85" + b"2\x86" * 40
    root = inert_pickle.load(doubled + b".", "x")
    assert len(list(tree.walk(root, "x"))) == 41
    as_key = inert_pickle.load(b"\x80\x02}" + doubled[2:] + b"K\x01s.", "x")
    assert isinstance(as_key, Mapping)


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"", "before its STOP"),
        (b".", "never put"),
        (b"\x80\x02(", "before its STOP"),
        (b"\x80\x02(.", "never put"),
        (b"\x80\x02t.", "never put"),
        (b"\x80\x02}K\x01s.", "no mapping|never put"),
        (b"\x80\x02]K\x01K\x02s.", "no mapping"),
        (b"\x80\x02}K\x01a.", "no list"),
        (b"\x80\x02}(K\x01u.", "without a value"),
        (b"\x80\x02h\x05.", "never put"),
        (b"\x80\x02K\x01r\xff\xff\xff\xff.", None),
        (b"\x80\x02X\xff\xff\xff\xffab.", "malformed"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fab.", "malformed"),
        (b"\x80\x04\x8b\xff\xff\xff\x7fab.", "malformed"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "malformed"),
        (b"\x82\x01.", "not allowed"),
        (b"\x97.", "not allowed"),
        (b"Pid\n.", "not allowed"),
        (b"I" + b"1" * 5000 + b"\n.", "malformed"),
        (b"I" + b"1" * 70_000 + b"\n.", "without an end"),
        (b"p-1\n.", "no index"),
        (b"K\x01Q.", "no storage"),
        (b"K\x01K\x02K\x03\x93.", "no string"),
        (b"ccollections\nOrderedDict\nK\x01\x85R.", "no list of pairs"),
        (b"ccollections\nOrderedDict\n]K\x01a\x85R.", "no pair"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "without a storage"),
    ],
)
def test_each_malformation_has_its_message(stream, words):
    if words is None:
        assert inert_pickle.load(stream, "x") == 1
        return
    with pytest.raises(BadCheckpoint, match=words):
        inert_pickle.load(stream, "x")


def test_work_is_bounded(monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_OPS", 1000)
    with pytest.raises(BadCheckpoint, match="more than 1000 operations"):
        inert_pickle.load(b"\x80\x02" + b"N0" * 1000 + b"N.", "x")
    monkeypatch.setattr(inert_pickle, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(BadCheckpoint, match="at most 10 are read"):
        inert_pickle.load(b"\x80\x02" + b"N0" * 10 + b"N.", "x")


def test_a_long_list_cannot_be_made_a_mapping_again_and_again(monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_OPS", 10_000)
    pairs = b"](" + b"NN\x86" * 1000 + b"e"
    again = b"ccollections\nOrderedDict\nh\x00R0" * 20
    with pytest.raises(BadCheckpoint, match="operations"):
        inert_pickle.load(b"\x80\x02" + pairs + b"\x85q\x00" + again + b".", "x")


def valid_pickle() -> bytes:
    stream = io.BytesIO()
    model = {"w": torch.ones(4, 3), "b": torch.nn.Parameter(torch.zeros(5)), "s": Settings(), "c": Color.RED}
    torch.save({"model": model, "step": 3, "names": ["a", ("b", 1.5)], "set": {1, 2}}, stream)
    stream.seek(0)
    return torch._C.PyTorchFileReader(stream).get_record("data.pkl")


VALID = [valid_pickle(), *(pickle.dumps({"a": [1, (2.0, "x", b"y")], "b": {3}, "o": Path("x")}, p) for p in range(6))]


def read_and_walk(data: bytes) -> None:
    """Only BadCheckpoint may come out of it."""
    with contextlib.suppress(BadCheckpoint):
        for trail, node in tree.walk(inert_pickle.load(data, "x"), "x"):
            if isinstance(node, TensorRef):
                trail.path("x")


@st.composite
def damage(draw, intact: st.SearchStrategy[bytes]) -> bytes:
    """Some bytes changed, perhaps a stretch missing."""
    damaged = bytearray(draw(intact))
    changes = st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255))
    for position, value in draw(st.lists(changes, max_size=6)):
        damaged[position] = value
    if draw(st.booleans()):
        start, stop = sorted(draw(st.tuples(st.integers(0, len(damaged)), st.integers(0, len(damaged)))))
        del damaged[start:stop]
    return bytes(damaged)


@settings(max_examples=600, deadline=None)
@given(damage(st.sampled_from(VALID)))
def test_damaged_pickles_raise_nothing_but_bad_checkpoint(data):
    started = time.monotonic()
    read_and_walk(data)
    assert time.monotonic() - started < 2


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise_raises_nothing_but_bad_checkpoint(data):
    read_and_walk(data)


CODES = st.sampled_from(sorted(inert_pickle._OPERATIONS)) | st.binary(min_size=1, max_size=3)


@settings(max_examples=400, deadline=None)
@given(st.lists(CODES, max_size=60))
def test_random_programs_raise_nothing_but_bad_checkpoint(codes):
    read_and_walk(b"".join(codes) + b".")


def test_every_prefix_is_refused():
    for data in VALID:
        for length in range(len(data)):
            with pytest.raises(BadCheckpoint):
                inert_pickle.load(data[:length], "x")


def test_keys_become_text_that_can_be_written():
    awkward = {"\ud800": 1, 1 << 100: 2, ("a",): 3, 2.5: 4, None: 5, True: 6, "é": 7}
    labels = [tree.label(key) for key, _ in inert_pickle.load(pickle.dumps(awkward), "x").pairs]
    assert labels == ["\\ud800", "<int>", "<tuple>", "2.5", "None", "True", "é"]
    "".join(labels).encode()


def test_a_path_of_any_length_is_refused():
    deep = torch.ones(2)
    for _ in range(70):
        deep = {"k": deep}
    with pytest.raises(BadCheckpoint, match="key path"):
        tensors_of(deep)
    with pytest.raises(BadCheckpoint, match="key path"):
        tensors_of({"k" * 5000: torch.ones(2)})
