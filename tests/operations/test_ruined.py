"""A run that diverges, saves NaN, is rolled back and goes on in the same directory."""

import hashlib
from pathlib import Path

import pytest
import torch
from codec.diverged import DIVERGED, STEPS, diverged, saved, sound
from operations.test_damage import rot
from plain_decoder import PlainArchive

import ckzd
from ckzd.chains import read_manifest
from ckzd.operations.compress import CompressReport

FIRST, SECOND, LAST = STEPS


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


def compressed(run: Path, *states: dict, preset: str = "resume") -> list[CompressReport]:
    return [ckzd.compress(saved(state, run), preset=preset) for state in states]


def reference_of(report: CompressReport) -> Path | None:
    return None if report.reference is None else Path(report.reference)


def cached(report: CompressReport) -> list[Path]:
    return list((Path(report.archive).parents[2] / "cache").iterdir())


@pytest.mark.parametrize("preset", ["resume", "lossless"])
def test_a_ruined_archive_costs_nothing_and_is_passed_over(run, preset, tmp_path):
    states = [sound(FIRST), sound(SECOND), diverged("all nan"), sound(LAST)]
    reports = compressed(run, *states, preset=preset)
    base, before, ruined, after = reports
    assert [report.ruined for report in reports] == [False, False, True, False]
    assert reference_of(ruined) == reference_of(after) == Path(before.archive)
    assert ruined.archive_bytes < base.archive_bytes / 5
    assert after.archive_bytes < (base.archive_bytes if preset == "lossless" else base.archive_bytes / 2)
    for reconstruction in cached(base):
        reconstruction.unlink()
    for report in reports:
        ckzd.verify(report.archive)
        ckzd.restore(report.archive, output=tmp_path / Path(report.checkpoint).name)
    assert all(tensor.isnan().all() for tensor in torch.load(tmp_path / f"step_{DIVERGED}.pt")["model"].values())
    assert all(tensor.isfinite().all() for tensor in torch.load(tmp_path / f"step_{LAST}.pt")["model"].values())


def test_what_the_next_checkpoint_needs_stays_in_the_cache(run):
    """It is the sound one, however many ruined ones came after it; and their own are of no use."""
    before, *ruined = compressed(run, sound(FIRST), diverged("all nan"), diverged("half nan") | {"step": DIVERGED + 10})
    assert [reference_of(report) for report in ruined] == [Path(before.archive)] * 2
    own = [read_manifest(Path(report.archive)).reconstruction for report in (before, *ruined)]
    assert [path.stem for path in cached(before) if path.stem in own] == own[:1]  # other runs may share the store


def test_archives_around_a_ruined_one_are_made_again_as_they_were(run):
    reports = compressed(run, sound(FIRST), sound(SECOND), diverged("all nan"), sound(LAST))
    for report in reports[1:]:
        archive = Path(report.archive)
        data = archive.read_bytes()
        rot(archive)
        ckzd.compress(report.checkpoint)
        assert archive.read_bytes() == data


def test_where_one_layer_is_damaged_the_others_are_deltas_against_it(run):
    _, _, damaged, after = compressed(run, sound(FIRST), sound(SECOND), diverged("last layer nan"), sound(LAST))
    assert reference_of(after) == Path(damaged.archive)
    quality = read_manifest(Path(damaged.archive)).quality
    assert 0 < quality["ruined"] < 0.5


def test_sound_archives_say_nothing_of_ruin(run):
    """Nor does one that was never anything else, as a mask of infinities, or a run that begins with NaN."""
    masked = sound(FIRST) | {"mask": torch.full((64, 64), -torch.inf)}
    reports = compressed(run, masked, sound(SECOND) | {"mask": masked["mask"]})
    reports += compressed(run / "other", diverged("all nan"), sound(LAST))
    assert all("ruined" not in read_manifest(Path(report.archive)).quality for report in reports)


def test_a_run_that_is_resumed_from_an_older_step_goes_on_from_there(run):
    """Steps that are written again are deltas against each other, not against what they replace."""
    base, first, old = compressed(run, sound(FIRST), sound(SECOND), sound(LAST))
    between = sound(SECOND) | {"step": SECOND + 50}
    for tensor in between["model"].values():
        tensor.mul_(1.01)
    again = sound(LAST)
    for tensor in again["model"].values():
        tensor.mul_(1.02)
    resumed, following = compressed(run, between, again)
    assert reference_of(resumed) == Path(first.archive)
    assert reference_of(following) == Path(resumed.archive) != Path(old.archive)
    assert max(resumed.archive_bytes, following.archive_bytes) < base.archive_bytes


def test_a_decoder_written_from_the_format_page_reads_them(run):
    """A weight with its reference's scales, moments of an exact weight, and a weight without what the reference has."""
    damaged = diverged("moments nan"), diverged("one infinity") | {"step": DIVERGED + 10}
    before = None
    for report in compressed(run, sound(SECOND), *damaged, sound(LAST)):
        archive = PlainArchive(Path(report.archive), before)
        before = archive.own
        assert hashlib.sha256(before.to_bytes()).hexdigest() == archive.manifest["reconstruction"]
        (data,) = archive.files().values()
        assert hashlib.sha256(data).hexdigest() == archive.manifest["files"][0]["sha256"]
