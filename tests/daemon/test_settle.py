"""A checkpoint is taken only when it is complete, parses whole and has been left alone for the settle time."""

import os
from pathlib import Path

import pytest

from ckzd.daemon.settle import Settled, Settler, Unsettled
from ckzd.errors import BadCheckpoint, SourceChanged


class FakeRule:
    """Says what it is told; `while_reading` runs while a checkpoint is parsed."""

    def __init__(self) -> None:
        self.missing: str | None = None
        self.error: Exception | None = None
        self.parsed = 0
        self.while_reading = lambda: None

    def completeness(self, checkpoint: Path) -> str | None:
        return self.missing

    def parse(self, checkpoint: Path) -> int | None:
        self.parsed += 1
        self.while_reading()
        if self.error:
            raise self.error
        return 100

    def best_models(self, checkpoint: Path) -> list[str]:
        raise NotImplementedError


@pytest.fixture
def rule() -> FakeRule:
    return FakeRule()


@pytest.fixture
def settler(clock, rule) -> Settler:
    return Settler(clock, rule)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "step_100.pt"
    path.write_bytes(b"first")
    return path


def settle(settler, clock, checkpoint, seconds=30.0):
    settler.look(checkpoint, seconds)
    clock.sleep(seconds)
    return settler.look(checkpoint, seconds)


def test_two_looks_the_settle_time_apart_are_needed(settler, clock, checkpoint):
    first = settler.look(checkpoint, 30.0)
    clock.sleep(29.0)
    second = settler.look(checkpoint, 30.0)
    clock.sleep(1.0)
    third = settler.look(checkpoint, 30.0)

    assert first == Unsettled("has just appeared or changed", 30.0)
    assert second == Unsettled("unchanged for 29 of 30 s", 1.0)
    assert isinstance(third, Settled)
    assert (third.step, third.fingerprint.nbytes) == (100, 5)


def test_one_look_is_not_enough_even_without_a_settle_time(settler, checkpoint):
    assert isinstance(settler.look(checkpoint, 0.0), Unsettled)
    assert isinstance(settler.look(checkpoint, 0.0), Settled)


@pytest.mark.parametrize("change", ["append", "rewrite in place", "replace by rename", "touch"])
def test_every_change_begins_the_wait_anew(settler, clock, checkpoint, change):
    settler.look(checkpoint, 30.0)
    clock.sleep(29.0)
    old = checkpoint.stat()
    if change == "append":
        checkpoint.write_bytes(b"first, then more")
    elif change == "rewrite in place":
        checkpoint.write_bytes(b"other")
    elif change == "replace by rename":
        other = checkpoint.with_name("tmp")
        other.write_bytes(b"first")
        os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
        other.rename(checkpoint)
    else:
        os.utime(checkpoint, ns=(0, old.st_mtime_ns + 1))
    clock.sleep(1.0)

    assert settler.look(checkpoint, 30.0) == Unsettled("has just appeared or changed", 30.0)
    clock.sleep(30.0)
    assert isinstance(settler.look(checkpoint, 30.0), Settled)


def test_a_file_added_to_a_directory_begins_the_wait_anew(settler, clock, tmp_path):
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x")
    settler.look(folder, 30.0)
    clock.sleep(30.0)
    (folder / "rng_state_1.pth").write_bytes(b"x")

    assert isinstance(settler.look(folder, 30.0), Unsettled)


def test_an_incomplete_one_waits_and_says_for_what(settler, clock, rule, checkpoint):
    rule.missing = "trainer_state.json missing"
    assert settle(settler, clock, checkpoint) == Unsettled("trainer_state.json missing", None)
    assert rule.parsed == 0

    rule.missing = None
    assert isinstance(settler.look(checkpoint, 30.0), Settled)


def test_what_does_not_parse_is_parsed_again_only_when_it_changed(settler, clock, rule, checkpoint):
    rule.error = BadCheckpoint(checkpoint, "no end of central directory")
    refused = settle(settler, clock, checkpoint)
    for _ in range(3):
        assert settler.look(checkpoint, 30.0) == refused
    assert rule.parsed == 1
    assert "no end of central directory" in refused.reason

    rule.error = None
    checkpoint.write_bytes(b"whole now")
    settler.look(checkpoint, 30.0)
    clock.sleep(30.0)
    assert isinstance(settler.look(checkpoint, 30.0), Settled)


def test_what_changed_while_it_was_parsed_is_looked_at_again(settler, clock, rule, checkpoint):
    rule.while_reading = lambda: checkpoint.write_bytes(b"rewritten meanwhile")

    assert settle(settler, clock, checkpoint) == Unsettled("changed while it was read", 0.0)


def test_a_source_that_changed_is_not_held_against_it(settler, clock, rule, checkpoint):
    rule.error = SourceChanged(checkpoint, "moved")
    assert isinstance(settle(settler, clock, checkpoint), Unsettled)
    rule.error = None

    assert isinstance(settler.look(checkpoint, 30.0), Settled)


def test_a_vanished_checkpoint_is_no_error(settler, checkpoint):
    settler.look(checkpoint, 30.0)
    checkpoint.unlink()

    assert settler.look(checkpoint, 30.0).reason.startswith("cannot be looked at")


def test_a_single_pass_goes_by_the_age_of_the_files(settler, clock, checkpoint):
    os.utime(checkpoint, (0, clock.time() - 29.0))
    assert settler.look_once(checkpoint, 30.0).reason == "written 29 s ago, settles after 30 s"
    os.utime(checkpoint, (0, clock.time() - 30.0))
    assert isinstance(settler.look_once(checkpoint, 30.0), Settled)


def test_a_file_from_the_future_is_not_old(settler, clock, checkpoint):
    os.utime(checkpoint, (0, clock.time() + 3600.0))

    assert isinstance(settler.look_once(checkpoint, 0.0), Unsettled)


def test_forgotten_checkpoints_begin_anew(settler, clock, checkpoint):
    settler.look(checkpoint, 30.0)
    settler.forget_all_but([])
    clock.sleep(30.0)

    assert isinstance(settler.look(checkpoint, 30.0), Unsettled)
