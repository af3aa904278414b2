"""Layouts and indexes come back; what no encoder writes is refused before anything is decoded."""

import copy
import dataclasses
import json
import struct
import tracemalloc
from dataclasses import replace
from functools import partial

import pytest
from codec.chains import Zoo, encode
from hypothesis import given, settings
from hypothesis import strategies as st

from ckzd.checkpoint import FileLayout, FileStat, Hole, TensorSpec, tiles_of, whole
from ckzd.codec import zstd
from ckzd.codec.decode import MALFORMED
from ckzd.codec.methods.registry import checked, weight_method
from ckzd.codec.records.index import STEPS, Code, Index, Method, QuantizationSteps
from ckzd.codec.records.layout import Layout, Triple, layer_before, plane_shape
from ckzd.codec.records.skeleton import split_skeleton
from ckzd.fingerprints import Fingerprint
from ckzd.formats import read_checkpoint
from ckzd.parts import Part

STAT = FileStat(0, 0, 0, 0)
FLOATS = ("float32", (2, 3), 24)
LAYOUT = Layout(
    files=(
        FileLayout("a.pt", 200, STAT, (Hole(0, 10, 24, (40, 150)), Hole(1, 50, 24), Hole(2, 74, 24))),
        FileLayout("b/c", 40, STAT, (Hole(3, 0, 5), Hole(4, 8, 24, (36,)))),
        FileLayout("empty", 0, STAT, ()),
    ),
    tensors=(
        TensorSpec(("model", "w"), *FLOATS),
        TensorSpec(("opt", "state", "0", "exp_avg"), *FLOATS),
        TensorSpec(("opt", "state", "0", "exp_avg_sq"), *FLOATS),
        TensorSpec(("bytes",), "int64", (5,), 5),
        TensorSpec(("model", "v"), *FLOATS),
    ),
    reference_tensors=(0, 4),
    triples=(Triple(0, 1, 2),),
)
LONE = dataclasses.replace(LAYOUT, triples=(Triple(0, 1),))
CODES = (
    Code(Method.SCALAR, ("weights/0", 0, 9)),
    Code(Method.SCALED, ("first_moment/0", 3, 4)),
    Code(Method.FILL),
    Code(Method.EXACT, ("state/0", 0, 1)),
    Code(Method.COPY, other=0),
)
DOCUMENT = json.loads(LAYOUT.to_json())


def test_a_layout_and_an_index_come_back():
    index = Index(LAYOUT, CODES, QuantizationSteps(0.5, 0.125, 2.0**-30, 0.25, 2.0**-7, 3.0), {0: 3})
    for reference in (b"", LAYOUT.to_json()):
        assert Index.from_bytes(index.to_bytes(reference), reference) == index
    assert Index.with_layout(index.to_bytes(b"abc"), LAYOUT) == index
    assert len(index.to_bytes(LAYOUT.to_json())) < 300


def test_a_lone_momentum_comes_back():
    assert Layout.from_json(LONE.to_json()) == LONE
    codes = (*CODES[:2], Code(Method.EXACT, ("state/1", 0, 1)), *CODES[3:])
    index = Index(LONE, codes, QuantizationSteps(step=0.5, momentum_step=2.0**-7))
    assert Index.from_bytes(index.to_bytes(b""), b"") == index


@pytest.mark.parametrize("method", [m for m in Method if m not in (Method.SCALED, Method.FRAMED, Method.EXACT)])
def test_a_lone_momentum_is_scaled_or_framed_or_exact_and_nothing_else(method):
    """Nor does the tensor that would be its second moment count as one."""
    code = [method.value, 0] if method is Method.COPY else [method.value, "f/0", 0, 1]
    for wrong in (code, [method.value]):
        with pytest.raises(MALFORMED):
            read(index_bytes([GOOD[0], wrong, GOOD[3], *GOOD[3:]], layout=LONE))
    with pytest.raises(MALFORMED):
        read(index_bytes(GOOD, layout=LONE))


