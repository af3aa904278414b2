"""The container: what is put in comes out, and not one wrong byte passes."""

import io
import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import archive_bytes, made_manifest

from ckzd.archive import ArchiveReader, ArchiveWriter
from ckzd.archive import container as module
from ckzd.archive.manifest import FORMAT_VERSION
from ckzd.archive.records import End, Member, central_header, end_records, local_header, parse_directory, parse_end
from ckzd.errors import CorruptArchive
from ckzd.streams import StreamRef

KINDS = ("weights", "first_moment", "state")
streams = st.lists(
    st.tuples(st.sampled_from(KINDS), st.binary(max_size=200), st.sampled_from([1, 1, 1, 700])), max_size=12
)


@pytest.fixture
def small(tmp_path) -> Path:
    path = tmp_path / "small.ckz"
    path.write_bytes(archive_bytes())
    return path


def check(path: Path) -> None:
    with ArchiveReader(path) as archive:
        archive.check()


@settings(max_examples=60, deadline=None)
@given(puts=streams)
def test_every_stream_comes_back(tmp_path_factory, puts):
    path = tmp_path_factory.mktemp("round") / "a.ckz"
    with path.open("wb") as file:
        writer = ArchiveWriter(file)
        refs = [writer.put(kind, data * times) for kind, data, times in puts]
        writer.add("index", b"index")
        written = writer.finish(made_manifest())
    with ArchiveReader(path) as archive:
        archive.check()
        assert archive.manifest == written
        assert archive.read("index") == b"index"
        assert [archive.stream(ref) for ref in refs] == [data * times for _, data, times in puts]
        assert [ref.nbytes for ref in refs] == [len(data * times) for _, data, times in puts]
    with zipfile.ZipFile(path) as foreign:
        assert foreign.testzip() is None
        assert foreign.namelist() == [*archive.entries(), "manifest.json"]


def test_long_streams_have_their_own_entry_and_short_ones_share(tmp_path):
    file = io.BytesIO()
    writer = ArchiveWriter(file)
    short = [writer.put("weights", bytes([n]) * 1000) for n in range(3)]
    long = [writer.put("weights", bytes(64 * 1024)) for _ in range(2)]
    other = writer.put("state", b"x")
    assert [ref.entry for ref in short] == ["weights/0"] * 3
    assert [ref.offset for ref in short] == [0, 1000, 2000]
    assert [ref.entry for ref in long] == ["weights/1", "weights/2"]
    assert other == StreamRef("state/0", 0, 1)


def test_a_full_pack_is_written_out_and_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PACK_BYTES", 1000)
    path = tmp_path / "packs.ckz"
    with path.open("wb") as file:
        writer = ArchiveWriter(file)
        refs = [writer.put("weights", bytes([n]) * 300) for n in range(40)]
        assert writer.nbytes > 9000
        writer.finish(made_manifest())
    assert len({ref.entry for ref in refs}) == 10
    with ArchiveReader(path) as archive:
        for _ in range(2):
            assert [archive.stream(ref) for ref in refs] == [bytes([n]) * 300 for n in range(40)]


def test_memoryviews_are_bytes_too(tmp_path):
    data = memoryview(bytes(range(256)) * 300)
    file = io.BytesIO()
    writer = ArchiveWriter(file)
    ref, packed = writer.put("weights", data), writer.put("weights", data[:7])
    writer.finish(made_manifest())
    (tmp_path / "a.ckz").write_bytes(file.getvalue())
    with ArchiveReader(tmp_path / "a.ckz") as archive:
        assert archive.stream(ref) == data.tobytes()
        assert archive.stream(packed) == bytes(range(7))


def test_the_same_calls_give_the_same_bytes():
    assert archive_bytes() == archive_bytes()


