"""Whatever lies among a run's checkpoints stops nothing but itself."""

import json
import os
import socket
import urllib.request

import pytest
from serving import write_checkpoint

NOT_TEXT = os.fsdecode(b"mod\xe8le_1.safetensors")
HOSTILE = "step_11\n\r\x1b[31m<b>\"'&.safetensors"


def fifo(run):
    for name in ("step_9.pt.ckz", "checkpoint-9/ckzd.json"):  # pointers
        (run / name).parent.mkdir(exist_ok=True)
        os.mkfifo(run / name)
    os.mkfifo(run / "step_7.safetensors")
    os.mkfifo(run / "latest")
    (run / "checkpoint-7").mkdir()
    os.mkfifo(run / "checkpoint-7" / "trainer_state.json")


def unix_socket(run):
    before = os.open(".", os.O_RDONLY)
    os.chdir(run)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("step_7.pt")
    os.fchdir(before)
    os.close(before)


def links(run):
    for name, target in (("step_7.pt", "nowhere"), ("best.pt", "best.pt"), ("last", "/dev/zero"), ("a", "..")):
        (run / name).symlink_to(target)
    (run / "checkpoint-7").symlink_to("checkpoint-7")


def deep(run):
    for name in ("notes", "checkpoint-7"):
        (run / name).mkdir()
        (run / name / "trainer_state.json").write_text('{"a":' * 50_000)


def no_permission(run):
    for name in ("checkpoint-7", "step_7.safetensors", "notes"):
        (run / name).mkdir(mode=0)


def names(run):
    for name in (NOT_TEXT, HOSTILE, "s" * 243 + ".safetensors"):
        write_checkpoint(run / name, "odd")


def sparse(run):
    (run / "notes").mkdir()
    for name in ("step_7.safetensors", "step_8.pt", "notes/trainer_state.json", "latest"):
        (run / name).touch()
        os.truncate(run / name, 1 << 42)


def times(run):
    for step, seconds in ((7, -5.0), (8, 1e10), (9, 9e9)):
        write_checkpoint(run / f"step_{step}.safetensors")
        os.utime(run / f"step_{step}.safetensors", (seconds, seconds))


ODD = (fifo, unix_socket, links, deep, no_permission, names, sparse, times)


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("make", ODD)
def test_the_others_are_served(make_daemon, make, once):
    daemon = make_daemon(once=once, keep_raw=0)
    daemon.write(1, 2, 3)
    make(daemon.run)
    daemon.clock.sleep(100.0)
    if once:
        daemon.service.run()
    else:
        daemon.service.start()
        daemon.go(200)
    states = daemon.states()
    assert {states[f"step_{step}"] for step in (1, 2, 3)} == {"replaced"}
    assert daemon.service._trouble == ""


def test_a_name_that_is_not_text_is_left_alone_and_said(make_daemon):
    daemon = make_daemon()
    daemon.write(1)
    write_checkpoint(daemon.run / NOT_TEXT, "odd")
    daemon.service.start()
    daemon.go()

    assert daemon.states() == {"step_1": "verified", os.fsdecode(b"mod\xe8le_1"): "seen"}
    assert "its name is not UTF-8" in daemon.why(os.fsdecode(b"mod\xe8le_1"))
    for page in ("", "status.json", "metrics", "readyz"):
        with urllib.request.urlopen(f"{daemon.service.teller.url}/{page}") as answer:
            told = answer.read().decode("utf-8")
            if page == "status.json":
                assert len(json.loads(told)["checkpoints"]) == 2
