"""The bench of a fine-tune tells what it claims, of a network that takes seconds."""

import fine_tune
import pytest
from fine_tune import Half, Pretrained, measure, pretrain
from small import SmallJob
from training import run_series

from ckzd.demo_training import SIZES

TINY = SIZES["tiny"]


def test_halves_are_apart_and_judged_alike():
    first, second = (Half(TINY, second=second)(4, 7)[0] for second in (False, True))
    assert not (first == second).all()
    judged = [Half(TINY, second=second)(4, fine_tune.HELDOUT_SEED)[0] for second in (False, True)]
    assert (judged[0] == judged[1]).all()


def test_a_base_model_makes_the_first_archive_smaller(tmp_path):
    pretrain(tmp_path, TINY, 20)
    model, run = tmp_path / "bfloat16.safetensors", tmp_path / "run"
    job = SmallJob(Pretrained(TINY, model), Half(TINY, second=True), steps=4, every=2, batch=4, peak_learning_rate=1e-4)
    assert [step for step, _ in run_series(job, run)] == [2, 4]
    row = measure(job, run, model, tmp_path, "resume")
    assert row["bytes_with"][0] < row["bytes_without"][0]
    assert row["smaller"] == pytest.approx(row["bytes_without"][0] / row["bytes_with"][0], abs=0.01)
    assert max(row["kl_with"], row["kl_without"]) < 1e-3
