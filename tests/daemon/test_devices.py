"""Workers are sized to leave training alone, and a GPU is taken only when nobody computes on it."""

import os
import time
from pathlib import Path

import pytest

from ckzd.config import DaemonSettings
from ckzd.cores import cores
from ckzd.daemon import devices


def settings(**changes) -> DaemonSettings:
    return DaemonSettings(state_dir=Path("/nowhere"), **changes)


def place(device: str, chosen: DaemonSettings, taken: frozenset[str] = frozenset()) -> devices.Placement:
    return devices.place(device, chosen, devices.GpuWatch(), taken)


@pytest.mark.parametrize(
    ("cores", "gigabytes", "workers", "threads"),
    [(1, 4, 1, 1), (2, 23, 1, 1), (8, 64, 1, 4), (16, 64, 1, 8), (64, 512, 4, 8), (64, 40, 2, 8), (256, 2048, 4, 8)],
)
def test_cpu_workers_use_half_of_the_cores_at_most(monkeypatch, cores, gigabytes, workers, threads):
    monkeypatch.setattr(devices, "cores", lambda: cores)
    monkeypatch.setattr(devices, "memory_bytes", lambda: gigabytes << 30)

    assert (devices.cpu_workers(settings()), devices.threads(settings())) == (workers, threads)
    assert workers * threads <= max(1, cores // 2)


def test_configured_sizes_are_obeyed():
    chosen = settings(workers=3, threads=5, devices=("cpu", "cuda:1"))

    assert devices.slots(chosen) == ("cpu", "cpu", "cpu", "cuda:1")
    assert place("cpu", chosen).environment["OMP_NUM_THREADS"] == "5"


def test_auto_has_one_slot_that_may_get_a_gpu():
    assert devices.slots(settings(workers=3)) == ("auto", "cpu", "cpu")


def test_without_nvidia_smi_auto_is_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    placement = place("auto", settings(threads=1))

    assert placement.device == "cpu"
    assert placement.environment["CUDA_VISIBLE_DEVICES"] == ""


def test_auto_takes_an_idle_gpu_by_its_uuid(smi):
    smi("GPU-a, 70000, 99\\nGPU-b, 4, 0\\nGPU-c, 4, 0\\n", "GPU-a\\n")

    assert place("auto", settings()).environment["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    taken = place("auto", settings(), frozenset({"GPU-b"}))
    assert (taken.device, taken.environment["CUDA_VISIBLE_DEVICES"]) == ("auto", "GPU-c")


@pytest.mark.parametrize(
    ("cards", "processes"),
    [
        ("GPU-a, 4, 0\\n", "GPU-a\\n"),  # somebody computes
        ("GPU-a, 30000, 0\\n", ""),  # memory is held by a process that we cannot see: another container
        ("GPU-a, 4, 37\\n", ""),
        ("GPU-a, [N/A], 0\\n", ""),
        ("", ""),
    ],
)
def test_a_gpu_that_somebody_uses_is_left_alone(smi, cards, processes):
    smi(cards, processes)

    assert place("auto", settings()).device == "cpu"


def test_a_configured_gpu_is_taken_whoever_uses_it(smi):
    smi("GPU-a, 30000, 99\\n", "GPU-a\\n")

    placement = place("cuda:1", settings())

    assert placement.device == "cuda:0"
    assert placement.environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert placement.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_hanging_nvidia_smi_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_WAIT_SECONDS", 0.2)
    (tmp_path / "nvidia-smi").write_text(
        f"#!/bin/sh\ntouch {tmp_path}/asked\nwhile [ ! -e {tmp_path}/end ]; do sleep 0.05; done\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    watch = devices.GpuWatch()
    began = time.monotonic()
    for _ in range(5):
        assert devices.place("auto", settings(), watch).device == "cpu"
    assert time.monotonic() - began < 1
    (tmp_path / "end").touch()
    watch._asking.join(10)
    assert not watch._asking.is_alive()


def test_the_machine_has_cores_and_memory():
    assert cores() >= 1
    assert devices.memory_bytes() > 1 << 28
