"""A user's command, with real processes: how it ends is told, and nothing of it goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from priorities import priorities_of

from ckzd.errors import ConfigError
from ckzd.operations import command as module
from ckzd.operations.command import command_words, require_program, run


def shell(script: str, seconds: float = 20.0):
    return run(["sh", "-c", script], {"CKZD_TEST": "a value"}, seconds)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def are_gone(pids: Path, seconds: float = 5.0) -> bool:
    """Whether the processes whose numbers the file holds end soon."""
    numbers, deadline = [int(number) for number in pids.read_text().split()], time.monotonic() + seconds
    assert numbers
    while any(map(is_alive, numbers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(is_alive, numbers))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("eval.py --strict", ("eval.py", "--strict")),
        ("""  'my eval'  "a b"c\\ d  """, ("my eval", "a bc d")),
        ("echo $HOME *.pt | cat # no comment", ("echo", "$HOME", "*.pt", "|", "cat", "#", "no", "comment")),
        (["my eval", "", "$x"], ("my eval", "", "$x")),
    ],
)
def test_a_text_is_split_and_words_are_left_alone(text, words):
    assert command_words(text) == words
    assert command_words(words) == words


@pytest.mark.parametrize(
    ("text", "says"),
    [("sh -c 'x", "no closing quotation"), ("x\\", "no escaped"), ("", "''"), ("''", ""), ([], "")],
)
def test_what_is_no_command_is_refused(text, says):
    with pytest.raises(ValueError, match=f"expected a command, got .*{says}"):
        command_words(text)
    with pytest.raises(ValueError, match="expected a command"):
        command_words(["true", "a\0b"])


def test_a_program_must_be_there_and_executable(tmp_path):
    script = tmp_path / "script"
    script.touch()
    for program in ("no-such-program", str(script), str(tmp_path)):
        with pytest.raises(ConfigError, match="not in PATH or not executable"):
            require_program([program, "-c"])
    require_program(["sh", "-c"])


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("echo $CKZD_TEST; echo; echo '  two ' >&2", 0, ("a value", "  two")),
        ("exit 3", 3, ()),
        ("echo dying; kill -SEGV $$", -signal.SIGSEGV, ("dying",)),
        ("echo all; kill -9 0", -signal.SIGKILL, ("all",)),
        ("exec >&- 2>&-; sleep 0.1; exit 4", 4, ()),
        ("cat; head -c 300000 /dev/zero | tr '\\0' x; seq 100; exit 5", 5, tuple(str(n) for n in range(91, 101))),
    ],
    ids=["accepts", "exit code", "signal", "signal to its group", "no output", "much output, no input"],
)
def test_how_it_ended_and_what_it_said_last(script, status, said):
    outcome = shell(script)
    assert (outcome.status, outcome.last_lines) == (status, said)


def test_it_is_not_bothered_by_what_python_ignores():
    assert shell("yes | head -n 1 && kill -PIPE $$").status == -signal.SIGPIPE
    assert shell("kill -TERM $$").status == -signal.SIGTERM


def test_what_cannot_be_run_says_so(tmp_path):
    script = tmp_path / "script"
    script.write_text("no first line with an interpreter")
    script.chmod(0o755)
    outcome = run([str(script)], {}, 20.0)
    assert outcome.status not in (0, None)
    assert "Exec format error" in outcome.last_lines[-1]


def test_what_it_leaves_running_is_ended_and_not_waited_for(tmp_path):
    began = time.monotonic()
    assert shell(f"sleep 60 & yes & echo $! > {tmp_path}/pids; exit 2").status == 2
    assert are_gone(tmp_path / "pids")
    assert time.monotonic() - began < 10


def test_over_its_time_it_is_asked_to_end(tmp_path):
    outcome = shell(f"trap 'echo bye; exit 0' TERM; sleep 60 & echo $$ $! > {tmp_path}/pids; wait", 0.5)
    assert (outcome.status, outcome.last_lines) == (None, ("bye",))
    assert are_gone(tmp_path / "pids")


def test_over_its_time_it_is_killed_when_it_does_not_listen(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    assert shell(f"trap '' TERM; echo $$ > {tmp_path}/pids; while :; do sleep 0.05; done", 0.5).status is None
    assert are_gone(tmp_path / "pids")


def test_it_does_not_outlive_us(tmp_path):
    """Killed without a chance to clean up: the command ends all the same, with what it started."""
    pids = tmp_path / "pids"
    script = f"sleep 60 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait"
    code = f"from ckzd.operations.command import run\nrun(['sh', '-c', {script!r}], {{}}, 60.0)"
    with subprocess.Popen([sys.executable, "-c", code]) as ours:
        while not pids.exists() and ours.poll() is None:
            time.sleep(0.01)
        os.kill(ours.pid, signal.SIGKILL)
    assert are_gone(pids)


@pytest.mark.parametrize("nice", [0, 11, 19])
def test_a_command_stands_back_as_we_do_in_its_own_session(nice, tmp_path):
    waits = f"echo $$ > {tmp_path}/pid; sleep 600"
    script = (
        f"from ckzd.priority import stand_back; stand_back({nice});"
        f"from ckzd.operations.command import run; run(['sh', '-c', {waits!r}], {{}}, 600.0)"
    )
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True) as polite:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ours, its = priorities_of(polite.pid), priorities_of(int((tmp_path / "pid").read_text()))
        polite.kill()
    assert its == ours
    assert its.nice == max(nice, os.getpriority(os.PRIO_PROCESS, 0))
    assert its.group_nice in (its.nice, None)
    assert are_gone(tmp_path / "pid")
