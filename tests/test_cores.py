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
