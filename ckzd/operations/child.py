"""Python in a fresh process, and its errors back as the errors that they were.

A restore must not depend on what this process has loaded or set (a trainer's default dtype, its threads), and an
encoder must not check its own work. The child gets our environment and a number of threads of its own.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ckzd
from ckzd import errors
from ckzd.codec.parallel import threads
from ckzd.errors import CkzdError

# -P keeps the working directory off the path: a `random.py` beside somebody's checkpoints must not be ours
_BOOT = """
import runpy, sys
sys.path += [] if {place!r} in sys.path else [{place!r}]
from ckzd.operations.child import die_with_parent
die_with_parent({parent})
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
_PLACE = str(Path(ckzd.__file__).resolve().parent.parent)
_PR_SET_PDEATHSIG = 1
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_module(module: str, arguments: Sequence[str], *, subject: Path) -> None:
    """Run `python -m MODULE ARGUMENTS` to its end; raises what it said on stderr (see `error_line`), else CkzdError."""
    with _started(module, arguments, {}) as child:
        _finish(child, "", subject)


@contextmanager
def waiting_module(module: str, *, count: int) -> Iterator[Callable[[str, Path], None]]:
    """Start `python -m MODULE`, which loads itself and then reads on stdin what to do.

    Called with that and its subject, it does as `run_module`; it is killed if it was not called. What to do is one
    line: the end of stdin does not come as long as a process lives that was forked from this one meanwhile.
    """
    with _started(module, [], dict.fromkeys(_THREADS, str(count))) as child:
        yield partial(_finish, child)


@contextmanager
def _started(module: str, arguments: Sequence[str], variables: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(  # noqa: S603  # our own interpreter and module
        module_command(module, arguments),
        env=environment_with(variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _finish(child: "subprocess.Popen[str]", line: str, subject: Path) -> None:
    _, said = child.communicate(line + "\n")
    if child.returncode != 0:
        raise error_of(subject, child.returncode, said)


def module_command(module: str, arguments: Sequence[str]) -> list[str]:
    """The words of `python -m MODULE ARGUMENTS` in a process that is killed when we die."""
    boot = _BOOT.format(place=_PLACE, parent=os.getpid(), module=module)
    return [sys.executable, "-P", "-c", boot, *arguments]


def environment_with(variables: Mapping[str, str]) -> dict[str, str]:
    """Our environment for a child, with these variables set."""
    return {**os.environ, **variables}


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send us this signal when `parent` dies; ends this process if it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def another_number_of_threads() -> int:
    """One that this process does not use, so that a result cannot hang on it."""
    return threads() + 1


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
