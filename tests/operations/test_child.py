"""How ckzd starts itself: the child's path, its environment, and its death with its parent."""

import json
import os
import subprocess

import pytest

from ckzd.errors import CkzdError
from ckzd.operations.child import start_module, thread_limits, waiting_module

MODULE = """
import json, os, sys
json.dump({"arguments": sys.argv[1:], "path": sys.path, "variables": dict(os.environ)}, sys.stdout)
"""


def test_a_child_gets_our_environment_but_not_the_service_managers(tmp_path, monkeypatch):
    (tmp_path / "told.py").write_text(MODULE)
    (tmp_path / "random.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "KEPT"):
        monkeypatch.setenv(name, "said")
    variables = {**thread_limits(3), "PYTHONPATH": f"{tmp_path / 'more'}"}
    (tmp_path / "more").mkdir()
    (tmp_path / "told.py").rename(tmp_path / "more" / "told.py")
    with start_module("told", ["a", "b c"], variables, stdout=subprocess.PIPE) as child:
        said = json.loads(child.communicate()[0])
    assert said["arguments"] == ["a", "b c"]
    assert not {"", str(tmp_path)} & set(said["path"])
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(said["variables"])
    assert said["variables"]["KEPT"] == "said"
    assert said["variables"]["OMP_NUM_THREADS"] == "3"


LAGGING = """
import sys, time
from pathlib import Path
go, got = map(Path, sys.argv[1:])
while not go.exists():
    time.sleep(0.01)
lines = 0
for line in sys.stdin:
    lines += 1
    if line == "last\\n":
        break
got.write_text(str(lines))
"""


def test_a_child_that_does_not_listen_holds_nobody_up_and_hears_all_of_it(tmp_path, monkeypatch):
    (tmp_path / "lagging.py").write_text(LAGGING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    go, got = tmp_path / "go", tmp_path / "got"
    with waiting_module("lagging", [str(go), str(got)], count=1, subject=tmp_path) as waiting:
        for _ in range(50_000):
            waiting.tell("a line of some sixty bytes, as an announcement of a tensor is")
        assert not got.exists()
        go.touch()
        waiting.finish("last")
    assert got.read_text() == "50001"


def test_a_child_that_has_ended_is_noticed_when_it_is_told_more(tmp_path, monkeypatch):
    (tmp_path / "ending.py").write_text('raise SystemExit("no room")')
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with waiting_module("ending", [], count=1, subject=tmp_path) as waiting:
        waiting._child.wait()
        with pytest.raises(CkzdError, match="ended with 1: no room"):
            waiting.tell("a line")