def test_an_index_of_format_1_has_two_steps():
    old = Index.from_bytes(index_bytes(momentum_step=None), b"")
    assert old.steps == QuantizationSteps(step=0.5, moment_step=0.0)


@pytest.mark.parametrize("method", [Method.SCALAR, Method.FRAMED, Method.FACTORED, Method.WHOLE])
def test_a_weight_with_levels_may_have_a_finer_step(method):
    code = Code(method, ("weights/0", 0, 9))
    index = Index(LAYOUT, (code, *CODES[1:]), QuantizationSteps(step=0.5, whole_step=3.0), {0: 2})
    again = read(index.to_bytes(b""))
    assert again.step_exponents == {0: 2}
    assert weight_method(method).step(again.steps) == (3.0 if method is Method.WHOLE else 0.5)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", None, 1e300, 10**400])
def test_a_step_that_is_none_is_malformed(name, value):
    with pytest.raises(MALFORMED):
        Index.from_bytes(index_bytes(others={name: value}), b"")


def test_the_layout_of_a_real_checkpoint_comes_back(tmp_path):
    zoo = Zoo()
    zoo.advance(1)
    checkpoint = read_checkpoint(zoo.save(tmp_path / "step_1.pt"))
    archive = encode(checkpoint)
    layout = archive.index().layout
    assert layout.tensors == checkpoint.tensors
    assert [f.holes for f in layout.files] == [f.holes for f in checkpoint.files]
    assert Layout.from_json(layout.to_json()) == layout


def changed(*path_and_value):
    """The layout document with one place changed."""
    *path, last, value = path_and_value
    document = copy.deepcopy(DOCUMENT)
    place = document
    for step in path:
        place = place[step]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document).encode()


