"""The demo's training job is honest and repeatable, and its report judges what it measured."""

import json

import pytest
import torch

from ckzd.demo import Archived, Child, Comparison, DemoReport
from ckzd.demo_training import SIZES, Training, batch_of, learning_rate, stdlib_text
from ckzd.errors import CkzdError

TINY = SIZES["tiny"]


@pytest.fixture
def one_thread():
    """Sums in a fixed order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_resumed_training_repeats_the_uninterrupted_one_bit_for_bit(one_thread, tmp_path):
    uninterrupted = Training(TINY, steps=8)
    losses = [uninterrupted.train_step() for _ in range(4)]
    uninterrupted.save(tmp_path / "step_4.pt")
    losses += [uninterrupted.train_step() for _ in range(4)]

    resumed = Training(TINY, steps=8)
    resumed.resume(tmp_path / "step_4.pt")
    assert [resumed.train_step() for _ in range(4)] == losses[4:]
    assert resumed.heldout_loss() == uninterrupted.heldout_loss()


def test_training_learns(one_thread):
    training = Training(TINY, steps=60)
    before = training.heldout_loss()
    for _ in range(60):
        training.train_step()
    assert training.heldout_loss() < before - 1.5


def test_what_is_judged_is_not_what_is_learnt():
    text, heldout = stdlib_text()
    assert len(text) > 15 * len(heldout) > 100_000
    assert text.base is heldout.base  # two parts of one text, one behind the other


def test_a_batch_depends_on_its_seed_alone():
    text, _ = stdlib_text()
    inputs, targets = batch_of(text, TINY, seed=7)
    assert torch.equal(inputs, batch_of(text, TINY, seed=7)[0])
    assert not torch.equal(inputs, batch_of(text, TINY, seed=8)[0])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_the_learning_rate_warms_up_and_falls_to_a_tenth():
    rates = [learning_rate(step, 100, TINY) for step in range(101)]
    assert rates.index(max(rates)) in range(TINY.warmup_steps - 2, TINY.warmup_steps + 1)
    assert rates[-1] == pytest.approx(TINY.peak_learning_rate / 10)


def child_that_says(tmp_path, code: str) -> Child:
    module = tmp_path / "speaker.py"
    module.write_text(code)
    return Child("speaker", tmp_path / "log", str(module))


def test_a_child_is_read_line_by_line(tmp_path):
    half = json.dumps({"step": 2})[:5]
    child = child_that_says(tmp_path, f"print('hello'); print('{{\"step\": 1}}'); print('{half}', end='', flush=True)")
    child.wait()
    assert child.news() == [{"step": 1}]
    assert child.news() == []
    assert child.said == [{"step": 1}]


def test_a_child_that_fails_shows_its_last_words(tmp_path):
    child = child_that_says(tmp_path, "raise SystemExit('no more paper')")
    with pytest.raises(CkzdError, match="got 1") as caught:
        child.wait()
    assert "no more paper" in caught.value.hint


def test_a_child_does_not_see_the_users_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("CKZD_DAEMON__PORT", "1")
    child = child_that_says(tmp_path, "import os, json; print(json.dumps({'port': os.getenv('CKZD_DAEMON__PORT')}))")
    child.wait()
    assert child.news() == [{"port": None}]


def report_with(gap: float) -> DemoReport:
    return DemoReport(
        archived=(Archived("step_1.pt", 100, 10, 10.0, 0, 2.5),),
        killed_at=5,
        restored="step_1.pt",
        restored_step=1,
        steps=9,
        comparisons=(Comparison("held-out", 2.0, 2.0), Comparison("training", 2.0, 2.0 * (1 + gap))),
        twin_agreed=True,
        seconds=1.0,
    )


@pytest.mark.parametrize(("gap", "passed"), [(0.0, True), (0.0099, True), (0.0101, False), (-0.0101, False)])
def test_the_demo_passes_only_within_one_percent(gap, passed):
    report = report_with(gap)
    assert report.passed is passed
    as_json = json.loads(json.dumps(report.to_dict()))
    assert as_json["passed"] is passed
    assert as_json["comparisons"][1]["gap"] == pytest.approx(gap)
