"""What Lightning's and timm's savers say of the checkpoints that they keep, and which they would have deleted."""

import pytest
import torch

from ckzd.errors import CkzdError
from ckzd.formats.rankings import Ranking, let_go, rankings


def lightning(path, *, mode="max", **scores):
    """A checkpoint with one ModelCheckpoint, beside another callback."""
    kept = {str(path.parent / f"{name}.ckpt"): torch.tensor(score) for name, score in scores.items()}
    state = {"monitor": "score", "best_k_models": kept, "dirpath": str(path.parent)}
    callbacks = {f"ModelCheckpoint{{'monitor': 'score', 'mode': '{mode}'}}": state, "EarlyStopping": {"wait": 0}}
    torch.save({"state_dict": {"w": torch.zeros(200)}, "callbacks": callbacks}, path)
    return path


def timm(path, files):
    saver = {"checkpoint_files": files, "best_epoch": 1, "pending": (3, 0.5)}
    torch.save({"state_dict": {"w": torch.zeros(200)}, "saver": saver}, path)
    return path


def test_scores_are_read_the_better_the_higher(tmp_path):
    (found,) = rankings(lightning(tmp_path / "a.ckpt", a=0.5, b=2.0))
    assert dict(found.scores) == {"a.ckpt": 0.5, "b.ckpt": 2.0}
    (found,) = rankings(lightning(tmp_path / "a.ckpt", mode="min", a=0.5, b=2.0))
    assert dict(found.scores) == {"a.ckpt": -0.5, "b.ckpt": -2.0}
    (found,) = rankings(timm(tmp_path / "a.pth.tar", [("b.pth.tar", 90.0), ("a.pth.tar", 80)]))
    assert dict(found.scores) == {"b.pth.tar": 90.0, "a.pth.tar": 80.0}
    (found,) = rankings(timm(tmp_path / "a.pth.tar", [("b.pth.tar", 0.1), ("a.pth.tar", 0.4)]))
    assert dict(found.scores) == {"b.pth.tar": -0.1, "a.pth.tar": -0.4}


def test_what_says_nothing_certain_says_nothing(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"callbacks": {"ModelCheckpoint": {"best_k_models": {}}}}, path)
    assert [dict(ranking.scores) for ranking in rankings(path)] == [{}]
    for callbacks in (5, {"x": 3}, {7: {"best_k_models": {}}}, {"x": {"best_k_models": {"run/a.ckpt": "high"}}}):
        torch.save({"callbacks": callbacks, "saver": callbacks}, path)
        assert rankings(path) == []
    elsewhere = {"best_k_models": {"/of/another/a.ckpt": torch.tensor(1.0)}}
    torch.save({"callbacks": {"ModelCheckpoint": elsewhere}}, path)
    assert rankings(path) == []
    assert rankings(timm(path, [("a.pth.tar", 1.0), ("b.pth.tar", None)])) == []
    torch.save([1, 2], path)
    assert rankings(path) == []
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(CkzdError):
        rankings(path)


@pytest.mark.parametrize(
    ("before", "now", "gone"),
    [
        ({"a": 1, "b": 3}, {"b": 3, "c": 2}, {"a"}),
        ({"a": 1, "b": 3}, {"b": 3, "c": 1}, {"a"}),
        ({"a": 1}, {"a": 1, "b": 3}, set()),
        ({"a": 1, "b": 3}, {"b": 3}, set()),  # it resumed from where there was no a
        ({"a": 5, "b": 3}, {"b": 3, "c": 2}, set()),  # it has forgotten what it would have kept
        ({"a": 1, "b": 3}, {}, set()),
        ({"a": float("nan"), "b": 3}, {"b": 3, "c": 2}, set()),
        ({}, {"a": 1}, set()),
    ],
)
def test_what_has_fallen_behind_is_let_go(before, now, gone):
    older = [Ranking("one", before | {"of both": 9.0})]
    assert let_go([older, [Ranking("one", now | {"of both": 9.0})]]) == gone
    assert let_go([older, [Ranking("one", now)]]) == set(), "nothing says that it is of the same run"
    assert let_go([older, [Ranking("other", now | {"of both": 9.0})]]) == set()
    assert let_go([older, []]) == let_go([]) == set()
    assert let_go([older, [Ranking("one", now | {"of both": 9.0}), Ranking("other", before)]]) == set()
