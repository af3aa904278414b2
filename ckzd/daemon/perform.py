"""What a worker does with a job: the real operations. Loaded by worker processes only, because it loads torch."""

from typing import Any

from ckzd.daemon.jobs import Job
from ckzd.daemon.worker import OnStage
from ckzd.operations.compress import compress
from ckzd.operations.replace import replace
from ckzd.store import Store


def perform(job: Job, device: str, on_stage: OnStage) -> dict[str, Any]:
    """Do one job; the report as a dict."""
    if job.kind == "replace":
        assert job.archive is not None
        reclaimed = replace(
            job.checkpoint, job.archive, Store.open(job.store), on_step=lambda step: on_stage(f"replace {step}", 0.0)
        )
        return {"reclaimed_bytes": reclaimed}
    report = compress(
        job.checkpoint, store=job.store, preset=job.preset, stride=job.stride, device=device, on_stage=on_stage
    )
    return report.to_dict()
