"""Memory that a process takes is seen from outside."""

import subprocess
import sys

from processes import Watch

MEBIBYTE = 2**20
TAKES_64_MIB = "import time; taken = bytearray(2**26); time.sleep(0.5)  # ckzd.some.module"


def test_a_child_of_a_child_is_watched_and_named():
    middle = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TAKES_64_MIB!r}], check=True)"
    with Watch() as watch:
        subprocess.run([sys.executable, "-c", middle], check=True)
    large = [peak for peak in watch.peaks.values() if peak.anonymous_bytes > 64 * MEBIBYTE]
    (peak,) = large
    assert peak.command == "ckzd.some.module"
    assert peak.peak_bytes >= peak.anonymous_bytes
    assert peak.peak_bytes < 64 * MEBIBYTE + 64 * MEBIBYTE
    assert watch.together_bytes >= peak.anonymous_bytes