HOSTILE = {
    "no JSON": b"{",
    "a list": b"[]",
    "nested too deeply": b"[" * 200_000,
    "a huge number": changed("files", 0, 1, 10**400),
    "files missing": changed("files", KeyError),
    "files null": changed("files", None),
    "a file of two fields": changed("files", 0, ["a", 1]),
    "a name that is no text": changed("files", 0, 0, 7),
    "two files of one name": changed("files", 1, 0, "a.pt"),
    "a negative size": changed("files", 0, 1, -1),
    "a size of an exabyte": changed("files", 0, 1, 1 << 60),
    "a fraction": changed("files", 0, 1, 200.0),
    "a truth": changed("files", 0, 1, True),
    "a hole beyond the end": changed("files", 0, 1, 97),
    "holes that overlap": changed("files", 0, 2, 1, 1, 20),
    "holes in another order": changed("files", 0, 2, DOCUMENT["files"][0][2][::-1]),
    "a hole of another size": changed("files", 0, 2, 0, 2, 20),
    "a hole of three fields": changed("files", 0, 2, 0, [0, 10]),
    "a hole for no tensor": changed("files", 0, 2, 0, 0, 9),
    "a negative tensor": changed("files", 0, 2, 0, 0, -1),
    "a tensor in two holes": changed("files", 0, 2, 0, 0, 1),
    "a tensor in no hole": changed("files", 0, 2, DOCUMENT["files"][0][2][:2]),
    "a CRC inside a tensor": changed("files", 0, 2, 0, 3, 60),
    "a CRC across a tensor's start": changed("files", 0, 2, 0, 3, 48),
    "a CRC before its tensor": changed("files", 1, 2, 1, 3, 1),
    "a CRC beyond the end": changed("files", 0, 2, 0, 3, 198),
    "a continued tensor that is not there": changed("files", 0, ["a.pt", 200, DOCUMENT["files"][0][2], [3]]),
    "a file that starts with what continues": changed("files", 0, ["a.pt", 200, DOCUMENT["files"][0][2], [0]]),
    "a gap before what continues": changed("files", 0, ["a.pt", 200, DOCUMENT["files"][0][2], [1]]),
    "a path that continues no other": changed("files", 0, ["a.pt", 200, DOCUMENT["files"][0][2], [2]]),
    "continued tensors that are no list": changed("files", 0, ["a.pt", 200, DOCUMENT["files"][0][2], 2]),
    "a file of six fields": changed("files", 0, ["a.pt", 200, DOCUMENT["files"][0][2], [], [], []]),
    "a joined tensor that is not there": changed("files", 0, ["a.pt", 200, DOCUMENT["files"][0][2], [], [3]]),
    "a file that starts with what joins": changed("files", 0, ["a.pt", 200, DOCUMENT["files"][0][2], [], [0]]),
    "a gap before what joins": changed("files", 0, ["a.pt", 200, DOCUMENT["files"][0][2], [], [1]]),
    "a path of numbers": changed("tensors", 0, 0, [1, 2]),
    "two tensors of one path": changed("tensors", 0, 0, ["model", "v"]),
    "a dtype that is no text": changed("tensors", 0, 1, ["float32"]),
    "bytes that are not its shape's": changed("tensors", 0, 2, [2, 4]),
    "a shape that overflows": changed("tensors", 0, 2, [1 << 32, 1 << 32]),
    "a negative shape": changed("tensors", 0, 2, [-2, -3]),
    "a shape of text": changed("tensors", 0, 2, ["2", 3]),
    "a kept tensor that is not there": changed("kept", [0, 9]),
    "a kept tensor of integers": changed("kept", [0, 3, 4]),
    "kept tensors out of order": changed("kept", [4, 0]),
    "a kept tensor twice": changed("kept", [0, 0, 4]),
    "a triple of a weight that is not kept": changed("kept", [4]),
    "a kept moment": changed("kept", [0, 1, 4]),
    "a triple of nothing": changed("triples", 0, []),
    "a triple of a moment alone": changed("triples", 0, [1]),
    "a state of a moment": changed("states", [[1, 0]]),
    "a state of no weight": changed("states", [[5, 4]]),
    "states that descend": changed("states", [[5, 0], [5, 0]]),
    "a triple of three moments": changed("triples", 0, [0, 1, 2, 3]),
    "a triple of one moment twice": changed("triples", 0, [0, 1, 1]),
    "a triple of null": changed("triples", 0, [0, 1, None]),
    "a lone momentum of another shape": changed("triples", 0, [0, 3]),
    "a lone momentum that is kept": changed("triples", 0, [0, 4]),
    "a weight that is its own momentum": changed("triples", 0, [0, 0]),
    "a momentum in two triples": changed("triples", [[0, 1], [4, 1]]),
    "a triple of other shapes": changed("triples", 0, [0, 1, 3]),
    "a triple beyond the end": changed("triples", 0, [0, 1, 7]),
    "a weight in two triples": changed("triples", [[0, 1, 2], [0, 1, 2]]),
}


TILES = dataclasses.replace(
    LAYOUT,
    files=(
        dataclasses.replace(LAYOUT.files[0], holes=(*LAYOUT.files[0].holes[:2], Hole(2, 74, 24, continues=True))),
        *LAYOUT.files[1:],
    ),
    tensors=(*LAYOUT.tensors[:2], TensorSpec((*LAYOUT.tensors[1].path, "[1]"), *FLOATS), *LAYOUT.tensors[3:]),
    triples=(),
)
NO_TILES = {
    "of another dtype": TensorSpec(TILES.tensors[2].path, "bfloat16", (4, 3), 24),
    "of other columns": TensorSpec(TILES.tensors[2].path, "float32", (3, 2), 24),
    "of another number": TensorSpec((*LAYOUT.tensors[1].path, "[2]"), *FLOATS),
}


def test_a_layout_with_tiles_comes_back():
    assert Layout.from_json(TILES.to_json()) == TILES
    assert Layout.from_json(LAYOUT.to_json()).files[0].holes[2].continues is False


