"""The states of a checkpoint in the daemon, which may follow which, and the journal's row.

```
seen -> settled -> encoding -> written -> verified -> replaced
                      |-> failed (again later) -> quarantined (no more, until it is rewritten)
                      |-> restored (its archive existed: somebody had it restored; left alone while in use)
settled -> skipped (left raw: the run is faster than we are) -> settled
any archived state -> rotated (the framework deleted it, or wrote another one in its place)
```
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ckzd.daemon.identity import Identity


class State(StrEnum):
    """Where a checkpoint stands."""

    SEEN = "seen"
    SETTLED = "settled"
    ENCODING = "encoding"
    WRITTEN = "written"
    VERIFIED = "verified"
    REPLACED = "replaced"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    SKIPPED = "skipped"
    RESTORED = "restored"
    ROTATED = "rotated"


WAITING = frozenset({State.SETTLED, State.FAILED})  # to be compressed, now or after the back-off
RUNNING = frozenset({State.ENCODING, State.WRITTEN})
ARCHIVED_AND_THERE = frozenset({State.VERIFIED, State.RESTORED})  # its original stands in its place
ARCHIVED = frozenset({State.VERIFIED, State.REPLACED, State.RESTORED, State.ROTATED})
MOVES: dict[State, frozenset[State]] = {
    State.SEEN: frozenset({State.SETTLED}),
    State.SETTLED: frozenset({State.SEEN, State.ENCODING, State.SKIPPED, State.FAILED}),
    State.ENCODING: frozenset(State) - {State.ROTATED, State.SKIPPED, State.REPLACED},
    State.WRITTEN: frozenset(State) - {State.ROTATED, State.SKIPPED, State.REPLACED},
    State.VERIFIED: frozenset({State.REPLACED, State.ROTATED, State.SETTLED}),
    State.RESTORED: frozenset({State.REPLACED, State.ROTATED, State.SETTLED}),
    State.REPLACED: frozenset({State.ROTATED, State.RESTORED}),
    State.FAILED: frozenset({State.SEEN, State.SETTLED, State.ENCODING, State.QUARANTINED, State.SKIPPED}),
    State.QUARANTINED: frozenset({State.SETTLED}),
    State.SKIPPED: frozenset({State.SEEN, State.SETTLED}),
    State.ROTATED: frozenset({State.SETTLED}),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint as it stands in the journal. Times are seconds since the epoch."""

    number: int
    run: Path
    path: Path
    identity: Identity
    state: State
    step: int | None
    attempts: int  # times that it failed or its worker died, since it was last archived
    crashes: int  # times that this daemon died while it was compressed
    not_before: float
    error: str
    in_place_of_replaced: bool  # when it was first seen, a replaced checkpoint of this path was known
    archive: Path | None
    reference: Path | None
    original_bytes: int
    archive_bytes: int
    reclaimed_bytes: int
    seconds: float
    first_seen: float
    changed: float
