"""When is a checkpoint finished? Complete by its framework's rule, parsing whole, and unchanged for the settle time.

"File closed" proves nothing (renames, links and copies give no such event) and neither does a stable size (writers
allocate first), so all three are asked, and the files are looked at once more after they were read.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ckzd import formats
from ckzd.daemon.clock import Clock
from ckzd.daemon.identity import Fingerprint, fingerprint
from ckzd.errors import CkzdError
from ckzd.formats.frameworks.lightning import best_models
from ckzd.formats.rankings import Ranking, rankings

log = logging.getLogger(__name__)

READ_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Settled:
    """The checkpoint is finished; `fingerprint` is what was looked at."""

    fingerprint: Fingerprint
    step: int | None


@dataclass(frozen=True, slots=True)
class Unsettled:
    """Not yet, and why; look again in `again_seconds`, or when something has changed (None)."""

    reason: str
    again_seconds: float | None


@dataclass(frozen=True, slots=True)
class _Look:
    fingerprint: Fingerprint
    since: float  # monotonic: unchanged at least from here on
    refused: str = ""  # why exactly these files do not parse; they are not parsed again


class NotReadYet(CkzdError):
    """A rule that reads elsewhere has no answer yet: ask again in a moment."""

    retryable = True


class Rule(Protocol):
    """What a finished checkpoint is, apart from time. Each may raise NotReadYet."""

    def completeness(self, checkpoint: Path) -> str | None:
        """None if it is complete by its framework's rule, else what is missing."""
        ...

    def parse(self, checkpoint: Path) -> int | None:
        """Read it to its end and return its step; CkzdError if it is damaged or half-written."""
        ...

    def best_models(self, checkpoint: Path) -> list[str]:
        """Names of the checkpoints that Lightning's callbacks in it call their best; CkzdError if it is damaged."""
        ...

    def rankings(self, checkpoint: Path) -> list[Ranking]:
        """What savers in it keep of the best checkpoints beside it; CkzdError if it is damaged."""
        ...


class FormatsRule:
    """The rules of the frameworks, as `ckzd.formats` knows them."""

    def completeness(self, checkpoint: Path) -> str | None:
        """None if it is complete by its framework's rule, else what is missing."""
        return formats.completeness(checkpoint)

    def parse(self, checkpoint: Path) -> int | None:
        """Read it to its end and return its step; CkzdError if it is damaged or half-written."""
        parsed = formats.read_checkpoint(checkpoint)
        close = getattr(parsed.source, "close", None)  # a source may hold descriptors; the Protocol asks for none
        if close is not None:
            close()
        return parsed.step

    def best_models(self, checkpoint: Path) -> list[str]:
        """Names of the checkpoints that Lightning's callbacks in it call their best; CkzdError if it is damaged."""
        return best_models(checkpoint)

    def rankings(self, checkpoint: Path) -> list[Ranking]:
        """What savers in it keep of the best checkpoints beside it; CkzdError if it is damaged."""
        return rankings(checkpoint)


class Settler:
    """Remembers how each checkpoint looked the last time."""

    def __init__(self, clock: Clock, rule: Rule) -> None:
        self._clock = clock
        self._rule = rule
        self._looks: dict[Path, _Look] = {}

    def look(self, checkpoint: Path, settle_seconds: float) -> Settled | Unsettled:
        """Look once more. It takes two looks without a change, `settle_seconds` or more apart."""
        now = self._clock.monotonic()
        try:
            seen = fingerprint(checkpoint)
        except OSError as error:
            self._looks.pop(checkpoint, None)
            return Unsettled(f"cannot be looked at: {error.strerror}", settle_seconds)
        last = self._looks.get(checkpoint)
        if last is None or last.fingerprint != seen:
            self._looks[checkpoint] = _Look(seen, now)
            return Unsettled("has just appeared or changed", settle_seconds)
        remaining = settle_seconds - (now - last.since)
        if remaining > 0:
            return Unsettled(f"unchanged for {now - last.since:.0f} of {settle_seconds:g} s", remaining)
        return self._judge(checkpoint, last)

    def look_once(self, checkpoint: Path, settle_seconds: float) -> Settled | Unsettled:
        """Judge by the files' age instead of two looks, for a pass that does not wait."""
        try:
            seen = fingerprint(checkpoint)
        except OSError as error:
            return Unsettled(f"cannot be looked at: {error.strerror}", None)
        age = self._clock.time() - seen.newest_mtime_ns / 1e9
        if age < settle_seconds:
            return Unsettled(f"written {age:.0f} s ago, settles after {settle_seconds:g} s", None)
        return self._judge(checkpoint, _Look(seen, self._clock.monotonic()))

    def forget_all_but(self, checkpoints: Iterable[Path]) -> None:
        """Drop the memory of checkpoints that are gone or need no more looks."""
        kept = set(checkpoints)
        self._looks = {path: look for path, look in self._looks.items() if path in kept}

    def _judge(self, checkpoint: Path, look: _Look) -> Settled | Unsettled:
        try:
            return self._judged(checkpoint, look)
        except NotReadYet as error:
            return Unsettled(str(error), READ_AGAIN_SECONDS)

    def _judged(self, checkpoint: Path, look: _Look) -> Settled | Unsettled:
        missing = self._rule.completeness(checkpoint)  # may hang on files outside the checkpoint: asked every time
        if missing is not None:
            return Unsettled(missing, None)
        if look.refused:
            return Unsettled(look.refused, None)
        try:
            step = self._rule.parse(checkpoint)
        except NotReadYet:
            raise
        except CkzdError as error:
            if not error.retryable:
                log.warning("left alone", extra={"checkpoint": str(checkpoint), "why": str(error)})
                look = replace(look, refused=str(error))
            self._looks[checkpoint] = look
            return Unsettled(str(error), None)
        try:
            unchanged = fingerprint(checkpoint) == look.fingerprint
        except OSError:
            unchanged = False
        if not unchanged:
            self._looks.pop(checkpoint, None)
            return Unsettled("changed while it was read", 0.0)
        return Settled(look.fingerprint, step)
