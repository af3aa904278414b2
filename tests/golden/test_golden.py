"""The archives of every format version decode to the same bytes for ever."""

import hashlib
import json
from pathlib import Path

import pytest
from plain_decoder import PlainArchive

import ckzd
from ckzd.archive import ArchiveReader
from ckzd.archive.manifest import files_digest
from ckzd.operations.restore import restore

GOLDENS = sorted(Path(__file__).parent.glob("format_*/*/*.ckz"))


def expected_of(archive: Path) -> dict[str, object]:
    said = json.loads((archive.parent.parent / "expected.json").read_text())
    return said[f"{archive.parent.name}/{archive.name}"]


def restored_digest(archive: Path, target: Path) -> str:
    restore(archive, output=target)
    with ArchiveReader(archive) as reader:
        manifest = reader.manifest
    paths = [target / file.name if manifest.kind == "directory" else target for file in manifest.files]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return files_digest((file.name, file.size, digest) for file, digest in zip(manifest.files, hashes, strict=True))


def test_there_are_goldens():
    """Format 1 has a chain of three archives for each of two presets, and they use every model."""
    coders = {name for archive in GOLDENS for name in expected_of(archive)["coders"]}
    assert len([path for path in GOLDENS if "format_1" in path.parts]) == 6
    assert {"tables", "lstm", "exact", "same", "copy", "delta", "fill"} <= coders


@pytest.mark.parametrize("archive", GOLDENS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_golden_restores_to_the_same_bytes(archive, tmp_path):
    """A folder of copied archives is enough, and every file has the sha256 of the day it was written."""
    assert restored_digest(archive, tmp_path / "restored.pt") == expected_of(archive)["restored"]
    assert ckzd.verify(archive).ok


@pytest.mark.parametrize("folder", sorted({path.parent for path in GOLDENS}), ids=lambda p: f"{p.parent.name}-{p.name}")
def test_golden_is_read_by_a_plain_decoder(folder):
    """The bytes mean what FORMAT.md says, not what one version of ckzd or one wheel makes of them."""
    reference, chain = None, [path for path in GOLDENS if path.parent == folder]
    for path in chain:
        archive = PlainArchive(path, reference)
        reference = archive.own
        assert hashlib.sha256(reference.to_bytes()).hexdigest() == archive.manifest["reconstruction"]
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in archive.files().items()}
    assert hashes == {file["name"]: file["sha256"] for file in archive.manifest["files"]}
    assert expected_of(chain[-1])["restored"] == archive.manifest["restored"]
