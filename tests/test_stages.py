"""The words that a compression tells of itself: others read them, and each has to know them all."""

import json

from ckzd import screen
from ckzd.daemon import metrics, outcomes
from ckzd.stages import Stage


def test_they_stay_the_words_that_status_and_logs_show():
    words = ["read", "encode", "written", "verified", "accept", "accepted", "publish", "replaced"]
    assert json.loads(json.dumps(list(Stage))) == [str(stage) for stage in Stage] == words


def test_a_person_and_the_metrics_have_names_for_them():
    assert set(screen.STAGES) == set(Stage)
    assert set(outcomes._DURING.values()) <= set(metrics.STAGES)
