"""Standing back, and time that passes no faster than one is let."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckzd.priority import FairClock

BUSY = "while True: pass"


@contextmanager
def processes(*scripts: str):
    """Python processes, all on one core."""
    core = min(os.sched_getaffinity(0))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\n{script}"], process_group=0
        )
        for script in scripts
    ]
    try:
        yield started
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_fair_clock_stands_while_a_process_below_waits_for_a_core():
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("the kernel does not tell who waits")
    below = f"os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nif os.fork(): os.wait()\n{BUSY}"
    with processes(below, BUSY) as (starved, _):
        time.sleep(1.5)  # both are up
        clock, began = FairClock(starved.pid), time.monotonic()
        time.sleep(2.0)
        spent, passed = clock.seconds(), time.monotonic() - began
    assert spent < passed / 2


def test_a_fair_clock_goes_on_while_a_process_sleeps_or_is_gone():
    with processes("import time; time.sleep(60)") as (sleeper,):
        time.sleep(0.5)
        began, clock = time.monotonic(), FairClock(sleeper.pid)
        time.sleep(1.0)
        spent, passed = clock.seconds(), time.monotonic() - began
        assert passed / 2 < spent <= passed
    time.sleep(0.3)
    assert clock.seconds() >= spent + 0.3