def test_tensors_of_one_storage_come_back():
    """Whatever their paths, dtypes and roles; what has tiles may join another, too."""
    first, moment, tile = TILES.files[0].holes
    file = FileLayout("a.pt", 200, STAT, (first, moment, tile, Hole(3, 98, 5, (150,), joins=True)))
    files = (file, FileLayout("b/c", 40, STAT, (Hole(4, 8, 24, (36,)),)), TILES.files[2])
    layout = dataclasses.replace(TILES, files=files)
    assert Layout.from_json(layout.to_json()) == layout
    assert tiles_of(files, {}) == {0: [0], 1: [1, 2], 3: [3], 4: [4]}
    both = json.loads(layout.to_json())
    both["files"][0][4] = [2, 3]
    with pytest.raises(MALFORMED, match="in two ways"):
        Layout.from_json(json.dumps(both).encode())


SEALED = Hole(0, 10, 24, (40,), fingerprint=Fingerprint(100, (120, 124), (1, 2), (3,)))
FINGERPRINTS = {
    "in a tensor": (60, (90,)),
    "before its tensor": (0, (8,)),
    "digits in a tensor": (90, (120,)),
    "its sum is before": (100, (40,)),
    "its sum is beyond the end": (100, (198,)),
    "beyond the end": (190, (110,)),
}


def sealed(hole=SEALED):
    """A layout of a file that has a fingerprint of one of its tensors."""
    file = FileLayout("a.pt", 200, STAT, (hole, Hole(1, 50, 24)))
    return Layout((file,), LAYOUT.tensors[:2], (0,), ())


def test_fingerprints_come_back():
    assert Layout.from_json(sealed().to_json()) == sealed()
    assert json.loads(sealed().to_json())["fingerprints"] == [[[1, 2], [3]]]


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_a_fingerprint_that_is_not_behind_its_tensor_is_malformed(name):
    offset, crcs = FINGERPRINTS[name]
    with pytest.raises(MALFORMED, match="fingerprint"):
        Layout.from_json(sealed(replace(SEALED, fingerprint=Fingerprint(offset, crcs, (), ()))).to_json())


@pytest.mark.parametrize("made", [[], [[[1, 2]]], [[[1 << 32], []]], [[[-1], []]]])
def test_a_fingerprint_of_what_is_no_checksum_is_malformed(made):
    document = json.loads(sealed().to_json()) | {"fingerprints": made}
    with pytest.raises(MALFORMED):
        Layout.from_json(json.dumps(document).encode())


def test_fingerprints_of_more_records_than_files_have_are_malformed():
    """Each of a million tensors could name one list of a million sums, and a restore would walk them all each time."""
    document = json.loads(sealed().to_json()) | {"fingerprints": [[[1] * (1 << 17), []]]}
    with pytest.raises(MALFORMED, match="more records"):
        Layout.from_json(json.dumps(document).encode())


def in_parts(*holes, further=(), tensors=None, **changes):
    """A layout of two files: tiles of a matrix of 6 rows of 4, each file having two of the columns, and a vector."""
    spec = partial(TensorSpec, dtype="float32")
    tensors = tensors or (
        spec(("w",), shape=(4, 4), nbytes=64), spec(("w", "[1]"), shape=(2, 4), nbytes=32),
        spec(("b",), shape=(6,), nbytes=24),
    )  # fmt: skip
    first = holes or (
        Hole(0, 10, 32, part=Part(0, 8, 4, 16)),
        Hole(1, 42, 16, (60,), joins=True, part=Part(0, 8, 2, 16)),
    )
    other = (Hole(0, 0, 32, part=Part(8, 8, 4, 16)), Hole(1, 32, 16, joins=True, part=Part(8, 8, 2, 16)), *further)
    vector = FileLayout("c", 24, STAT, (Hole(2, 0, 16, part=Part(8, 16)), Hole(2, 16, 8, part=Part(0, 8))))
    files = (FileLayout("a", 70, STAT, first), FileLayout("b", 90, STAT, other), vector)
    return Layout(files, tensors, (0, 1, 2), (), **({"tiled": {0: 2}} | changes))


def test_tensors_in_parts_come_back():
    layout = in_parts()
    assert Layout.from_json(layout.to_json()) == layout
    assert tiles_of(layout.files, layout.tiled) == {0: [0, 1], 2: [2]}


