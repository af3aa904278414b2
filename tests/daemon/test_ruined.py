"""A checkpoint whose numbers became NaN is archived like any other; that it was is said wherever somebody may look."""

import logging

from ckzd.daemon import page
from ckzd.operations.inspect import RUINED


def test_a_ruined_checkpoint_is_told(daemon, caplog):
    daemon.write(1)
    daemon.write(2, content="ruined")
    with caplog.at_level(logging.WARNING):
        daemon.go(90)
    told = {found["checkpoint"]: found for found in daemon.status()["checkpoints"]}
    first, second = (told[str(daemon.run / f"step_{step}.safetensors")] for step in (1, 2))
    assert (first["ruined"], second["ruined"]) == (False, True)
    assert RUINED in second["why"]
    assert RUINED not in first["why"]
    assert RUINED in page.render(daemon.status())
    assert [record.checkpoint for record in caplog.records if record.message == RUINED] == [second["checkpoint"]]
    assert daemon.metric("ckzd_ruined_checkpoints_total", watch="runs") == 1


def test_where_nothing_is_ruined_the_metric_is_0(daemon):
    assert daemon.metric("ckzd_ruined_checkpoints_total", watch="runs") == 0
