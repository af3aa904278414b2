"""What fails on the command line: told as it comes, and in the end an exit code."""

import errno
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from ckzd.errors import EXIT_DONE, EXIT_SOME_FAILED, CkzdError, NoSpace, StoreLocked
from ckzd.screen import Screen

T = TypeVar("T")


def as_ckzd_error(error: CkzdError | OSError) -> CkzdError:
    """What the system said, as one of our errors, where nobody nearer to it has said it better."""
    if isinstance(error, CkzdError):
        return error
    subject = error.filename if error.filename is not None else "the system"
    problem = (error.strerror or str(error) or type(error).__name__).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(os.fsdecode(subject), problem, hint="free some space and run it again; nothing was lost")
    return CkzdError(os.fsdecode(subject), problem)


def for_each(things: Iterable[T], action: Callable[[T], None], screen: Screen, *fatal: type[CkzdError]) -> int:
    """Do `action` for everything, report the failures as they come, and say by the exit code how many there were.

    What would stop the next one too ends the loop: a full disk, a locked store, and what else is `fatal`.
    """
    codes = []
    for thing in things:
        try:
            action(thing)
            codes.append(EXIT_DONE)
        except (CkzdError, OSError) as failure:
            error = as_ckzd_error(failure)
            codes.append(screen.error(error))
            if isinstance(error, (NoSpace, StoreLocked, *fatal)):
                break
    failures = [code for code in codes if code != EXIT_DONE]
    if not failures:
        return EXIT_DONE
    return EXIT_SOME_FAILED if EXIT_DONE in codes else failures[0]
