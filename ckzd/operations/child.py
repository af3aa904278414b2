"""Python in a fresh process, and its errors back as the errors that they were.

A restore must not depend on what this process has loaded or set (a trainer's default dtype, its threads), and an
encoder must not check its own work. `start_module` is how ckzd starts itself, everywhere: the child dies with us and
gets our environment.
"""

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import ckzd
from ckzd import errors
from ckzd.codec.parallel import threads
from ckzd.errors import CkzdError
from ckzd.pace import pace

# -P keeps the working directory off the path: a `random.py` beside somebody's checkpoints must not be ours
_BOOT = """
import runpy, sys
sys.path += [] if {place!r} in sys.path else [{place!r}]
from ckzd.operations.child import die_with_parent
from ckzd.pace import set_pace
die_with_parent({parent})
set_pace({pace})
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
_PLACE = str(Path(ckzd.__file__).resolve().parent.parent)
_PR_SET_PDEATHSIG = 1
_PIPE_BYTES = 1 << 20  # what a child may lag behind before what it is told waits for the next line
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_SERVICE_MANAGER = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC"})  # it expects us to speak to it, and no child


def run_module(module: str, arguments: Sequence[str], *, subject: Path) -> None:
    """Run `python -m MODULE ARGUMENTS` to its end; raises what it said on stderr (see `error_line`), else CkzdError."""
    with _asked(module, arguments, {}) as child:
        _finish(child, b"", subject)


class Waiting:
    """A child that does what it is told in lines on stdin, the last of which has it finish."""

    def __init__(self, child: "subprocess.Popen[bytes]", subject: Path) -> None:
        assert child.stdin is not None, "it was started with a pipe"
        self._child, self._subject, self._pipe = child, subject, child.stdin.fileno()
        self._unsent = bytearray()
        with suppress(OSError):  # of a user with many pipes it stays as small as it is
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(self._pipe, False)

    def tell(self, line: str) -> None:
        """Send a line, or with a later one what the pipe does not take now: this waits for nobody.

        Raises what the child said on stderr if it has ended.
        """
        self._unsent += line.encode() + b"\n"
        try:
            sent = os.write(self._pipe, self._unsent)
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._end(b"")
            raise
        del self._unsent[:sent]

    def finish(self, line: str) -> None:
        """Send the last line and wait for its end; raises what it said on stderr (see `error_line`), else CkzdError."""
        self._end(bytes(self._unsent) + line.encode() + b"\n")

    def _end(self, lines: bytes) -> None:
        _finish(self._child, lines, self._subject)


@contextmanager
def waiting_module(
    module: str, arguments: Sequence[str], *, count: int, subject: Path, pass_fds: Sequence[int] = ()
) -> Iterator[Waiting]:
    """Start `python -m MODULE ARGUMENTS`, which loads itself and then reads on stdin what to do; killed at the end.

    What to do is lines: the end of stdin does not come as long as a process lives that was forked from this one
    meanwhile.
    """
    with _asked(module, arguments, thread_limits(count), pass_fds) as child:
        yield Waiting(child, subject)


@contextmanager
def _asked(
    module: str, arguments: Sequence[str], variables: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> Iterator["subprocess.Popen[bytes]"]:
    pipe = subprocess.PIPE
    with start_module(module, arguments, variables, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=pass_fds) as child:
        try:
            yield child
        finally:
            child.kill()


def _finish(child: "subprocess.Popen[bytes]", lines: bytes, subject: Path) -> None:
    _, said = child.communicate(lines)
    if child.returncode != 0:
        raise error_of(subject, child.returncode, said.decode(errors="replace"))


def start_module(
    module: str,
    arguments: Sequence[str],
    variables: Mapping[str, str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
    start_new_session: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start `python -m MODULE ARGUMENTS` with our environment and these variables, in a process that dies with us.

    The kernel kills it when the thread that started it ends. OSError if the system has no room for another process.
    """
    boot = _BOOT.format(place=_PLACE, parent=os.getpid(), pace=pace(), module=module)
    inherited = {name: value for name, value in os.environ.items() if name not in _SERVICE_MANAGER}
    return subprocess.Popen(  # noqa: S603  # our own interpreter and module
        [sys.executable, "-P", "-c", boot, *arguments],
        env={**inherited, **variables},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=start_new_session,
    )


def thread_limits(count: int) -> dict[str, str]:
    """The variables that give a child so many threads."""
    return dict.fromkeys(_THREADS, str(count))


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send us this signal when `parent` dies; ends this process if it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def another_number_of_threads() -> int:
    """One that this process does not use, so that a result cannot hang on it; half as many, for both work at a time."""
    return max(1, threads() // 2) if threads() > 1 else 2


def error_line(error: CkzdError) -> str:
    """An error as one line of JSON, the last that a child writes to stderr."""
    said = {"error": type(error).__name__, "subject": error.subject, "problem": error.problem, "hint": error.hint}
    return json.dumps(said)


def error_of(subject: Path, returncode: int, stderr: str) -> CkzdError:
    """The child's last line on stderr, if it is one of our errors as JSON, else what it said."""
    lines = stderr.strip().splitlines() or ["it said nothing"]
    try:
        said = json.loads(lines[-1])
        kind = getattr(errors, said["error"])
        return _checked(kind(said["subject"], said["problem"], hint=said["hint"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return CkzdError(subject, f"the process that worked on it ended with {returncode}: {lines[-1]}")


def _checked(error: object) -> CkzdError:
    if not isinstance(error, CkzdError):
        raise TypeError(error)
    return error