BOTH = in_parts().files[0].holes
NO_PARTS = {
    "one is missing": in_parts(BOTH[0]),
    "one is there twice": in_parts(further=(Hole(2, 48, 8, part=Part(0, 8)),)),
    "two lie on each other": in_parts(replace(BOTH[0], part=Part(4, 8, 4, 16)), BOTH[1]),
    "it reaches beyond": in_parts(replace(BOTH[0], part=Part(32, 8, 4, 16)), BOTH[1]),
    "of another pitch": in_parts(replace(BOTH[0], part=Part(0, 8, 4, 12)), BOTH[1]),
    "whole and in parts": in_parts(replace(BOTH[0], part=None), BOTH[1]),
    "runs overlap": in_parts(replace(BOTH[0], part=Part(0, 8, 4, 4)), BOTH[1]),
    "runs of nothing": in_parts(replace(BOTH[0], part=Part(0, 0, 4, 16)), BOTH[1]),
    "no bytes": in_parts(further=(Hole(2, 48, 0, part=Part(0, 0)),)),
    "tiles that continue": in_parts(BOTH[0], replace(BOTH[1], joins=False, continues=True)),
    "tiles that are not there": in_parts(tiled={0: 2, 2: 2}),
    "tiles of a whole tensor": in_parts(tiled={0: 2, 2: 1}),
    "tiles of two": in_parts(tiled={0: 2, 1: 2}),
    "tiles of another path": in_parts(tiled={0: 3}),
}


@pytest.mark.parametrize("name", NO_PARTS)
def test_parts_that_are_none_are_malformed(name):
    with pytest.raises(MALFORMED):
        Layout.from_json(NO_PARTS[name].to_json())


@pytest.mark.parametrize(
    "part", [[], [0, 8], [0, 8, 16, 0], ["0"], [-1], [0, 5, 16], [0, 32, 32], [1 << 60], [0.0], [True]]
)
def test_parts_that_cannot_be_are_malformed(part):
    document = json.loads(in_parts().to_json())
    document["files"][0][2][0][3] = part
    with pytest.raises(MALFORMED):
        Layout.from_json(json.dumps(document).encode())


STACKED = [TensorSpec(path, "float32", (6, 8), 192, (4, 3)) for path in (("a",), ("a", "[1]"))]


def stack_of(*tensors):
    """A layout of tiles of one tensor."""
    holes = tuple(Hole(n, sum(t.nbytes for t in tensors[:n]), t.nbytes, (), n > 0) for n, t in enumerate(tensors))
    file = FileLayout("a.pt", sum(t.nbytes for t in tensors), STAT, holes)
    return Layout((file,), tensors, tuple(range(len(tensors))), ())


def test_a_stack_of_matrices_comes_back():
    layout = stack_of(*STACKED)
    assert Layout.from_json(layout.to_json()) == layout
    assert whole(layout.tensors) == TensorSpec(("a",), "float32", (4, 3, 1, 8), 384)
    assert Layout.from_json(stack_of(STACKED[0], replace(STACKED[1], shape=(18, 8), nbytes=576)).to_json())


@pytest.mark.parametrize("wrong", [{"stack": ()}, {"stack": (3, 4)}, {"shape": (5, 8), "nbytes": 160}])
def test_rows_that_are_no_stack_are_malformed(wrong):
    with pytest.raises(MALFORMED):
        Layout.from_json(stack_of(STACKED[0], replace(STACKED[1], **wrong)).to_json())
    with pytest.raises(MALFORMED):
        Layout.from_json(stack_of(replace(STACKED[0], stack=(0, 6))).to_json())


@pytest.mark.parametrize("name", NO_TILES)
def test_a_tile_that_is_none_is_malformed(name):
    wrong = dataclasses.replace(TILES, tensors=(*TILES.tensors[:2], NO_TILES[name], *TILES.tensors[3:]))
    with pytest.raises(MALFORMED, match="cannot continue"):
        Layout.from_json(wrong.to_json())


