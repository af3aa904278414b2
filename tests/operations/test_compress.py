"""What compressing leaves behind beside the archive: nothing, and less than it found; and where it computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from serving import write_checkpoint

import ckzd
from ckzd import durable
from ckzd.chains import read_manifest
from ckzd.codec.presets import preset_at
from ckzd.defaults import Effort
from ckzd.errors import ConfigError, NoSpace
from ckzd.operations import placement
from ckzd.store import Store

DYING = """
import sys
from pathlib import Path
from ckzd.store import Store
print(Store.open_or_create(Path(sys.argv[1])).new_temp(".ckz"))
"""


def test_what_a_killed_process_left_is_swept(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "run" / "step_1.safetensors")
    command = [sys.executable, "-c", DYING, str(tmp_path / ".ckzd")]
    left = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    ours = Store.open(tmp_path / ".ckzd").new_temp(".ckz")
    for path in (Path(left), ours):
        path.write_bytes(b"half an archive")
    ckzd.compress(checkpoint, preset="lossless")
    assert list(ours.parent.iterdir()) == [ours]


def test_a_full_disk_gets_no_store(tmp_path, monkeypatch):
    checkpoint = write_checkpoint(tmp_path / "run" / "step_1.safetensors")
    monkeypatch.setattr(durable, "free_bytes", lambda _: 100)
    with pytest.raises(NoSpace):
        ckzd.compress(checkpoint)
    assert not (tmp_path / ".ckzd").exists()


@pytest.mark.parametrize("preset", ["resume", "archive", "paper", "lossless"])
def test_an_archive_names_the_versions_of_what_took_part_in_it(tmp_path, preset):
    checkpoint = write_checkpoint(tmp_path / "run" / "step_1.safetensors")
    tools = read_manifest(Path(ckzd.compress(checkpoint, preset=preset).archive)).tools
    assert {"ckzd", "numpy", "constriction", "zstandard"} <= set(tools)
    assert ({"torch", "scikit-learn"} <= set(tools)) == (preset == "paper")


# Devices


@pytest.fixture
def asked_anew():
    """Which GPU is idle is asked once a process."""
    placement._idle_gpu.cache_clear()
    yield
    placement._idle_gpu.cache_clear()


class Card:
    """What torch says of a GPU."""

    def __init__(self, uuid):
        self.uuid = uuid


@pytest.fixture
def cards(monkeypatch, asked_anew):
    """GPUs that torch sees."""

    def _seen(*uuids):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Card(uuids[number]))

    return _seen


@pytest.mark.parametrize(("preset", "effort", "has_work"), [
    ("resume", "best", True), ("archive", "best", True), ("paper", "best", True),
    ("resume", "fast", False), ("lossless", "best", False),
])  # fmt: skip
def test_auto_is_a_gpu_that_is_idle_and_seen_if_there_is_work_for_it(smi, cards, preset, effort, has_work):
    smi("GPU-a, 70000, 99\\nGPU-b, 4, 0\\nGPU-c, 4, 0\\n", "GPU-a\\n")
    cards("a", "c")
    assert placement.device_for(preset_at(preset, Effort(effort)), "auto") == ("cuda:1" if has_work else "cpu")


@pytest.mark.parametrize("seen", [(), ("a",)])
def test_auto_is_the_cpu_where_torch_sees_no_idle_gpu(smi, cards, seen):
    smi("GPU-a, 70000, 99\\nGPU-b, 4, 0\\n", "GPU-a\\n")
    cards(*seen)
    assert placement.device_for(preset_at("resume"), "auto") == "cpu"


@pytest.mark.parametrize("preset", ["resume", "lossless"])
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu"])
def test_a_device_that_is_not_there_is_refused(tmp_path, cards, preset, device):
    cards()
    checkpoint = write_checkpoint(tmp_path / "run" / "step_1.safetensors")
    with pytest.raises(ConfigError, match="device: expected a device that is there"):
        ckzd.compress(checkpoint, preset=preset, device=device)


def test_without_a_gpu_auto_does_not_load_torch(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "run" / "step_1.safetensors")
    code = f"import ckzd, sys; ckzd.compress({str(checkpoint)!r}); print('torch' in sys.modules)"
    command, environment = [sys.executable, "-c", code], {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "False"
