"""A command that the user gave: how its text becomes words, and how it runs without doing harm.

    we ── guard, the head of a process group of its own ── command ── whatever it starts

When the command has ended or its time is up, we end the group; when we die, the guard does. So nothing is left running
but what makes a session of its own. There is no shell: who wants one writes `sh -c '...'`.
`python -m ckzd.operations.command WORD...` is the guard: it says on stdout how the command ended.
"""

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckzd.errors import ConfigError
from ckzd.operations.child import die_with_parent, start_module
from ckzd.priority import FairClock, carry_into_session

DEFAULT_SECONDS = 1800.0  # an evaluation of a restored model takes minutes
GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL of what takes too long
LAST_LINES, MAX_TAIL_BYTES = 10, 4096  # of its output, which says why
_PIPE_BYTES = 1 << 16  # what a pipe holds at most
_POLL_SECONDS = 1.0  # a fair clock wants to be looked at


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: its exit status (negative: by this signal), or None if it took too long."""

    status: int | None
    last_lines: tuple[str, ...]


def command_words(command: str | Sequence[str]) -> tuple[str, ...]:
    """The words of a command; a text is split as by a POSIX shell that knows only spaces, quotes and backslashes.

    Raises ValueError for an open quote, a NUL, or no program at all: what came from an empty variable is a mistake.
    """
    try:
        words = tuple(shlex.split(command) if isinstance(command, str) else command)
    except ValueError as error:
        raise ValueError(f"expected a command, got {command!r}: {str(error).lower()}") from None
    if not words or not words[0] or any("\0" in word for word in words):
        raise ValueError(f"expected a command, got {command!r}")
    return words


def require_program(words: Sequence[str]) -> None:
    """Raise ConfigError unless the first word is a program here."""
    if shutil.which(words[0]) is None:
        problem = f"expected a program, got {words[0]!r}, which is not in PATH or not executable"
        raise ConfigError("accept_command", problem, hint="name it by its whole path")


def run(words: Sequence[str], variables: Mapping[str, str], seconds: float) -> Outcome:
    """Run a command with these variables set, at most so long: then it gets SIGTERM, and SIGKILL ten seconds later.

    What it waits for a core does not count: it stands back as we do.
    """
    pipe = subprocess.PIPE
    with start_module(
        "ckzd.operations.command", words, variables, stdout=pipe, stderr=pipe, start_new_session=True
    ) as guard:
        try:
            answer, tail = _listen(guard, seconds, b"")
            if answer is None:
                os.killpg(guard.pid, signal.SIGTERM)
                _, tail = _listen(guard, GRACE_SECONDS, tail)
        finally:
            os.killpg(guard.pid, signal.SIGKILL)  # nobody has waited for the guard yet: the group is still its own
    lines = [line.rstrip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
    status = int(answer) if answer else guard.returncode  # the command may have killed its whole group
    return Outcome(status if answer is not None else None, tuple(lines[-LAST_LINES:]))


def _listen(guard: subprocess.Popen[bytes], seconds: float, tail: bytes) -> tuple[bytes | None, bytes]:
    """Until the guard answers (not: until all output is closed) or time is up; the answer, and what was said last."""
    assert guard.stdout is not None
    assert guard.stderr is not None
    answer, output = guard.stdout.fileno(), guard.stderr.fileno()
    listening = select.poll()
    for descriptor in (answer, output):  # looked at in this order: what was said before the answer is not missed
        listening.register(descriptor, select.POLLIN)
    clock = FairClock(guard.pid)
    while True:
        left = seconds - clock.seconds()
        ready = {descriptor for descriptor, _ in listening.poll(1000 * min(max(left, 0.0), _POLL_SECONDS))}
        if output in ready:
            tail = (tail + os.read(output, _PIPE_BYTES))[-MAX_TAIL_BYTES:]
        if answer in ready:
            return os.read(answer, _PIPE_BYTES), tail
        if left <= 0:
            return None, tail


def _guard(words: list[str]) -> None:
    """Run the command in this process's group, and end the group if our parent dies."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # it is for the command, which would inherit SIG_IGN
    signal.signal(signal.SIGHUP, lambda *_: os.killpg(0, signal.SIGKILL))
    die_with_parent(os.getppid(), signal.SIGHUP)
    carry_into_session()
    try:
        status = subprocess.call(words, stdout=sys.stderr)  # noqa: S603  # it is the user's own
    except OSError as error:
        sys.exit(str(error))
    print(status, flush=True)  # noqa: T201  # the parent reads it


if __name__ == "__main__":
    _guard(sys.argv[1:])