def test_tiles_without_rows_are_malformed():
    """Two single numbers cannot be rows of one tensor."""
    single = [TensorSpec(("a",), "float32", (), 4), TensorSpec(("a", "[1]"), "float32", (), 4)]
    file = FileLayout("a.pt", 8, STAT, (Hole(0, 0, 4), Hole(1, 4, 4, continues=True)))
    with pytest.raises(MALFORMED, match="cannot continue"):
        Layout.from_json(Layout((file,), tuple(single), (0, 1), ()).to_json())


def test_a_storage_is_kept_whole_or_not():
    with pytest.raises(MALFORMED, match="cannot continue"):
        Layout.from_json(dataclasses.replace(TILES, reference_tensors=(0, 2, 4)).to_json())


def test_a_crc_of_half_a_storage_is_malformed():
    holes = (TILES.files[0].holes[0], Hole(1, 50, 24, (150,)), TILES.files[0].holes[2])
    wrong = dataclasses.replace(TILES, files=(dataclasses.replace(TILES.files[0], holes=holes), *TILES.files[1:]))
    with pytest.raises(MALFORMED, match="does not go on"):
        Layout.from_json(wrong.to_json())
    holes = (*holes[:2], dataclasses.replace(holes[2], continues=False, joins=True))
    wrong = dataclasses.replace(LAYOUT, files=(dataclasses.replace(TILES.files[0], holes=holes), *TILES.files[1:]))
    with pytest.raises(MALFORMED, match="does not go on"):
        Layout.from_json(wrong.to_json())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_layout_is_malformed(name):
    with pytest.raises(MALFORMED):
        Layout.from_json(HOSTILE[name])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300)
@given(st.data())
def test_any_place_of_a_layout_may_hold_anything(data):
    """Either it is still a layout, or it is malformed; nothing else happens."""
    document = copy.deepcopy(DOCUMENT)
    place, step = document, data.draw(st.sampled_from(list(DOCUMENT)))
    while isinstance(place[step], list) and place[step] and data.draw(st.booleans()):
        place, step = place[step], data.draw(st.integers(0, len(place[step]) - 1))
    place[step] = data.draw(json_values)
    try:
        layout = Layout.from_json(json.dumps(document).encode())
    except MALFORMED:
        return
    assert Layout.from_json(layout.to_json()) == layout


def read(data, layout=b""):
    """An index as the decoder takes it."""
    return checked(Index.from_bytes(data, layout))


def index_bytes(codes=None, step=0.5, moment_step=0.0, momentum_step=0.0, *, halvings=None, others=None, layout=LAYOUT):
    document = {"codes": json.loads(json.dumps(codes)) if codes is not None else GOOD, "step": step}
    document |= {"moment_step": moment_step} | ({} if momentum_step is None else {"momentum_step": momentum_step})
    document |= ({} if halvings is None else {"halvings": halvings}) | (others or {})
    blocks = zstd.compress_against(layout.to_json(), b""), zstd.compress(json.dumps(document).encode())
    return struct.pack("<II", *map(len, blocks)) + b"".join(blocks)


GOOD = [["scalar", "w/0", 0, 9], ["scaled", "f/0", 3, 4], ["fill"], ["exact", "s/0", 0, 1], ["copy", 0]]


def with_code(number, code):
    return index_bytes([code if k == number else good for k, good in enumerate(GOOD)])


