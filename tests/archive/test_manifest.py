"""The manifest: one spelling, no contradiction, and a page that names every field."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import made_manifest, sha256

import ckzd.archive
from ckzd.archive import (
    EntryModel,
    FileModel,
    FolderModel,
    Manifest,
    NamedFile,
    NamedModel,
    StatModel,
    files_digest,
)
from ckzd.archive.manifest import FORMAT_VERSION

FORMAT = (Path(ckzd.archive.__file__).parent / "FORMAT.md").read_text()
WRITTEN = f'"format":{FORMAT_VERSION}'.encode()
MODELS = (Manifest, StatModel, FolderModel, FileModel, EntryModel, NamedModel, NamedFile)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_page_has_the_fields_and_the_fields_have_a_row(model):
    table = re.search(rf"^\| {model.__name__} \|.*?\n\n", FORMAT, re.MULTILINE | re.DOTALL)
    assert table, f"FORMAT.md has no table for {model.__name__}"
    documented = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", table[0], re.MULTILINE)
    assert documented == list(model.model_fields)


def test_the_page_has_no_table_for_a_model_that_is_not_there():
    assert set(re.findall(r"^\| (\w+) \| type \| meaning \|$", FORMAT, re.MULTILINE)) == {m.__name__ for m in MODELS}


texts = st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text)


CHANGES = st.fixed_dictionaries(
    {
        "preset": texts,
        "effort": st.sampled_from([None, "fast"]),
        "moments_dropped": st.sampled_from([None, "2026-11-30"]),
        "step": st.none() | st.integers(),
        "quality": st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False)),
        "parts": st.dictionaries(texts, st.integers(0, 2**63 - 1)),
        "tools": st.dictionaries(texts, st.text()),
    }
)


@given(CHANGES)
def test_it_reads_back_equal(changes):
    manifest = made_manifest(**changes)
    assert Manifest.from_json(manifest.to_json()) == manifest
    said = manifest.model_dump(mode="json")
    for field in ("effort", "base_model", "folders", "moments_dropped"):
        if not said[field]:
            del said[field]
    assert json.loads(manifest.to_json()) == said


def named_model(**changes) -> NamedModel:
    file = NamedFile(name="x.safetensors", size=3, sha256="0" * 64)
    return NamedModel(**({"path": "/models/x", "kind": "directory", "files": [file]} | changes))


def test_a_base_model_came_with_format_8_and_begins_a_chain():
    named, digest = named_model(), "0" * 64
    delta = made_manifest(base_model=named, reference=digest, depth=1)
    assert Manifest.from_json(delta.to_json()) == delta
    for changes in (
        {"format": 7, "base_model": named, "reference": digest, "depth": 1},
        {"base_model": named, "reference": digest, "depth": 2},
        {"base_model": named},
    ):
        with pytest.raises(ValueError, match="base_model"):
            made_manifest(**changes)


def test_a_base_model_is_a_file_or_files_of_a_directory():
    (file,) = named_model().files
    alone = named_model(path="/models/x.safetensors", kind="file")
    assert [model.path_of(file) for model in (alone, named_model())] == [
        Path("/models/x.safetensors"), Path("/models/x/x.safetensors"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "models/x"},
        {"path": "/models/../x"},
        {"path": "/models//x"},
        {"path": "/models/\n"},
        {"path": "/models/\x9b2J"},
        {"path": "/" + "x" * 4096},
        {"path": 3},
        {"kind": "file"},
        {"kind": "device"},
        {"files": []},
        {"files": [NamedFile(name=f"{n}.bin", size=3, sha256="0" * 64) for n in range(1025)]},
        {"files": [NamedFile(name="x", size=3, sha256="0" * 64)] * 2},
    ],
    ids=str,
)
def test_what_cannot_be_a_base_model_is_refused(changes):
    with pytest.raises(ValueError, match=r".+"):
        named_model(**changes)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "a\nb", "\x1b[2J", "x" * 256])
def test_what_cannot_be_the_name_of_its_file_is_refused(name):
    with pytest.raises(ValueError, match=r".+"):
        named_model(files=[NamedFile(name=name, size=3, sha256="0" * 64)])


PLAIN = {"mode": 0o40755, "uid": 0, "gid": 0, "mtime_ns": 5}


def folders(*names, **changes):
    files = made_manifest(name="inner").files
    own = {"kind": "directory", "directory": StatModel(**PLAIN), "name": "checkpoint-1"}
    return made_manifest(files, folders=[FolderModel(name=name, **PLAIN) for name in names], **{**own, **changes})


def test_directories_of_a_checkpoint_come_with_format_8():
    manifest = folders("a", "a/b", "c")
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert [folder.name for folder in manifest.folders] == ["a", "a/b", "c"]
    for wrong, words in [
        (lambda: folders("a", format=7), "since format 8"),
        (lambda: folders("a", kind="file", directory=None), "a file checkpoint has no directories"),
        (lambda: folders("a/b", "a"), "'a/b' stands before the one it is in"),
        (lambda: folders("../a"), "stays inside"),
        (lambda: folders("a", "a"), "have one name"),
        (lambda: folders("inner"), "have one name"),
    ]:
        with pytest.raises(ValueError, match=words):
            wrong()


def test_effort_came_with_format_7():
    assert made_manifest(format=7, effort="fast").effort == "fast"
    with pytest.raises(ValueError, match="since format 7"):
        made_manifest(format=6, effort="fast")
    spelled_out = made_manifest().to_json().replace(b'"name"', b'"effort":null,\n"name"', 1)
    with pytest.raises(ValueError, match="canonical"):
        Manifest.from_json(spelled_out)


def test_moments_may_be_dropped_since_format_8_and_are_gone_then():
    with pytest.raises(ValueError, match="since format 8"):
        made_manifest(format=7, moments_dropped="2026-11-30")
    with pytest.raises(ValueError, match="moments_dropped"):
        made_manifest(moments_dropped="yesterday")
    moment = EntryModel(name="first_moment/0", nbytes=1, sha256="0" * 64)
    with pytest.raises(ValueError, match="some are there"):
        made_manifest(moments_dropped="2026-11-30", entries=[moment])


def test_the_order_in_which_maps_were_filled_does_not_show():
    assert made_manifest(parts={"a": 1, "b": 2}).to_json() == made_manifest(parts={"b": 2, "a": 1}).to_json()


def test_no_other_spelling_is_accepted():
    good = made_manifest().to_json()
    for other in (
        json.dumps(json.loads(good)).encode(),
        good[:-1],
        good + b"\n",
        good.replace(b'"step":100', b'"step":1e2'),
        good.replace(b'"step":100', b'"step":100.0'),
        good.replace(b'"step":100', b'"step":"100"'),
        good.replace(WRITTEN, b'"format":true'),
        good.replace(WRITTEN, WRITTEN + b",\n" + WRITTEN),
        good.replace(b"step_100", b"step\\u005f100"),
    ):
        with pytest.raises(ValueError, match=r".+"):
            Manifest.from_json(other)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 10**9])
def test_a_newer_format_says_so(version):
    text = made_manifest().to_json().replace(WRITTEN, f'"format":{version}'.encode())
    with pytest.raises(ValueError, match=f"format {version} is newer than {FORMAT_VERSION}"):
        Manifest.from_json(text)


FILE = made_manifest().files[0]
STAT = StatModel(mode=0o40755, uid=0, gid=0, mtime_ns=0)
WRONG = {
    "name": {"name": "a/b"},
    "dots": {"name": ".."},
    "empty": {"name": ""},
    "checkpoint": {"checkpoint": sha256(b"other")},
    "restored": {"restored": sha256(b"other")},
    "upper case": {"reconstruction": "A" * 64},
    "sum": {"original_bytes": 4},
    "two files": {"files": [FILE, FILE]},
    "no file": {"files": []},
    "directory": {"directory": STAT},
    "no directory": {"kind": "directory"},
    "depth": {"depth": 1},
    "reference": {"reference": sha256(b"other")},
    "nan": {"quality": {"kl": float("nan")}},
    "negative": {"parts": {"weights": -1}},
    "kind": {"kind": "socket"},
    "unknown": {"surprise": 1},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_contradictions_are_refused(changes):
    with pytest.raises(ValueError, match=r".+"):
        made_manifest(**changes)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "a//b", "a/", ".", "", "a\0b", "a/.", "./a"])
def test_no_file_name_leads_out(name):
    file = FileModel.model_construct(**{**FILE.model_dump(), "name": name})
    with pytest.raises(ValueError, match="name"):
        made_manifest([file])


@pytest.mark.parametrize("name", ["a", "a/b", "..a", "a b", "ä", "...", "-"])
def test_other_file_names_are_fine(name):
    assert made_manifest([FILE.model_copy(update={"name": name})]).files[0].name == name


def test_the_hash_over_files_ignores_their_order_and_nothing_else():
    rows = [("b", 1, sha256(b"1")), ("a", 2, sha256(b"2"))]
    assert files_digest(rows) == files_digest(rows[::-1])
    assert files_digest(rows) == sha256("".join(f"{n}\0{s}\0{h}\n" for n, s, h in sorted(rows)).encode())
    assert (
        len({files_digest(rows), files_digest(rows[:1]), files_digest([]), files_digest([("b", 2, rows[0][2])])}) == 4
    )


def test_several_files_are_plain_names_of_one_directory():
    files = [made_manifest(name=name).files[0] for name in ("model_1.pt", "optimizer_1.pt")]
    manifest = made_manifest(files, name="model_1.pt", kind="files")
    assert Manifest.from_json(manifest.to_json()) == manifest
    one = manifest.of_files(["optimizer_1.pt"])
    assert (one.kind, one.name, one.original_bytes, one.is_of_all_files) == ("file", "optimizer_1.pt", 3, False)
    assert manifest.is_of_all_files
    for changes in ({"name": "other"}, {"format": 7}):
        with pytest.raises(ValueError, match="several in one directory"):
            made_manifest(files, **{"name": "model_1.pt", "kind": "files"} | changes)
    with pytest.raises(ValueError, match="several in one directory"):
        made_manifest(files[:1], name="model_1.pt", kind="files")
