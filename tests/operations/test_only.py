"""One rank's files of a directory: decoded alone, checked, and never taken for the whole checkpoint."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from dcp_directories import Writer, state_of, trained

import ckzd
from ckzd import cli
from ckzd.codec.decode import Decoder
from ckzd.errors import ConfigError, CorruptArchive
from ckzd.formats import is_replaced, look_into

RANKS = 4
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # torch's, without ranks


@pytest.fixture(scope="module")
def archived(tmp_path_factory):
    """Of a preset: three checkpoints of four ranks, replaced, with an average and a rounded copy of each weight.

    All ranks have some of these; each has a tensor that the others have nothing of.
    """

    @cache
    def made(preset: str) -> Path:
        place = tmp_path_factory.mktemp(preset)
        for step in (1, 2, 3):
            model, optimizer = trained()
            state = state_of(model, optimizer)
            for name, value in model.state_dict().items():
                value.mul_(1 + step / 100)
                state |= {f"ema.{name}": value * 0.99, f"half.{name}": value.bfloat16()}
            writer = Writer(place / "run" / f"step-{step}", RANKS)
            for name, value in state.items():
                writer.put(name, value)
            for rank in range(RANKS):
                own = torch.randn(64, 48, generator=torch.Generator().manual_seed(rank)) * (1 + step / 100)
                writer.put_chunk(f"own.{rank}", rank, (0, 0), own, own.shape)
            ckzd.compress(writer.finish(), preset=preset, replace=True)
        return place

    return made


@pytest.fixture
def run(archived, tmp_path):
    """A copy of what was replaced under `resume`; a run and its store may move together."""
    shutil.copytree(archived("resume"), tmp_path / "all")
    return tmp_path / "all" / "run"


def forget_cache(run: Path) -> None:
    for cached in (run.parent / ".ckzd" / "cache").iterdir():
        cached.unlink()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "ckzd.json"}


@pytest.mark.parametrize(
    ("preset", "is_cached"), [("resume", True), ("resume", False), ("lossless", False), ("paper", False)]
)
def test_a_rank_s_files_are_those_of_the_whole(archived, tmp_path, preset, is_cached):
    shutil.copytree(archived(preset), tmp_path / "all")
    run = tmp_path / "all" / "run"
    if not is_cached:
        forget_cache(run)
    report = ckzd.restore(run / "step-3", output=tmp_path / "part", only="__2_*.distcp")
    ckzd.restore(run / "step-3", output=tmp_path / "whole")
    whole = content(tmp_path / "whole")
    assert content(tmp_path / "part") == {"__2_0.distcp": whole["__2_0.distcp"]}
    assert (report.files, report.restored_bytes) == (1, len(whole["__2_0.distcp"]))
    found, expected = ((tmp_path / place / "__2_0.distcp").stat() for place in ("part", "whole"))
    assert (found.st_mtime_ns, found.st_mode) == (expected.st_mtime_ns, expected.st_mode)


def test_several_patterns_and_small_files_too(run, tmp_path):
    ckzd.restore(run / "step-2", output=tmp_path / "part", only=["__[01]_*", ".metadata"])
    assert content(tmp_path / "part").keys() == {"__0_0.distcp", "__1_0.distcp", ".metadata"}


def test_a_part_is_no_checkpoint_until_the_rest_is_back(run, tmp_path):
    part = run / "part-3"
    ckzd.restore(run / "step-3", output=part, only=["__0_*", ".metadata"])
    assert is_replaced(part)
    assert part not in look_into(run).checkpoints
    assert ckzd.ensure_restored(part) == part
    ckzd.restore(run / "step-3", output=tmp_path / "whole")
    assert content(part) == content(tmp_path / "whole")
    assert not (part / "ckzd.json").exists()
    assert (run / "step-3" / "ckzd.json").exists()


def test_only_what_the_files_need_is_decoded(run, tmp_path, monkeypatch):
    """Of each link of the chain: what one rank's files have nothing of is left out."""
    forget_cache(run)
    decoded = []
    real = Decoder._coding
    monkeypatch.setattr(Decoder, "_coding", lambda self, number: decoded.append(number) or real(self, number))
    ckzd.restore(run / "step-3", output=tmp_path / "whole")
    of_all, decoded[:] = len(decoded), []
    ckzd.restore(run / "step-3", output=tmp_path / "part", only="__1_*")
    assert 0 < len(decoded) <= of_all - 3 * (RANKS - 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": "__9_*"}, r"'__9_\*'.*matches no file of step-3 \(hint: it holds .metadata, __0_0.distcp, __1_0"),
        ({"only": ["__1_*", "x"]}, r"'x'.*matches no file"),
        ({"only": "__1_*", "output": None}, "must not stand where all of it is looked for"),
        ({"only": "__1_*", "weights_only": True}, "leave --weights-only out"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_writes_nothing(run, tmp_path, options, said):
    before = sorted(path.name for path in (run / "step-3").iterdir())
    with pytest.raises(ConfigError, match=said):
        ckzd.restore(run / "step-3", **{"output": tmp_path / "part", **options})
    assert not (tmp_path / "part").exists()
    assert sorted(path.name for path in (run / "step-3").iterdir()) == before
    assert list((run.parent / ".ckzd" / "tmp").iterdir()) == []


def test_a_file_has_no_parts(tmp_path):
    file = tmp_path / "run" / "step_1.pt"
    file.parent.mkdir()
    torch.save({"weight": torch.zeros(64, 64)}, file)
    archive = ckzd.compress(file, preset="lossless").archive
    with pytest.raises(ConfigError, match="among the files of a directory"):
        ckzd.restore(archive, output=tmp_path / "out", only="*")


def test_damage_to_what_a_part_needs_is_said(run, tmp_path):
    forget_cache(run)
    (archive,) = (run.parent / ".ckzd" / "archives").glob("*/step-1.*")
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(CorruptArchive):
        ckzd.restore(run / "step-3", output=tmp_path / "part", only="__*")
    assert not (tmp_path / "part").exists()


def test_the_command_line_takes_several(run, tmp_path, capsys):
    part = tmp_path / "part"
    assert cli.run(["restore", str(run / "step-3"), "-o", str(part), "--only", "__0_*", "--only", "__3_*"]) == 0
    assert content(part).keys() == {"__0_0.distcp", "__3_0.distcp"}
    assert "2 file(s)" in capsys.readouterr().out
