"""What compressing leaves behind beside the archive: nothing, and less than it found."""

import subprocess
import sys
from pathlib import Path

import pytest
from serving import write_checkpoint

import ckzd
from ckzd import durable
from ckzd.chains import read_manifest
from ckzd.errors import NoSpace
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
