"""Reads foreign bytes for the service in another process, which may be slow, grow, or die of them: the service may not.

The process stays alive between questions. What takes longer than a moment is answered at a later look; what takes
longer than its limit is killed, and its checkpoint refused.
"""

import json
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from ckzd.daemon.identity import Fingerprint, fingerprint
from ckzd.daemon.processes import start_with_pipe
from ckzd.daemon.reading import MAX_BYTES
from ckzd.daemon.settle import NotReadYet
from ckzd.errors import BadCheckpoint, SourceChanged
from ckzd.formats.rankings import Ranking
from ckzd.operations.child import error_of, thread_limits
from ckzd.priority import FairClock

READ_SECONDS = 20.0  # of one checkpoint; headers and pickles of the largest take a few
WAIT_SECONDS = 0.2  # that the service gives to one question; most take thousandths
POLL_SECONDS = 0.2
MAX_KEPT = 1000  # answers that nobody has come for yet

Question = tuple[str, Path, Fingerprint]


class Reader:
    """A `Rule` that asks the reading process. `patient`: for a pass that does not look again."""

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._question: Question | None = None  # asked and not answered
        self._clock: FairClock | None = None  # since it was asked
        self._wait_until = 0.0  # monotonic
        self._answers: dict[Question, dict[str, Any] | BadCheckpoint] = {}

    def __enter__(self) -> Self:
        self._start()  # before it is needed: it loads itself meanwhile
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def completeness(self, checkpoint: Path) -> str | None:
        """None if it is complete by its framework's rule, else what is missing."""
        found = self._ask("completeness", checkpoint)
        return None if found is None else str(found)

    def parse(self, checkpoint: Path) -> int | None:
        """Read it to its end and return its step; CkzdError if it is damaged or half-written."""
        found = self._ask("parse", checkpoint)
        return None if found is None else int(found)

    def best_models(self, checkpoint: Path) -> list[str]:
        """Names of the checkpoints that Lightning's callbacks in it call their best; CkzdError if it is damaged."""
        return [str(name) for name in self._ask("best_models", checkpoint)]

    def rankings(self, checkpoint: Path) -> list[Ranking]:
        """What savers in it keep of the best checkpoints beside it; CkzdError if it is damaged."""
        return [Ranking(saver, scores) for saver, scores in self._ask("rankings", checkpoint)]

    def _ask(self, kind: str, checkpoint: Path) -> Any:
        try:
            question = kind, checkpoint, fingerprint(checkpoint)
        except OSError as error:
            raise SourceChanged(checkpoint, "is not there") from error
        if question not in self._answers and self._question != question:
            self._wait()
            self._begin(question)
        if question not in self._answers:
            self._wait()
        if question not in self._answers:
            raise NotReadYet(checkpoint, "is being read")
        found = self._answers.pop(question)
        if isinstance(found, BadCheckpoint):
            raise found
        if "error" in found:
            raise error_of(checkpoint, 0, found["error"])
        return found["value"]

    def _begin(self, question: Question) -> None:
        if self._question is not None:
            same = self._question[1] == question[1]
            raise NotReadYet(question[1], "is being read" if same else "waits while another checkpoint is read")
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._pipe is not None
        assert self._process is not None
        try:
            self._pipe.send_bytes(json.dumps([question[0], str(question[1])]).encode())
        except OSError as error:
            raise NotReadYet(question[1], "is not read: the process for it has just ended") from error
        self._question, self._clock = question, FairClock(self._process.pid)
        self._wait_until = time.monotonic() + WAIT_SECONDS

    def _wait(self) -> None:
        """For the answer to the open question, if there is one. No question makes the service wait twice."""
        while self._question is not None:
            remaining = POLL_SECONDS if self._patient else max(0.0, self._wait_until - time.monotonic())
            self._receive(min(remaining, POLL_SECONDS))
            if remaining == 0:
                return

    def _receive(self, seconds: float) -> None:
        assert self._pipe is not None
        assert self._clock is not None
        assert self._question is not None
        question = self._question
        try:
            if self._pipe.poll(seconds):
                found = json.loads(self._pipe.recv_bytes())
                if found["last"]:
                    self._end()
                self._keep(question, found)
            elif self._clock.seconds() > READ_SECONDS:
                self._end()
                problem = f"cannot be read within {READ_SECONDS:.0f} s and {MAX_BYTES} bytes"
                self._keep(question, BadCheckpoint(question[1], problem, hint="it stays as it is"))
        except (EOFError, OSError):
            self._end()
            raise NotReadYet(question[1], "was not read: the process for it was killed") from None

    def _keep(self, question: Question, found: dict[str, Any] | BadCheckpoint) -> None:
        self._question = None
        self._answers[question] = found
        if len(self._answers) > MAX_KEPT:
            self._answers.pop(next(iter(self._answers)))

    def _start(self) -> None:
        self._end()
        self._process, self._pipe = start_with_pipe("ckzd.daemon.reading", [], thread_limits(1))

    def _end(self) -> None:
        """Kill the process, if there is one; what it was asked is forgotten."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = self._question = None