HOSTILE_INDEX = {
    "no bytes": b"",
    "half a header": b"\1\0\0\0",
    "blocks longer than it": struct.pack("<II", 1 << 31, 1 << 31),
    "no frames": struct.pack("<II", 2, 2) + b"abcd",
    "a code too few": index_bytes(GOOD[:4]),
    "a code too many": index_bytes([*GOOD, ["fill"]]),
    "codes that are no list": index_bytes({"a": 1}),
    "an empty code": with_code(0, []),
    "an unknown method": with_code(0, ["magic"]),
    "a method that is no text": with_code(0, [["copy"]]),
    "a stream of two": with_code(0, ["exact", "w", 0]),
    "a stream of no entry": with_code(0, ["exact", 1, 0, 9]),
    "a stream of text": with_code(0, ["exact", "w", "0", "9"]),
    "no stream": with_code(3, ["exact"]),
    "a fill with a stream": with_code(2, ["fill", "s", 0, 1]),
    "a copy of itself": with_code(4, ["copy", 4]),
    "a copy of a later one": with_code(0, ["copy", 4]),
    "a copy of a moment": with_code(4, ["copy", 1]),
    "a copy of other bytes": with_code(4, ["copy", 3]),
    "a copy of nothing": with_code(4, ["copy", -1]),
    "a moment that is a copy": with_code(1, ["copy", 0]),
    "a filled weight": with_code(0, ["fill"]),
    "a second moment that follows": with_code(2, ["trend", "s", 0, 1]),
    "a codebook for one moment": with_code(1, ["kmeans", "s", 0, 1]),
    "a delta of state": with_code(3, ["delta", "s", 0, 1]),
    "levels without scales": with_code(4, ["scalar", "s", 0, 1]),
    "a frame without scales": with_code(4, ["framed", "s", 0, 1]),
    "levels of its own without scales": with_code(4, ["whole", "s", 0, 1]),
    "a first moment without a reference": with_code(1, ["whole", "s", 0, 1]),
    "a second moment in a frame": with_code(2, ["framed", "s", 0, 1]),
    "a frame without a stream": with_code(0, ["framed"]),
    "a negative step": index_bytes(step=-1.0),
    "a step of NaN": index_bytes(step=float("nan")),
    "an infinite step": index_bytes(step=float("inf")),
    "a step of text": index_bytes(step="1"),
    "a huge step": index_bytes(moment_step=1e300),
    "a momentum's step of text": index_bytes(momentum_step="1"),
    "a negative step of momenta": index_bytes(momentum_step=-1.0),
    "a huge step of moments": index_bytes(moment_step=10**400),
    "halvings that are no pairs": index_bytes(halvings=[[0, 1, 2]]),
    "halvings of a number": index_bytes(halvings=7),
    "a weight halved by text": index_bytes(halvings=[[0, "1"]]),
    "a weight halved by a fraction": index_bytes(halvings=[[0, 1.5]]),
    "a weight halved by true": index_bytes(halvings=[[0, True]]),
    "a weight halved too often": index_bytes(halvings=[[0, 65]]),
    "a weight not halved": index_bytes(halvings=[[0, 0]]),
    "a weight halved twice": index_bytes(halvings=[[0, 1], [0, 2]]),
    "a moment halved": index_bytes(halvings=[[1, 1]]),
    "a tensor halved that is not there": index_bytes(halvings=[[99, 1]]),
    "masks that are no list": index_bytes(others={"zeros": 7}),
    "a mask of text": index_bytes(others={"zeros": [["0"]]}),
    "a mask of true": index_bytes(others={"zeros": [[True]]}),
    "a mask of a copy": index_bytes(others={"zeros": [[4]]}),
    "a mask of a second moment": index_bytes(others={"zeros": [[2]]}),
    "a mask twice": index_bytes(others={"zeros": [[0], [0]]}),
    "a mask that is not there": index_bytes(others={"zeros": [[99]]}),
    "a mask with half a stream": index_bytes(others={"zeros": [[0, "zeros/0", 1]]}),
    "a reach of text": index_bytes(others={"reach": "1"}),
    "a reach of true": index_bytes(others={"reach": True}),
    "a negative reach": index_bytes(others={"reach": -1}),
    "a huge reach": index_bytes(others={"reach": 4001}),
    "a slack of true": index_bytes(others={"slack": True}),
    "a huge slack": index_bytes(others={"slack": 15}),
}


def test_the_good_index_is_good():
    assert read(index_bytes()).codes[4] == Code(Method.COPY, other=0)


@pytest.mark.parametrize("name", HOSTILE_INDEX)
def test_a_hostile_index_is_malformed(name):
    with pytest.raises(MALFORMED):
        read(HOSTILE_INDEX[name])


