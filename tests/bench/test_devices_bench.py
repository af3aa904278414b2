"""The benchmark of devices: every stage on every device, with the same bits."""

import json
import sys

import devices
import pytest


def test_every_stage_is_measured_and_alike(monkeypatch, capsys):
    arguments = ["--parameters", "3e4", "--width", "64", "--threads", "1", "--devices", "numpy", "cpu", "--few", "0"]
    monkeypatch.setattr(sys, "argv", ["devices.py", *arguments])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    devices.main()
    machine, *rows = map(json.loads, capsys.readouterr().out.splitlines())
    assert machine["parameters"] >= 3e4
    assert [(each["stage"], each["device"]) for each in rows] == [
        (stage.__name__, device) for stage in devices.STAGES for device in ("numpy", "cpu")
    ]
    assert all(each["gb_s"] > 0 for each in rows)


def test_devices_that_do_not_agree_are_said(monkeypatch):
    monkeypatch.setattr(devices, "row", lambda device, stage, *_: {"sha256": device})
    monkeypatch.setattr(sys, "argv", ["devices.py", "--parameters", "1", "--width", "16", "--devices", "numpy", "cpu"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit, match="transforms: the devices do not agree"):
        devices.main()
