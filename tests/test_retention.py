"""Retention's laws: what stays can be restored, what goes was asked for, a quota never takes what is firm."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import made_manifest, sha256

from ckzd.chains import ArchiveRecord
from ckzd.retention import (
    DAY_SECONDS,
    LINEAGE,
    NO_RULES,
    Held,
    Rules,
    Shelf,
    every_nth,
    judge,
    newest_of,
)
from ckzd.series import next_references

NOW = 1000 * DAY_SECONDS


def record(number, reference=None, *, series="step", step=None, day=0, twin_of=None, ruined=0.0) -> ArchiveRecord:
    """In memory: a base, or a delta; with the reconstruction of another one, if it is its twin."""
    before = reference.manifest if reference else None
    step = number * 10 if step is None else step
    fields = {
        "name": f"{series}_{step}.pt",
        "step": step,
        "reconstruction": twin_of.manifest.reconstruction if twin_of else sha256(f"{number}".encode()),
        "reference": before.reconstruction if before else None,
        "depth": before.depth + 1 if before else 0,
        "quality": {"ruined": ruined},
    }
    made = made_manifest(**fields)
    files = [file.model_copy(update={"mtime_ns": int((day * DAY_SECONDS) * 1e9) + number}) for file in made.files]
    return ArchiveRecord(Path(f"/run/{number:04}.ckz"), made_manifest(files, **fields))


def held(record, **fields) -> Held:
    since = max(file.mtime_ns for file in record.manifest.files) / 1e9
    return Held(record, **{"nbytes": 10, "since": since, **fields})


def line(count, **fields) -> list[ArchiveRecord]:
    """A base and deltas, each against the one before, a day apart, the last one today."""
    records = []
    for number in range(count):
        day = 1000 - count + number
        records.append(record(number, records[-1] if records else None, day=day, **fields))
    return records


def bases(count, **fields) -> list[ArchiveRecord]:
    return [record(number, day=1000 - count + number, **fields) for number in range(count)]


def going(records, rules, **quota) -> list[int]:
    plan = judge([Shelf(rules, 1, tuple(map(held, records)))], now=NOW, **quota)
    return [int(verdict.held.path.stem) for verdict in plan.verdicts if verdict.goes]


class TestRules:
    def test_nothing_goes_unless_something_is_configured(self):
        assert going(bases(9), None) == going(bases(9), Rules()) == going(bases(9), Rules(every=3)) == []

    def test_the_newest_stay_and_the_others_go(self):
        assert going(bases(9), Rules(newest=3)) == [0, 1, 2, 3, 4, 5]

    def test_the_others_stay_until_an_age(self):
        assert going(bases(9), Rules(newest=3, days=5.5)) == [0, 1, 2, 3]
        assert going(bases(9), Rules(days=1)) == list(range(8))

    def test_every_nth_step_stays_for_ever(self):
        assert going(bases(9), Rules(newest=1, every=30)) == [1, 2, 4, 5, 7]

    def test_where_no_step_is_a_multiple_the_first_of_each_interval_stays(self):
        records = [record(number, step=391 * (number + 1), day=number) for number in range(6)]
        assert going(records, Rules(newest=1, every=1000)) == [1, 3, 4]  # 391 | 1173 | 2346 | the newest

    def test_a_job_that_is_set_back_takes_nothing_from_what_was_kept_for_ever(self):
        records = [record(number, step=step, day=number) for number, step in enumerate((391, 782, 200, 391, 60))]
        assert every_nth(records, 1000) == {records[0].path, records[2].path, records[4].path}

    def test_without_a_step_nothing_is_an_nth(self):
        made = [record(number, step=0, series=f"a{number}", day=number) for number in range(3)]
        none = [ArchiveRecord(r.path, r.manifest.model_copy(update={"step": None})) for r in made]
        assert every_nth(none, 10) == set()

    def test_each_series_has_its_own_newest(self):
        records = [record(2 * n, series="G", step=n, day=n) for n in range(4)]
        records += [record(2 * n + 1, series="D", step=n, day=n) for n in range(4)]
        assert going(records, Rules(newest=2)) == [0, 2, 1, 3]

    def test_newest_by_time_counts_too_where_a_job_was_set_back(self):
        records = [record(number, step=step, day=number) for number, step in enumerate((10, 20, 30, 40, 15))]
        in_order = sorted(records, key=lambda record: record.manifest.step)
        assert newest_of(in_order, 1) == {records[3].path, records[4].path}

    def test_ruined_ones_do_not_push_sound_ones_out(self):
        records = [*bases(5), *(record(n, day=n, ruined=1.0) for n in range(995, 1000))]
        assert going(records, Rules(newest=2)) == [0, 1, 2, 995, 996, 997]

    def test_every_archive_down_to_its_base_is_needed(self):
        records = line(9)
        plan = judge([Shelf(Rules(newest=1), 1, tuple(map(held, records)))], now=NOW)
        why = [verdict.why for verdict in plan.verdicts]
        assert why[-3:] == ["needed by step_70.pt", "needed by step_80.pt", LINEAGE]
        assert not any(verdict.goes for verdict in plan.verdicts)

    def test_a_branch_that_nothing_goes_on_from_goes_dependents_first(self):
        trunk = line(3)
        branch = [record(10, trunk[0], day=0)]
        branch += [record(11, branch[0], day=0), record(12, branch[0], day=0)]
        plan = judge([Shelf(Rules(newest=1), 1, tuple(map(held, (*branch, *trunk))))], now=NOW)
        assert [int(held.path.stem) for held in plan.going()] == [11, 12, 10]

    def test_of_twins_both_are_needed(self):
        base = record(0, day=0)
        twin = record(1, day=0, twin_of=base, series="other")
        assert going([base, twin, record(2, base, day=999)], Rules(newest=1, days=1)) == []

    def test_what_is_safe_stays_with_all_that_it_needs(self):
        records = [*line(4), *(record(n, day=n) for n in range(990, 1000))]
        told = tuple(held(r, safe="a marker file names it") if r is records[2] else held(r) for r in records)
        plan = judge([Shelf(Rules(newest=1), 1, told)], now=NOW)
        stays = {verdict.held.path.stem: verdict.why for verdict in plan.verdicts if not verdict.goes}
        assert stays == {
            "0000": "needed by step_10.pt",
            "0001": "needed by step_20.pt",
            "0002": "a marker file names it",
            "0999": LINEAGE,
        }


class TestQuota:
    def test_the_oldest_goes_until_it_is_kept(self):
        assert going(bases(9), Rules(), max_bytes=70) == [0, 1]
        assert going(bases(9), Rules(), max_bytes=90) == []
        assert going(bases(9), Rules(), max_bytes=90, other_bytes=11) == [0, 1]

    def test_no_more_goes_than_has_to(self):
        """The base of an old chain may only go with all of it: its youngest goes first."""
        old, records = [record(0, day=0)], [record(n, day=n) for n in range(990, 1000)]
        old += [record(n, old[0], day=n) for n in range(1, 3)]
        old += [record(n, old[2], day=n) for n in range(3, 5)]
        assert going([*old, *records], Rules(), max_bytes=120) == [1, 3, 4]

    def test_it_takes_neither_the_newest_nor_every_nth_nor_what_a_pointer_stands_for(self):
        records = bases(9)
        told = tuple(held(r, is_pointed=r is records[1]) for r in records)
        plan = judge([Shelf(Rules(newest=2, every=40, days=1000), 1, told)], now=NOW, max_bytes=0)
        assert [int(v.held.path.stem) for v in plan.verdicts if v.goes] == [2, 3, 5, 6]
        assert plan.over_bytes == 50

    def test_it_takes_nothing_of_a_run_without_rules(self):
        plan = judge([Shelf(None, 1, tuple(map(held, bases(3))))], now=NOW, max_bytes=1)
        assert {verdict.why for verdict in plan.verdicts} == {NO_RULES}
        assert plan.over_bytes == 29

    def test_all_runs_of_a_store_give_the_oldest_first(self):
        shelves = [Shelf(Rules(), 1, tuple(held(record(10 * r + n, day=2 * n + r)) for n in range(3))) for r in (0, 1)]
        plan = judge(shelves, now=NOW, max_bytes=40)
        assert [held.path.stem for held in plan.going()] == ["0000", "0010"]


# -- what holds of whatever there may be ------------------------------------------------------------------------


@st.composite
def shelves(draw) -> list[Shelf]:
    """Runs with branches, twins, several series, steps written twice; markers and pointers anywhere."""
    made, number = [], 0
    for _ in range(draw(st.integers(1, 3))):
        records: list[ArchiveRecord] = []
        for _ in range(draw(st.integers(0, 12))):
            before = draw(st.one_of(st.none(), st.sampled_from(records))) if records else None
            twin = draw(st.sampled_from(records)) if records and draw(st.integers(0, 9)) == 0 else None
            records.append(
                record(
                    number,
                    before,
                    series=draw(st.sampled_from(["G", "D"])),
                    step=draw(st.integers(0, 12)) * 5,
                    day=draw(st.integers(0, 999)),
                    twin_of=twin,
                    ruined=draw(st.sampled_from([0.0, 0.0, 0.0, 1.0])),
                )
            )
            number += 1
        told = tuple(
            held(
                one,
                nbytes=draw(st.integers(10, 30)),
                moments=draw(st.integers(0, 10)),
                safe=draw(st.sampled_from(["", "", "", "marked"])),
                is_pointed=draw(st.booleans()),
            )
            for one in records
        )
        made.append(Shelf(draw(rules()), draw(st.integers(1, 3)), told))
    return made


def rules() -> st.SearchStrategy[Rules | None]:
    numbers = st.one_of(st.none(), st.integers(1, 6))
    days = st.one_of(st.none(), st.integers(0, 1200))
    return st.one_of(st.none(), st.builds(Rules, numbers, st.one_of(st.none(), st.integers(1, 20)), days, numbers))


LIMITS = st.one_of(st.none(), st.integers(0, 200))
QUOTA = st.fixed_dictionaries({"max_bytes": LIMITS, "other_bytes": st.integers(0, 30)})


def is_decodable(record: ArchiveRecord, there: list[ArchiveRecord]) -> bool:
    manifest = record.manifest
    return manifest.reference is None or any(
        other.manifest.reconstruction == manifest.reference
        and other.manifest.depth < manifest.depth
        and is_decodable(other, there)
        for other in there
    )


@given(shelves(), QUOTA)
def test_whatever_stays_is_decodable_after_every_step_of_the_way(shelves, quota):
    plan = judge(shelves, now=NOW, **quota)
    for shelf in shelves:
        there = [held.record for held in shelf.held]
        of_this = {held.path for held in shelf.held}
        for gone in [None, *(held.path for held in plan.going() if held.path in of_this)]:
            there = [record for record in there if record.path != gone]
            assert all(is_decodable(record, there) for record in there)


@given(shelves(), QUOTA)
def test_every_archive_has_one_verdict_and_what_is_kept_by_itself_stays(shelves, quota):
    plan = judge(shelves, now=NOW, **quota)
    everything = [held for shelf in shelves for held in shelf.held]
    assert [verdict.held for verdict in plan.verdicts] == everything
    goes = {verdict.held.path for verdict in plan.verdicts if verdict.goes}
    for shelf in shelves:
        records = [held.record for held in shelf.held]
        stays = {held.path for held in shelf.held if held.safe} | next_references(records, shelf.stride)
        if shelf.rules is None:
            stays = {record.path for record in records}
        elif shelf.rules.newest:
            stays |= newest_of(records, shelf.rules.newest)
        if shelf.rules is not None and shelf.rules.every:
            stays |= every_nth(records, shelf.rules.every)
        assert not goes & stays


@given(shelves(), QUOTA)
def test_what_is_younger_goes_by_a_quota_alone_and_never_where_a_pointer_stands_for_it(shelves, quota):
    plan = judge(shelves, now=NOW, **quota)
    without = judge(shelves, now=NOW)
    by_rule = {verdict.held.path for verdict in without.verdicts if verdict.goes}
    for verdict in plan.verdicts:
        if verdict.why == "over the quota":
            assert not verdict.held.is_pointed
            assert verdict.held.path not in by_rule
    assert by_rule <= {verdict.held.path for verdict in plan.verdicts if verdict.goes}


@given(shelves(), QUOTA)
def test_a_quota_is_kept_or_nothing_that_it_may_take_is_left(shelves, quota):
    plan = judge(shelves, now=NOW, **quota)
    if quota["max_bytes"] is None:
        assert plan.over_bytes == 0
        return
    left = [verdict for verdict in plan.verdicts if not verdict.goes]
    total = quota["other_bytes"] + sum(verdict.left_bytes for verdict in left)
    assert plan.over_bytes == max(0, total - quota["max_bytes"])
    if plan.over_bytes:
        needed = {verdict.held.record.manifest.reference for verdict in left}
        for verdict in left:
            loose = verdict.why.startswith("younger") or verdict.why == "nothing but a quota takes it"
            if loose and not verdict.held.is_pointed:
                assert verdict.held.record.manifest.reconstruction in needed


@given(shelves(), QUOTA)
def test_moments_stay_of_the_newest_of_the_lineage_and_of_what_is_safe(shelves, quota):
    plan = judge(shelves, now=NOW, **quota)
    slim = {held.path for held in plan.slimming()}
    assert not slim & {held.path for held in plan.going()}
    stays = {verdict.held.path for verdict in plan.verdicts if not verdict.goes}
    for shelf in shelves:
        records = [held.record for held in shelf.held]
        paths = {record.path for record in records}
        whole = {held.path for held in shelf.held if held.safe or not held.moments}
        whole |= next_references(records, shelf.stride)
        if shelf.rules is not None and shelf.rules.moments is not None:
            whole |= newest_of(records, shelf.rules.moments)
        else:
            whole |= paths
        assert slim & paths == (paths & stays) - whole


@given(shelves(), QUOTA)
def test_what_was_decided_once_is_decided_for_good(shelves, quota):
    """Right after it is done nothing more goes."""
    gone = {held.path for held in judge(shelves, now=NOW, **quota).going()}
    left = [Shelf(s.rules, s.stride, tuple(held for held in s.held if held.path not in gone)) for s in shelves]
    kept = {v.held.path for v in judge(left, now=NOW, **quota).verdicts if not v.goes}
    assert kept == {held.path for shelf in left for held in shelf.held}


@pytest.mark.parametrize("reason", ["marked", ""])
def test_an_empty_shelf_has_no_verdicts(reason):
    assert judge([Shelf(Rules(newest=1), 1, ())], now=NOW).verdicts == ()
