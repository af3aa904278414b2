"""The order of the work, and who is spared."""

from pathlib import Path

import pytest

from ckzd.daemon import plan
from ckzd.daemon.identity import Identity
from ckzd.daemon.states import Row, State

RUN = Path("/run")


def row(name: str, state: State = State.SETTLED, *, step: int | None = None, mtime: int = 0, **changes) -> Row:
    fields = {
        "number": hash(name) % 1000, "run": RUN, "path": RUN / name, "identity": Identity(1, 10, mtime), "state": state,
        "step": step, "attempts": 0,
        "crashes": 0, "not_before": 0.0, "error": "", "in_place_of_replaced": False, "archive": None,
        "reference": None, "original_bytes": 10, "archive_bytes": 0, "reclaimed_bytes": 0, "seconds": 0.0,
        "first_seen": 0.0, "changed": 0.0,
    }  # fmt: skip
    return Row(**(fields | changes))


def order(*names: str) -> dict[Path, int]:
    return {RUN / name: place for place, name in enumerate(names)}


def names(rows) -> list[str]:
    return [found.path.name for found in rows]


def test_the_step_inside_wins_over_the_name():
    rows = [row("a", step=30), row("b", step=10), row("c", step=20)]

    assert names(plan.in_order(rows, order("a", "b", "c"))) == ["b", "c", "a"]


def test_without_a_step_the_listing_s_order_holds_and_what_has_one_comes_first():
    rows = [row("x10"), row("x9"), row("a", step=5)]

    assert names(plan.in_order(rows, order("x9", "x10", "a"))) == ["a", "x9", "x10"]


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([row("a", step=2), row("b", step=1)], "b"),
        ([row("a", State.FAILED, step=1, not_before=9.0), row("b", step=2)], "b"),
        ([row("a", State.FAILED, step=1, not_before=4.0), row("b", step=2)], "a"),
        ([row("a", State.SEEN), row("b", State.VERIFIED), row("c", State.QUARANTINED)], None),
        ([row("gone")], None),
    ],
)
def test_the_first_in_order_whose_time_has_come_is_next(rows, chosen):
    found = plan.next_to_compress(rows, order("a", "b", "c"), now=5.0)

    assert (found.path.name if found else None) == chosen


def test_the_newest_are_kept_by_order_and_by_time():
    rows = [row("a1", step=1, mtime=50), row("a2", step=2, mtime=10), row("a3", step=3, mtime=20)]

    assert plan.newest(rows, order("a1", "a2", "a3"), 1) == {RUN / "a1", RUN / "a3"}
    assert plan.newest(rows, order("a1", "a2", "a3"), 0) == set()
    assert plan.newest(rows, order("a1", "a2", "a3"), 9) == {RUN / "a1", RUN / "a2", RUN / "a3"}


def test_the_files_of_a_step_count_once_and_so_do_all_that_name_no_step():
    rows = [row("G_1"), row("D_1"), row("G_2"), row("D_2"), row("net", step=5), row("optim")]
    places = order("G_1", "D_1", "G_2", "D_2", "net", "optim")

    assert plan.newest(rows, places, 1) == {RUN / "net", RUN / "optim"}
    assert plan.newest(rows, places, 2) == {RUN / "net", RUN / "optim", RUN / "G_2", RUN / "D_2"}
    assert [names(members) for members in plan.units(rows, places)] == [
        ["net", "optim"],
        ["G_1", "D_1"],
        ["G_2", "D_2"],
    ]


def test_what_is_not_whole_does_not_count_as_newest():
    rows = [row("a", State.VERIFIED, step=1), row("b", State.SEEN, step=2), row("c", State.REPLACED, step=3)]

    assert plan.newest(rows, order("a", "b"), 1) == {RUN / "a"}


def test_only_more_than_the_lag_is_left_raw_and_the_oldest_first():
    rows = [row(name, step=step) for step, name in enumerate("abcd")]

    assert names(plan.to_skip(rows, order(*"abcd"), 2)) == ["a", "b"]
    assert plan.to_skip(rows, order(*"abcd"), 4) == []


