"""What a worker does with a job, with the real operations."""

import pytest
from serving import write_checkpoint

from ckzd.daemon.jobs import Compress
from ckzd.daemon.perform import perform
from ckzd.errors import NotAccepted


def test_the_accept_command_of_the_job_is_asked(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "run" / "step_1.safetensors")
    stages = []
    refuses = ("sh", "-c", "echo too bad; exit 1")
    job = Compress(tmp_path / "store", checkpoint, preset="lossless", accept_command=refuses, accept_seconds=20.0)
    with pytest.raises(NotAccepted, match="exit code 1, having said: too bad"):
        perform(job, "cpu", lambda stage, _: stages.append(stage))
    assert stages[-2:] == ["verified", "accept"]
    assert list((tmp_path / "store" / "archives").rglob("*.ckz")) == []
