"""Processes of several hosts that share a file system which does not pass `flock` on, on this one machine.

A library before the C library's has every `flock` succeed, as one host sees the locks of another, and, if that is asked
for, no rename know a flag, as on NFS; each host has a boot of its own, so that its processes cannot be seen from
others. Owners are given up after seconds instead of a minute.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

GONE_SECONDS = 2.0
_NO_LOCKS = "int flock(int descriptor, int operation) { return 0; }"
_NO_FLAGS = """
#include <errno.h>
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { errno = EINVAL; return -1; }
"""
_AT_START = f"""
import os
from ckzd import locks
locks.BEAT_SECONDS, locks.GONE_SECONDS = 0.2, {GONE_SECONDS}
_, namespace = locks._here()
locks._here = lambda: (os.environ["HOST"] * 8, namespace)
"""


class Hosts:
    """Environments of processes by host, "a" or "b"."""

    def __init__(self, place: Path, *, has_flags: bool = True) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("needs a C compiler")
        place.mkdir()
        (place / "flock.c").write_text(_NO_LOCKS if has_flags else _NO_LOCKS + _NO_FLAGS)
        (place / "sitecustomize.py").write_text(_AT_START)
        library = place / "flock.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, place / "flock.c"], check=True)
        paths = [str(place), str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._own = {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(paths)}

    def environment(self, host: str) -> dict[str, str]:
        """Of a process on this host."""
        return {**os.environ, **self._own, "HOST": host}