@given(st.data())
def test_any_code_may_hold_anything(data):
    codes = copy.deepcopy(GOOD)
    number = data.draw(st.integers(0, len(codes) - 1))
    codes[number] = data.draw(st.lists(json_values | st.sampled_from([m.value for m in Method]), max_size=4))
    try:
        read(index_bytes(codes))
    except MALFORMED:
        return


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), max_size=4), st.integers(-3, 3))
def test_a_skeleton_is_split_exactly(lengths, surplus):
    """Pieces between holes of one byte each; a byte too many or too few is refused."""
    files, bytes_ = [], []
    for number, pieces in enumerate(lengths):
        holes, position = [], 0
        for piece in pieces[:-1]:
            holes.append(Hole(0, position + piece, 1))
            position += piece + 1
        files.append(FileLayout(f"f{number}", position + pieces[-1], STAT, tuple(holes)))
        bytes_.append([bytes([number]) * piece for piece in pieces])
    skeleton = b"".join(piece for pieces in bytes_ for piece in pieces)
    assert split_skeleton(skeleton, files) == bytes_
    if surplus:
        wrong = skeleton + bytes(surplus) if surplus > 0 else skeleton[:surplus]
        if len(wrong) != len(skeleton):
            with pytest.raises(ValueError, match="expected a skeleton"):
                split_skeleton(wrong, files)


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("layers.3.mlp.weight", "layers.2.mlp.weight"),
        ("3.weight", "2.weight"),
        ("a.10.b.4.w", "a.9.b.4.w"),
        ("layers.0.w", None),
        ("layers.w", None),
        ("w.3", None),
        ("w3.x", None),
        ("", None),
    ],
)
def test_the_layer_before(name, before):
    assert layer_before(("model", name)) == (None if before is None else ("model", before))
    assert layer_before(()) is None


@pytest.mark.parametrize(
    ("shape", "plane"),
    [((), (1, 1)), ((5,), (5, 1)), ((2, 3), (2, 3)), ((2, 3, 4), (2, 12)), ((0, 3), (0, 3)), ((3, 0, 2), (3, 0))],
)
def test_a_tensor_as_a_matrix(shape, plane):
    assert plane_shape(shape) == plane


def with_blocks(layout: bytes, codes: bytes) -> bytes:
    blocks = zstd.compress(layout, zstd.FAST), zstd.compress(codes, zstd.FAST)
    return struct.pack("<II", *map(len, blocks)) + b"".join(blocks)


def empty_files(count: int) -> bytes:
    return b'{"files":[' + b"[]," * count + b'[]],"tensors":[],"kept":[],"triples":[]}'


BOMBS = {
    "layout": (empty_files(4_000_000), b"{}"),
    "layout that its size allows": (empty_files(200_000), b"{}"),
    "codes": (LAYOUT.to_json(), b'{"codes":[' + b"[]," * 4_000_000 + b"[]]}"),
    "codes that their size allows": (LAYOUT.to_json(), b'{"codes":[' + b"[]," * 2_000 + b"[]]}"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_an_index_cannot_become_more_than_its_bytes_and_its_checkpoint_allow(name):
    bomb = with_blocks(*BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="at most"):
            Index.from_bytes(bomb, b"", 10_000)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["w", "model." + "x" * 4000])
def test_many_tensors_alike_are_no_bomb(name):
    count, nbytes = 500, 256
    tensors = tuple(TensorSpec((f"{name}.{n}",), "float32", (64,), nbytes) for n in range(count))
    holes = tuple(Hole(n, n * nbytes, nbytes) for n in range(count))
    layout = Layout((FileLayout("a", count * nbytes, STAT, holes),), tensors, tuple(range(count)), ())
    index = Index(layout, (Code(Method.SAME),) * count, QuantizationSteps())
    reference = layout.to_json()
    for before in (b"", reference):
        assert Index.from_bytes(index.to_bytes(before), before, count * nbytes) == index
