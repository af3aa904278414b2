"""A process that forks victims: each runs one operation and dies, or fails, at a chosen instant.

One order a line on stdin (JSON), one answer a line on stdout. Started once per test module: a fork costs a
millisecond, an interpreter half a second. Nothing of the product knows of it; the instants are calls of `os`.
"""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

from ckzd import durable
from ckzd.operations.check import check
from ckzd.operations.places import Asked, places
from ckzd.operations.replace import empty_trash, recover, replace
from ckzd.store import Store

CHANGING_CALLS = ("replace", "rename", "link", "unlink", "rmdir", "mkdir", "utime", "chown")


class Calls:
    """Counts the calls that change the disk, and strikes at the chosen one.

    A kill loses nothing that was written, so an fsync counts only where calls are to fail.
    """

    def __init__(self, order: dict) -> None:
        self.die_at, self.fail_at = order.get("die_at", 0), order.get("fail_at", 0)
        self.error = getattr(errno, order.get("error", "EIO"))
        self.count = 0

    def strike(self) -> None:
        self.count += 1
        if self.count == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == self.fail_at:
            raise OSError(self.error, os.strerror(self.error))

    def wrap(self, owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments, **keywords):
            self.strike()
            return real(*arguments, **keywords)

        setattr(owner, name, call)

    def install(self) -> None:
        for name in (*CHANGING_CALLS, *(["fsync"] if self.fail_at else [])):
            self.wrap(os, name)
        self.wrap(durable, "_renameat2")
        real = os.open

        def opened(path, flags, *arguments, **keywords):
            if flags & os.O_CREAT:
                self.strike()
            return real(path, flags, *arguments, **keywords)

        os.open = opened


def no_flags(source: Path, target: Path, flags: int) -> None:
    """As NFS does: neither RENAME_NOREPLACE nor RENAME_EXCHANGE."""
    if not os.path.lexists(source):
        raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
    raise OSError(errno.EINVAL, "invalid argument", str(source))


def obey(order: dict) -> object:
    store = Store.open(Path(order["store"]))

    def on_step(name: str) -> None:
        if name == order.get("die_after"):
            os.kill(os.getpid(), signal.SIGKILL)

    if order.get("no_flags"):
        durable._renameat2 = no_flags
    calls = Calls(order)
    calls.install()
    if order["do"] == "replace":
        result: object = replace(Path(order["checkpoint"]), Path(order["archive"]), store, on_step=on_step)
    elif order["do"] == "recover":
        result = recover(store)
    elif order["do"] == "check":
        found = check(places(Asked(Path(path)) for path in order["paths"]))
        result = [(outcome.archive, outcome.outcome) for outcome in found]
    else:
        result = empty_trash(store, 0.0, time.time() + 1)
    return {"result": result, "calls": calls.count}


def answer(order: dict) -> object:
    try:
        return obey(order)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test wants to see it
        return {"error": type(error).__name__, "message": str(error)}


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(into, json.dumps(answer(order)).encode())
            os._exit(0)
        os.close(into)
        with os.fdopen(out) as pipe:
            said = pipe.read()
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"killed": killed, **json.loads(said or "{}")}), flush=True)


main()