def test_a_skipped_one_is_taken_back_when_nothing_waits():
    skipped = [row("a", State.SKIPPED, step=2), row("b", State.SKIPPED, step=1)]

    assert plan.to_take_back(skipped, order("a", "b")).path.name == "b"
    assert plan.to_take_back([*skipped, row("c")], order("a", "b", "c")) is None
    assert plan.to_take_back([], {}) is None


def test_a_restored_one_stays_for_a_day():
    restored = row("a", State.RESTORED, changed=100.0)

    assert plan.may_be_replaced(restored, 100.0 + 3600) is not None
    assert plan.may_be_replaced(restored, 100.0 + 25 * 3600) is None


def test_a_refused_replacement_waits_and_says_why():
    refused = row("a", State.VERIFIED, error="has 2 names", not_before=50.0)

    assert plan.may_be_replaced(refused, 49.0) == "has 2 names"
    assert plan.may_be_replaced(refused, 51.0) is None


TOGETHER = [row(f"{name}_1.pt", State.REPLACED, archive=Path("/a1"), first_seen=1.0) for name in ("model", "optim")]


def held(*rows: Row, now: float = 30.0, patience: float = 20.0, once: bool = False) -> dict[str, str]:
    there = order(*(found.path.name for found in rows if found.state is not State.REPLACED))
    found = plan.waits_for_others(rows, there, now, patience, once=once)
    return {path.name: why for path, why in found.items()}


def test_files_of_a_step_wait_for_one_that_is_still_being_written():
    unfinished = row("optim_2.pt", State.SEEN, mtime=25 * 10**9, first_seen=25.0)
    model = row("model_2.pt", first_seen=20.0)
    assert held(model, unfinished) == {"model_2.pt": "waits for optim_2.pt of its step"}
    assert held(model, unfinished, once=True) != {}
    assert held(model, unfinished, now=50.0) == {}, "nobody waits for ever for what a writer left that died"
    assert held(row("model_3.pt"), unfinished) == {}
    assert held(row("model.pt"), row("optim.pt", State.SEEN, first_seen=25.0)) == {}, "they name no step"


def test_files_wait_for_those_that_the_step_before_had():
    model = row("model_2.pt", first_seen=20.0)
    assert held(*TOGETHER, model) == {"model_2.pt": "waits for optim_#.pt, as the step before had"}
    assert held(*TOGETHER, model, row("optim_2.pt", first_seen=21.0)) == {}
    assert held(*TOGETHER, model, now=50.0) == {}, "not for ever"
    assert held(*TOGETHER, model, once=True) == {}
    assert held(*TOGETHER, model, row("model_3.pt", first_seen=29.0)) == {
        "model_3.pt": "waits for optim_#.pt, as the step before had"
    }, "a later step has begun: nothing comes of this one any more"
    assert held(*TOGETHER, row("G_2.pt", first_seen=20.0)) == {}, "of another kind"
    apart = [row("G_1.pt", State.VERIFIED, archive=Path("/g")), row("D_1.pt", State.VERIFIED, archive=Path("/d"))]
    assert held(*apart, row("G_2.pt", first_seen=20.0)) == {}, "they have archives of their own"


def test_the_files_of_a_step_wait_as_one():
    rows = [row(f"{name}_{step}.pt") for step in (1, 2) for name in ("model", "ema", "optim")]
    rows += [row("best.pt"), row("last.pt"), row("model_3.pt", State.VERIFIED)]
    assert plan.steps_that_wait(rows, order(*names(rows))) == 4


def test_an_archive_of_several_files_gains_what_they_take_together():
    files = [
        row(name, State.VERIFIED, archive=Path("/a"), original_bytes=100, archive_bytes=99)
        for name in ("model_1.pt", "optim_1.pt")
    ]
    assert plan.gain_too_little(files, order("model_1.pt", "optim_1.pt")) == {}
