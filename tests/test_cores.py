"""Cores that this process may use."""

import pytest

from ckzd import cores as counting


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("/", {}, 12),
        ("/", {".": "max 100000"}, 12),
        ("/", {".": "250000 100000"}, 2),
        ("/", {".": "50000 100000"}, 1),
        ("/pod/train", {"pod": "400000 100000", "pod/train": "max 100000"}, 4),
        ("/pod/train", {"pod": "400000 100000", "pod/train": "300000 100000"}, 3),
        ("/", {".": "no number"}, 12),
        (None, {".": "250000 100000"}, 12),
    ],
)
def test_a_container_has_the_cores_of_its_quota(tmp_path, monkeypatch, own, limits, expected):
    monkeypatch.setattr(counting.os, "sched_getaffinity", lambda _: set(range(12)))
    for group, limit in limits.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(limit + "\n")
    (tmp_path / "cgroup").write_text("1:cpu:/other\n" + (f"0::{own}\n" if own is not None else ""))
    monkeypatch.setattr(counting, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(counting, "_ROOT", tmp_path)
    assert counting.cores() == expected


@pytest.mark.parametrize(
    ("idle", "expected"),
    [((100, 100, 0), 2), ((100, 0, 100), 1), ((0, 0, 100), 0), ((60, 60, 0), 1), ((90, 80, 0), 2)],
)
def test_idle_cores_are_those_of_ours_that_nobody_uses(tmp_path, monkeypatch, idle, expected):
    """Of three cores the first two are ours; each has spent 100 ticks."""
    texts = [
        "cpu  9 9 9 9 9 9 9 9 0 0\n"
        + "".join(f"cpu{core} {500 + spent - free} 20 30 {400 + free // 2} {10 + free - free // 2} 6 7 8 0 0\n"
                  for core, free in enumerate(idle))
        + "intr 1 2 3\n"
        for spent, idle in ((0, (0, 0, 0)), (100, idle))
    ]  # fmt: skip
    monkeypatch.setattr(counting.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(counting, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(counting, "_GROUPS", tmp_path / "cgroup")
    (tmp_path / "stat").write_text(texts[0])
    monkeypatch.setattr(counting.time, "sleep", lambda _: (tmp_path / "stat").write_text(texts[1]))
    assert counting.idle_cores() == expected


def test_where_the_kernel_says_nothing_all_cores_count_as_idle(tmp_path, monkeypatch):
    monkeypatch.setattr(counting.os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(counting, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(counting, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(counting.time, "sleep", lambda _: None)
    assert counting.idle_cores() == 3
