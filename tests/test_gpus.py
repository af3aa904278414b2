"""GPUs that nobody computes on, as `nvidia-smi` tells."""

import os

import pytest

from ckzd.gpus import Gpu, gpus


def test_who_computes_holds_memory_or_is_at_work_is_busy(smi):
    smi("GPU-a, 4, 0\\nGPU-b, 30000, 0\\nGPU-c, 4, 37\\nGPU-d, 4, 0\\n", "GPU-a\\n")

    assert gpus() == [
        Gpu("GPU-a", busy=True),
        Gpu("GPU-b", busy=True),
        Gpu("GPU-c", busy=True),
        Gpu("GPU-d", busy=False),
    ]


@pytest.mark.parametrize("answer", ["exit 9", "echo no GPU", "echo 'GPU-a, [N/A], 0'"])
def test_an_answer_that_says_nothing_means_no_gpu(tmp_path, monkeypatch, answer):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert gpus() == []


def test_no_nvidia_smi_means_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert gpus() == []
