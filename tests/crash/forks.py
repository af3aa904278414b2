"""One command of ckzd in a fork of this process, one of its processes watched or struck by strace.

An interpreter that has loaded everything takes two seconds to start, a fork of one some milliseconds, and a campaign
runs thousands of commands. So the children that a command starts (worker, verifier) are forks too: the same program
text, arguments, pipes, parent and signals, only without `exec`. What they ask of the kernel is what they always ask.

strace counts calls by process and thread, so it attaches to exactly one process: the command itself or one of its
children, which waits for it before its first step. No thread of ckzd changes the disk but a process's first.
"""

import ctypes
import gc
import inspect
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Before anything heavy is loaded: a pool of threads does not survive a fork
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

from ckzd import cli, priority
from ckzd.daemon import perform, service, workers  # noqa: F401  # loaded once, here
from ckzd.operations import check, child, compress, restore, verify  # noqa: F401

service.TICK_SECONDS, service.MIN_SCAN_SECONDS = 0.02, 0.0  # nobody else changes the run: no need to wait
priority.stand_back = lambda _nice: None  # on a busy machine what stands back takes minutes

WRITING = (
    "write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "truncate", "ftruncate",
    "fallocate", "open", "openat", "creat", "rename", "renameat", "renameat2", "link", "linkat", "symlink",
    "symlinkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "fsync", "fdatasync", "chmod", "fchmod",
    "fchmodat", "chown", "fchown", "lchown", "fchownat", "utimensat",
)  # fmt: skip
_OPENING = {"open", "openat"}
_CREATES = re.compile(r"O_(CREAT|TRUNC|TMPFILE)")
ROLES = {"verifier": "ckzd.operations.verify", "worker": "ckzd.daemon.worker"}  # what a child's program holds
MAX_SECONDS = 60.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_PTRACER, _ANY = 1, 36, 0x59616D61, -1


@dataclass(frozen=True)
class Aim:
    """Which process strace attaches to ("command", or the nth child of one of ROLES), and what it does there."""

    role: str
    nth: int = 1
    injection: str | None = None


@dataclass(frozen=True)
class Call:
    """One system call that changes the disk: the how manieth of its name in its process."""

    name: str
    number: int
    text: str

    @property
    def was_struck(self) -> bool:
        return "(INJECTED)" in self.text or self.text.endswith("= ?")


@dataclass(frozen=True)
class Finished:
    """How a command ended (negative: by this signal), what it said, and its calls below the place that was watched."""

    status: int
    output: str
    calls: list[Call]


def run(arguments: list[str], work: Path, *, aim: Aim | None = None, watched: Path | None = None) -> Finished:
    """Run `ckzd ARGUMENTS` to its end, and wait for the end of everything that it has started."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    output, log = work / "output", work / "strace"
    log.unlink(missing_ok=True)
    halted, tell_halted = os.pipe()
    go, tell_go = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_the_command(arguments, output, aim, tell_halted, go)
    os.close(tell_halted)
    os.close(go)
    tracer = _attach(halted, aim, log) if aim is not None else None
    os.write(tell_go, b"go" if tracer else b"")
    status = _wait_for(pid)
    if tracer is not None:
        tracer.wait()
        tracer.stderr.close()
    _wait_for_the_orphans()
    os.close(halted)
    os.close(tell_go)
    calls = _calls(log, watched) if tracer is not None else []
    return Finished(status, output.read_text(errors="replace"), calls)


def start(arguments: list[str], work: Path) -> int:
    """Start `ckzd ARGUMENTS`, to be ended by `kill`; its pid."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    halted, tell_halted = os.pipe()
    go, tell_go = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_the_command(arguments, work / "output", None, tell_halted, go)
    for descriptor in (halted, tell_halted, go, tell_go):
        os.close(descriptor)
    return pid


