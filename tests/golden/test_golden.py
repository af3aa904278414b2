"""The archives of every format version decode to the same bytes for ever."""

import hashlib
import json
from pathlib import Path

import pytest
from plain_range_decoder import PlainRangeDecoder

import ckzd
from ckzd.archive import ArchiveReader
from ckzd.codec import planes
from ckzd.operations.restore import restore

GOLDENS = sorted(Path(__file__).parent.glob("format_*/*/*.ckz"))


def expected_of(archive: Path) -> dict[str, object]:
    said = json.loads((archive.parent.parent / "expected.json").read_text())
    return said[f"{archive.parent.name}/{archive.name}"]


def restored_digest(archive: Path, target: Path) -> str:
    restore(archive, output=target)
    with ArchiveReader(archive) as reader:
        (file,) = reader.manifest.files
    row = f"{file.name}\0{file.size}\0{hashlib.sha256(target.read_bytes()).hexdigest()}\n"
    return hashlib.sha256(row.encode()).hexdigest()


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


@pytest.mark.parametrize("preset", ["resume", "paper"])
def test_golden_is_read_by_a_plain_range_decoder(preset, tmp_path, monkeypatch):
    """The words mean what FORMAT.md says, not what one wheel makes of them."""
    monkeypatch.setattr(planes, "SymbolDecoder", PlainRangeDecoder)
    archive = next(path for path in GOLDENS if path.parent.name == preset and path.name.startswith("step_60"))
    assert restored_digest(archive, tmp_path / "restored.pt") == expected_of(archive)["restored"]
