"""Words to systemd and to the log."""

import json
import logging
import socket

import pytest

from ckzd.config import Systemd
from ckzd.daemon.logs import _Formatter
from ckzd.daemon.notify import Notifier


@pytest.fixture
def manager(tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(5)
        yield listener, address


def test_the_service_manager_hears_ready_watchdog_and_stopping(manager, clock):
    listener, address = manager
    notifier = Notifier(Systemd(address, watchdog_seconds=30.0), clock)
    notifier.ready()
    for _ in range(50):
        notifier.alive()
        clock.sleep(1.0)
    notifier.status("1 verified")
    notifier.status("1 verified")
    notifier.stopping()

    heard = [listener.recv(100).decode() for _ in range(8)]
    assert heard == ["READY=1", *["WATCHDOG=1"] * 5, "STATUS=1 verified", "STOPPING=1"]


def test_an_abstract_socket(clock):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0ckzd-test-notify")
        listener.settimeout(5)
        Notifier(Systemd("@ckzd-test-notify"), clock).ready()

        assert listener.recv(100) == b"READY=1"


def test_without_a_service_manager_or_with_a_dead_one_nothing_happens(clock, tmp_path):
    for address in (None, str(tmp_path / "absent")):
        notifier = Notifier(Systemd(address, 1.0), clock)
        notifier.ready()
        notifier.alive()


def logged(*, as_json: bool, error: Exception | None = None, **fields) -> str:
    record = logging.makeLogRecord({"levelname": "WARNING", "msg": "archived", "created": 1.0, **fields})
    record.exc_info = (type(error), error, None) if error else None
    return _Formatter(as_json=as_json).format(record)


def test_a_log_line_is_an_event_and_its_fields():
    line = logged(as_json=False, checkpoint="/a b", ratio=93.12345)

    assert line.split(" ", 1)[1] == 'warning archived checkpoint="/a b" ratio=93.12'


def test_a_log_line_as_json_has_the_same_fields():
    fields = json.loads(logged(as_json=True, checkpoint="/a b", ratio=93.12345))

    assert fields["time"] > 0
    assert {key: fields[key] for key in ("level", "event", "checkpoint", "ratio")} == {
        "level": "warning",
        "event": "archived",
        "checkpoint": "/a b",
        "ratio": 93.12345,
    }


def test_a_traceback_is_kept():
    assert "ValueError: boom" in logged(as_json=False, error=ValueError("boom"))
    assert "ValueError: boom" in json.loads(logged(as_json=True, error=ValueError("boom")))["traceback"]
