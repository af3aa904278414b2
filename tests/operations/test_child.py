"""How ckzd starts itself: the child's path, its environment, and its death with its parent."""

import json
import subprocess

from ckzd.operations.child import start_module, thread_limits

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
