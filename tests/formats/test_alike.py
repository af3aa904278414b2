"""Files of torch.save with one tensor: their fingerprint is known, and those that are alike are parsed once."""

import io
import zipfile
from functools import partial
from unittest import mock

import torch
from codec.chains import decode, encode
from formats.helpers import assert_lossless, saved, zip_is_intact

from ckzd.errors import BadCheckpoint
from ckzd.fingerprints import DIGITS, digits
from ckzd.formats import alike, read_checkpoint, torch_zip
from ckzd.formats.alike import Alike
from ckzd.formats.source import FileSource


def view_of(path, data):
    path.write_bytes(data)
    return FileSource([path]).view(0)


def bytes_of(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def fingerprint_in(data):
    archive = zipfile.ZipFile(io.BytesIO(data))
    return archive.read(next(name for name in archive.namelist() if name.endswith(torch_zip.ID)))


def test_a_files_fingerprint_is_made_of_its_checksums(tmp_path):
    (hole,) = read_checkpoint(saved(tmp_path / "a.pt", torch.randn(200))).files[0].holes
    data, made = (tmp_path / "a.pt").read_bytes(), hole.fingerprint
    crc = int.from_bytes(data[hole.crc_offsets[0] :][:4], "little")
    assert data[made.offset :][:DIGITS] == digits((*made.before, crc, *made.after))


def test_a_restored_file_is_what_torch_would_have_written(tmp_path):
    """Its checksums and its fingerprint are those of the restored numbers."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(64, 64, generator=draw)]
    weights.append(weights[0] + 1e-3 * torch.randn(64, 64, generator=draw))
    paths = [saved(tmp_path / f"step_{n}.pt", weight) for n, weight in enumerate(weights)]
    base = encode(paths[0])
    (data,) = decode(encode(paths[1], base), base)
    restored = torch.load(io.BytesIO(data))
    assert not torch.equal(restored, weights[1])
    assert zip_is_intact(data)
    again = io.BytesIO()
    torch.save(restored, again)
    assert fingerprint_in(data)[DIGITS:] == fingerprint_in(again.getvalue())[DIGITS:]


def test_another_fingerprint_is_kept_as_it_is(tmp_path):
    path = saved(tmp_path / "a.pt", torch.randn(200))
    data = path.read_bytes()
    other = bytes(DIGITS * 2).replace(b"\0", b"7")
    path.write_bytes(data.replace(fingerprint_in(data), other))
    checkpoint = read_checkpoint(path)
    assert checkpoint.files[0].holes[0].fingerprint is None
    assert_lossless(checkpoint, path)
    (restored,) = decode(encode(path, preset="lossless"))
    assert restored == path.read_bytes()


def test_files_that_differ_in_numbers_alone_are_parsed_once(tmp_path):
    parser = Alike()
    with mock.patch.object(alike.torch_zip, "parse", wraps=torch_zip.parse) as parse:
        for number in range(5):
            for shape in ((40, 8), (8, 40), (3,)):
                view = view_of(tmp_path / f"{number}", bytes_of(torch.randn(shape)))
                assert parser.parse(view) == torch_zip.parse(view, least=1)
    ours = [call for call in parse.call_args_list if call.kwargs == {"least": 1}]
    assert len(ours) - 15 == 3, "of each shape the first; the others are those of this test"


def test_a_file_that_is_not_alike_is_parsed_itself(tmp_path):
    """Whatever byte beside its tensor is another one: what is said of it is what is said without the others."""
    parser, data = Alike(), bytearray(bytes_of(torch.randn(3)))
    parser.parse(view_of(tmp_path / "a", bytes(data)))
    (hole,) = torch_zip.parse(view_of(tmp_path / "a", bytes(data)), least=1).holes
    for place in range(0, len(data), 7):
        if hole.offset <= place < hole.offset + hole.nbytes:
            continue
        wrong = view_of(tmp_path / "b", bytes([*data[:place], data[place] ^ 1, *data[place + 1 :]]))
        assert said_of(parser.parse, wrong) == said_of(partial(torch_zip.parse, least=1), wrong)


def said_of(parse, view):
    """What it parses to, or what is wrong with it."""
    try:
        return parse(view)
    except BadCheckpoint as error:
        return error.problem


def test_a_like_file_with_another_fingerprint_keeps_it(tmp_path):
    parser = Alike()
    first, second = bytes_of(torch.ones(80)), bytes_of(torch.zeros(80))
    assert parser.parse(view_of(tmp_path / "a", first)).holes[0].fingerprint is not None
    odd = second.replace(fingerprint_in(second), fingerprint_in(first))
    crc = zipfile.ZipFile(io.BytesIO(second)).getinfo("archive/.data/serialization_id").CRC
    right = zipfile.ZipFile(io.BytesIO(first)).getinfo("archive/.data/serialization_id").CRC
    odd = odd.replace(crc.to_bytes(4, "little"), right.to_bytes(4, "little"))
    parsed = parser.parse(view_of(tmp_path / "b", odd))
    assert parsed.holes[0].fingerprint is None
    assert parsed == torch_zip.parse(view_of(tmp_path / "b", odd), least=1)