def test_unzip_reads_it(small):
    finished = subprocess.run(["python3", "-m", "zipfile", "-t", small], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    with zipfile.ZipFile(small) as foreign:
        assert json.loads(foreign.read("manifest.json"))["name"] == "step_100.pt"
        foreign.extractall(small.parent / "extracted")


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_found_and_its_entry_named(small, flip):
    data = small.read_bytes()
    with ArchiveReader(small) as archive:
        spans = {m.name: (m.offset, m.end) for m in archive._members.values()}
    with small.open("r+b", buffering=0) as file:
        for position, value in enumerate(data):
            file.seek(position)
            file.write(bytes([value ^ flip]))
            with pytest.raises(CorruptArchive) as caught:
                check(small)
            message = str(caught.value)
            assert message.startswith(f"{small}: ")
            inside = [name for name, (start, stop) in spans.items() if start <= position < stop]
            assert all(name in message for name in inside), f"byte {position} of {inside}: {message}"
            file.seek(position)
            file.write(bytes([value]))
    check(small)


def test_a_flip_in_an_entry_is_found_by_reading_it(small):
    data = small.read_bytes()
    refs = {"weights/0": StreamRef("weights/0", 0, 5), "index": None, "skeleton": None}
    with ArchiveReader(small) as archive:
        spans = {m.name: (m.offset, m.end) for m in archive._members.values() if m.name in refs}
    for entry, (start, stop) in spans.items():
        for position in range(start, stop):
            small.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
            with ArchiveReader(small) as archive:
                with pytest.raises(CorruptArchive, match=entry):
                    archive.read(entry)
                if refs[entry] is not None:
                    with pytest.raises(CorruptArchive, match=entry):
                        archive.stream(refs[entry])


def test_every_truncation_and_every_appended_byte_is_found(small):
    data = small.read_bytes()
    for length in range(len(data)):
        small.write_bytes(data[:length])
        with pytest.raises(CorruptArchive):
            check(small)
    for extra in (b"\0", b"PK\5\6", data):
        small.write_bytes(data + extra)
        with pytest.raises(CorruptArchive):
            check(small)
    small.write_bytes(b"\0" + data)
    with pytest.raises(CorruptArchive):
        check(small)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), keep=st.integers(0, 2000))
def test_garbage_is_refused_not_crashed_on(tmp_path_factory, data, keep):
    path = tmp_path_factory.mktemp("garbage") / "a.ckz"
    good = archive_bytes()
    path.write_bytes(data + good[len(good) - keep :])
    if path.read_bytes() != good:
        with pytest.raises(CorruptArchive):
            check(path)


def with_directory(members: list[Member], manifest: bytes, offset: int, path: Path) -> None:
    """A file of sparse entries with whatever directory is asked for."""
    directory = b"".join(central_header(member) for member in members)
    with path.open("wb") as file:
        for member in members:
            file.seek(member.offset)
            file.write(local_header(member))
        file.write(manifest)
        file.seek(offset)
        file.write(directory + end_records(End(len(members), len(directory), offset)))


@pytest.mark.parametrize("nbytes", [100, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**40, 2**62])
def test_lying_sizes_are_refused_before_anything_is_allocated(tmp_path, nbytes):
    path = tmp_path / "lying.ckz"
    first = Member("weights/0", nbytes, 0, 0)
    with_directory([first, Member("manifest.json", 2, 0, 60)], b"{}", 110, path)
    with pytest.raises(CorruptArchive):
        check(path)


def test_an_enormous_manifest_or_directory_is_refused(tmp_path):
    path = tmp_path / "sparse.ckz"
    with_directory([Member("manifest.json", 2**36, 0, 0)], b"", Member("manifest.json", 2**36, 0, 0).end, path)
    with pytest.raises(CorruptArchive, match=r"manifest.json of \d+ bytes exceeds"):
        check(path)
    with path.open("wb") as file:
        file.seek(2**36)
        file.write(end_records(End(1, 2**36, 0)))
    with pytest.raises(CorruptArchive, match="central directory of"):
        check(path)


@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"format":' + b"9" * 10_000 + b"}", b"\xff", b"", b"null", b"{}"])
def test_a_hostile_manifest_is_refused(tmp_path, text):
    with pytest.raises(CorruptArchive, match=r"manifest\.json"):
        check(with_manifest(tmp_path, text))


def test_an_archive_of_a_later_ckzd_is_not_called_damaged(tmp_path):
    """Whoever reads that it is would throw a good archive away."""
    later = f'"format":{FORMAT_VERSION + 1}'.encode()
    text = made_manifest().to_json().replace(f'"format":{FORMAT_VERSION}'.encode(), later)
    with pytest.raises(CorruptArchive, match="is newer than") as caught:
        check(with_manifest(tmp_path, text))
    assert caught.value.hint == "update ckzd on this machine"


def with_manifest(folder, text):
    """An archive of nothing but this manifest."""
    file = io.BytesIO()
    writer = ArchiveWriter(file)
    writer._write_member("manifest.json", text)
    directory = b"".join(central_header(member) for member in writer._members)
    path = folder / "made.ckz"
    path.write_bytes(file.getvalue() + directory + end_records(End(1, len(directory), writer.nbytes)))
    return path