def kill(pid: int) -> None:
    """SIGKILL; returns when everything that it has started is gone, too."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    _wait_for_the_orphans()


def _attach(halted: int, aim: Aim, log: Path) -> "subprocess.Popen[str] | None":
    """Wait for the process that is aimed at, and attach strace to it; None if it never came to be."""
    said = os.read(halted, 64)
    if not said:
        return None
    command = [shutil.which("strace"), "-y", "-o", log, "-e", f"trace={','.join(WRITING)}", "-e", "signal=none"]
    command += ["-e", f"inject={aim.injection}"] if aim.injection is not None else []
    tracer = subprocess.Popen([*command, "-p", said.decode()], stderr=subprocess.PIPE, text=True)
    attached = tracer.stderr.readline()
    if "attached" not in attached:
        raise SystemExit(f"strace cannot attach: {attached or tracer.stderr.read()}")
    return tracer


def _wait_for(pid: int) -> int:
    deadline = time.monotonic() + MAX_SECONDS
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _wait_for_the_orphans() -> None:
    """Children of a command that died: the kernel has told them to end, and gives them to us."""
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _calls(log: Path, watched: Path | None) -> list[Call]:
    count: Counter[str] = Counter()
    calls = []
    for line in log.read_text(errors="replace").splitlines():
        name = line.partition("(")[0]
        if name not in WRITING:
            continue
        count[name] += 1
        if watched is not None and str(watched) not in line:
            continue
        if name not in _OPENING or _CREATES.search(line):
            calls.append(Call(name, count[name], line))
    return calls


def in_fork(work: Callable[[], None]) -> None:
    """Do something that starts threads, which no later fork could use."""
    pid = os.fork()
    if pid == 0:
        _end_with(work)
    assert os.waitpid(pid, 0)[1] == 0


# In the fork

_aim: Aim | None = None
_pipes = (-1, -1)  # to say that we wait, to be told to go on
_started: Counter[str] = Counter()


def _be_the_command(arguments: list[str], output: Path, aim: Aim | None, tell_halted: int, go: int) -> None:
    global _aim, _pipes
    _aim, _pipes = aim, (tell_halted, go)
    said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    _be_fresh(os.open(os.devnull, os.O_RDONLY), said, said, ())
    subprocess.Popen = _Forked
    sys.argv = ["ckzd", *arguments]
    if aim is not None and aim.role == "command":
        _halt()
    _end_with(cli.main)


def _be_fresh(stdin: int, stdout: int, stderr: int, others: tuple[int, ...]) -> None:
    """What `exec` would do: descriptors, signal handlers, and no thought of what the parent holds."""
    gc.freeze()
    for descriptor, number in ((stdin, 0), (stdout, 1), (stderr, 2)):
        if descriptor not in (-1, number):
            os.dup2(descriptor, number)
    kept = sorted({*others, *_pipes})
    for first, last in zip([2, *kept], [*kept, 1024], strict=True):
        os.closerange(first + 1, last)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering=1, closefd=False)  # noqa: SIM115  # they last as long as the process
        for number, mode in enumerate("rww")
    )
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    logging.getLogger().handlers.clear()
    _prctl(_PR_SET_PDEATHSIG, 0)
    _prctl(_PR_SET_PTRACER, _ANY)


def _halt() -> None:
    """Wait until strace is there."""
    os.write(_pipes[0], str(os.getpid()).encode())
    os.read(_pipes[1], 2)


def _end_with(program) -> None:
    status = 1
    try:
        program()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # as an interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Forked(subprocess.Popen):
    """`python -P -c PROGRAM` as a fork of this process; any other command as ever."""

    def _execute_child(self, *arguments) -> None:
        given = _ASKED.bind(self, *arguments).arguments
        words = list(map(str, given["args"])) if not isinstance(given["args"], str) else []
        if words[:3] != [sys.executable, "-P", "-c"]:
            super()._execute_child(*arguments)
            return
        role = next((role for role, text in ROLES.items() if text in words[3]), "other")
        _started[role] += 1
        self.pid = os.fork()
        if self.pid == 0:
            self._become(words, given, role)
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[end] for end in ends))

    def _become(self, words: list[str], given: dict, role: str) -> None:
        _be_fresh(given["p2cread"], given["c2pwrite"], given["errwrite"], given["pass_fds"])
        if given["start_new_session"]:
            os.setpgid(0, 0)  # what signals need of it; a whole session is a CPU group of its own, and starves
        if given["env"] is not None:
            os.environ.clear()
            os.environ.update(given["env"])
        sys.argv = ["-c", *words[4:]]
        if _aim is not None and (_aim.role, _aim.nth) == (role, _started[role]):
            _halt()
        _started.clear()
        _end_with(lambda: exec(compile(words[3], "<string>", "exec"), {"__name__": "__main__"}))


_ASKED = inspect.signature(subprocess.Popen._execute_child)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_long(value), 0, 0, 0)
