"""The main job with real parts: a training process, the daemon, SIGKILL, restore, resume. The demo's acts, small."""

import hashlib

import pytest

from ckzd import ensure_restored, inspect, verify
from ckzd.demo import Demo, Plan
from ckzd.operations.replace import pointer_for, resolve

PLAN = Plan(size="tiny", steps=900, every=75, kill_at=340, keep_raw=1)


def test_a_killed_run_resumes_from_a_replaced_checkpoint(tmp_path):
    """What the daemon replaced comes back as it was verified, and training goes on as if nothing had happened."""
    events = []
    with Demo(tmp_path / "demo", PLAN, events.append) as demo:
        demo.start_daemon()
        demo.train_until_killed()
        assert PLAN.kill_at <= demo.killed_at < PLAN.steps
        demo.start_twin()
        demo.wait_until_replaced()

        left = sorted(demo.run.glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
        assert len(left) == PLAN.keep_raw
        assert len(demo.archived) >= 3
        for name in demo.archived:
            assert verify(resolve(demo.run / name).path).ok

        demo.restore_newest_replaced()
        restored = demo.run / demo.restored.checkpoint
        (recorded,) = inspect(resolve(restored).path)["files"]
        assert hashlib.sha256(restored.read_bytes()).hexdigest() == recorded["sha256"]
        assert restored.stat().st_mtime_ns == recorded["mtime_ns"]
        assert ensure_restored(restored) == restored

        demo.resume()
        demo.wait_for_twin()
        assert restored.exists()  # the daemon leaves alone what was restored
        demo.stop_daemon()
        report = demo.report()

    assert report.twin_agreed
    assert report.archived[-1].depth >= 2
    assert all(archived.ratio > 3 for archived in report.archived)
    for comparison in report.comparisons:
        assert comparison.gap == pytest.approx(0, abs=report.allowed_gap), comparison.what
    assert [event.who for event in events if event.who in ("kill", "restore")] == ["kill", "restore"]
    assert not any(pointer_for(path).exists() for path in left)