def test_zip64_sizes_and_offsets(tmp_path):
    """An entry of 5 GiB (a hole), and entries behind it. Its content is not read here."""
    big = Member("weights/0", 5 * 2**30, 0, 0)
    small = io.BytesIO()
    writer = ArchiveWriter(small)
    writer._members.append(big)  # as if it had been written
    writer._entries.append(module.EntryModel(name="weights/0", nbytes=big.nbytes, sha256="0" * 64))
    writer.add("index", b"behind 4 GiB")
    writer.finish(made_manifest())
    path = tmp_path / "big.ckz"
    with path.open("wb") as file:
        file.write(local_header(big))
        file.seek(big.end)
        file.write(small.getvalue())
    with ArchiveReader(path) as archive:
        assert archive.read("index") == b"behind 4 GiB"
        assert archive.manifest.entries[0].nbytes == 5 * 2**30
    with zipfile.ZipFile(path) as foreign:
        assert foreign.getinfo("weights/0").file_size == 5 * 2**30
        assert foreign.read("index") == b"behind 4 GiB"


def test_more_than_65535_entries():
    members, offset = [], 0
    for number in range(70_000):
        members.append(Member(f"weights/{number}", 1, 7, offset))
        offset = members[-1].end
    directory = b"".join(central_header(member) for member in members)
    end = End(len(members), len(directory), offset)
    records = end_records(end)
    assert parse_end(records, offset + len(directory) + len(records)) == end
    assert parse_directory(directory, end) == members


def test_a_stream_outside_its_entry_is_refused(small):
    with ArchiveReader(small) as archive:
        for ref in [("weights/0", 0, 12), ("weights/0", -1, 2), ("weights/0", 12, 1), ("weights/0", 3, -1)]:
            with pytest.raises(CorruptArchive, match="weights/0"):
                archive.stream(StreamRef(*ref))
        for missing in ("weights/7", "manifest.json", "../../etc/passwd"):
            with pytest.raises(CorruptArchive, match="no entry"):
                archive.read(missing)


@pytest.mark.parametrize("name", ["Weights", "weights/", "weights/x", "../x", "a b", "/etc/passwd"])
def test_entry_names_that_no_writer_gives_are_refused(tmp_path, name):
    path = tmp_path / "names.ckz"
    with path.open("wb") as file:
        writer = ArchiveWriter(file)
        writer._write_entry(name, b"data")
        writer.finish(made_manifest())
    with pytest.raises(CorruptArchive, match="entry names"):
        check(path)


def test_the_manifest_must_be_last(tmp_path):
    path = tmp_path / "order.ckz"
    with path.open("wb") as file:
        writer = ArchiveWriter(file)
        writer._write_member("manifest.json", made_manifest().to_json())
        writer._write_member("index", b"behind the manifest")
        directory = b"".join(central_header(member) for member in writer._members)
        file.write(directory + end_records(End(2, len(directory), writer.nbytes)))
    with pytest.raises(CorruptArchive, match="last entry"):
        check(path)


def test_a_link_or_a_directory_is_no_archive(small, tmp_path):
    link = tmp_path / "link.ckz"
    link.symlink_to(small)
    with pytest.raises(OSError, match="symbolic links"):
        ArchiveReader(link)
    with pytest.raises(CorruptArchive, match="regular file"):
        ArchiveReader(tmp_path)


def test_a_writer_refuses_a_second_entry_of_one_name():
    writer = ArchiveWriter(io.BytesIO())
    writer.add("index", b"")
    with pytest.raises(AssertionError, match="index"):
        writer.add("index", b"")
    with pytest.raises(AssertionError, match="kind"):
        writer.put("../x", b"")


def test_container_and_manifest_are_less_than_a_hundredth(tmp_path):
    """A delta of a 5 M-parameter model: 600 KB, of which three weight streams are large."""
    payload = [("weights", 70_000)] * 3 + [("weights", 3000)] * 60 + [("second_moment", 900)] * 60
    payload += [("first_moment", 1200)] * 60 + [("state", 40)] * 60
    file = io.BytesIO()
    writer = ArchiveWriter(file)
    for kind, nbytes in payload:
        writer.put(kind, bytes(nbytes))
    rest = 600_000 - sum(nbytes for _, nbytes in payload)
    for entry, nbytes in (("index", 3000), ("skeleton", 1000), ("lstm", rest - 4000)):
        writer.add(entry, bytes(nbytes))
    parts = dict.fromkeys(["weights", "first_moment", "second_moment", "state", "scales", "lstm", "index"], 50_000)
    coders = {"lstm": 40, "tables": 120, "order0": 60, "raw": 20}
    quality = {"kl_promise": 1e-3, "weighted_error": 0.123456789012345, "worst_tensor": 0.987654321098765}
    tools = {"ckzd": "0.1.0", "torch": "2.13.0", "numpy": "2.3.0", "constriction": "0.5.0"}
    writer.finish(made_manifest(parts=parts, coders=coders, quality=quality, tools=tools, reference="0" * 64, depth=7))
    assert (len(file.getvalue()) - 600_000) / 600_000 < 0.01
