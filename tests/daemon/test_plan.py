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
