"""SIGKILL, EIO and ENOSPC at every system call that changes the disk: nothing is lost, and nothing half-done stays.

    python tests/crash/campaign.py [--every N] [--scenario NAME]... [--fault NAME]... [--call NAME:NUMBER]...

Each blow is followed by the same command twice and by a start of the daemon. Every checkpoint must then be the
original, or be replaced by a pointer from which it restores without a cache, and already right after the blow, or a
daemon that starts then puts it back; and no name may lie there that DESIGN.md does not know. Exit status 1 if something
was lost or a half-done thing stays.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import forks
from scenes import SCENARIOS, Scenario, Stage, train

from ckzd.daemon import filesystems

WHOLE = {"original", "replaced", "pruned", "weights"}  # what a checkpoint may be in the end
FAULTS = {"kill": "signal=KILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}


@dataclass(frozen=True)
class Blow:
    """One fault at one call of one process."""

    role: str
    nth: int
    call: forks.Call
    fault: str

    @property
    def aim(self) -> forks.Aim:
        return forks.Aim(self.role, self.nth, f"{self.call.name}:{FAULTS[self.fault]}:when={self.call.number}")

    def __str__(self) -> str:
        return f"{self.fault} at {self.role} {self.call.name}:{self.call.number}"


@dataclass(frozen=True)
class Outcome:
    """What a blow did: the call that it struck, states after it and at the end, what stays half-done."""

    struck: str | None
    states: tuple[str, ...]
    end: tuple[str, ...]
    leftovers: tuple[str, ...]
    statuses: tuple[int, ...]

    @property
    def lost(self) -> list[str]:
        return [state for state in (*self.states, *self.end) if "LOST" in state]

    @property
    def half_done(self) -> list[str]:
        return [*(state for state in self.end if state not in WHOLE), *self.leftovers]


def blows(stage: Stage, faults: list[str]) -> list[Blow]:
    """Every fault at every call, as an undisturbed command makes them."""
    found = []
    for role, nth in stage.scenario.targets:
        stage.reset()
        calls = stage.run(stage.scenario.command, forks.Aim(role, nth)).calls
        found += [Blow(role, nth, call, fault) for call in calls for fault in faults]
    return found


def strike(stage: Stage, blow: Blow) -> Outcome:
    """Strike once, look, run the command twice more, start a daemon, look again."""
    stage.reset()
    first = stage.run(stage.scenario.command, blow.aim)
    struck = next((call.text for call in first.calls if call.was_struck), None)
    strange = stage.unnamed()
    states = [] if stage.scenario.rotten else stage.states()  # what the disk has done is healed by the end
    again = [stage.run(stage.scenario.command) for _ in range(2)]
    daemon = stage.start_a_daemon()
    statuses = tuple(finished.status for finished in (first, *again, daemon))
    return Outcome(struck, tuple(states), tuple(stage.states()), (*stage.leftovers(), *strange), statuses)


def go(scenario: Scenario, trained: Path, arguments: argparse.Namespace) -> bool:
    """All blows of one scenario; whether all went well."""
    began, cpu = time.monotonic(), os.times()
    stage = Stage(scenario, trained)
    stage.build()
    todo = blows(stage, arguments.fault or list(FAULTS))
    if arguments.call:
        todo = [blow for blow in todo if f"{blow.call.name}:{blow.call.number}" in arguments.call]
    todo = todo[:: arguments.every]
    ends: Counter[str] = Counter()
    lost = half_done = missed = 0
    for blow in todo:
        outcome = strike(stage, blow)
        if outcome.struck is None:
            missed += 1
            print(f"  {scenario.name}: {blow}: not struck", flush=True)
        ends.update(outcome.end)
        lost += bool(outcome.lost)
        half_done += bool(outcome.half_done) and not outcome.lost
        if problems := outcome.lost or outcome.half_done:
            said = "; ".join(dict.fromkeys(problems))
            print(f"  {scenario.name}: {blow}: {said}\n    {outcome.struck}, then {outcome.statuses}", flush=True)
    now = os.times()
    seconds = sum((now.user - cpu.user, now.system - cpu.system, now.children_user - cpu.children_user))
    said = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    print(
        f"{scenario.name}: {len(todo)} blows, {len(todo) - missed} struck; lost {lost}, half-done {half_done};"
        f" checkpoints at the end: {said}; {time.monotonic() - began:.0f} s, {seconds:.0f} s CPU",
        flush=True,
    )
    return not (lost or half_done) and len(todo) > missed


def machine(place: str) -> str:
    """What the blows fell on."""
    strace = (
        subprocess.run(["strace", "-V"], capture_output=True, text=True, check=True)
        .stdout.splitlines()[0]
        .replace("-- version ", "")
    )
    system, cores = platform.uname(), len(os.sched_getaffinity(0))
    kind = filesystems.kind(Path(place))
    return f"{system.system} {system.release}, {cores} cores, Python {platform.python_version()}, {strace}, on {kind}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth blow (no multiple of 3)")
    parser.add_argument("--scenario", action="append", choices=[s.name for s in SCENARIOS], help="only this one")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only this one")
    parser.add_argument("--call", action="append", help="only this one, such as rename:3")
    arguments = parser.parse_args()
    if shutil.which("strace") is None:
        parser.error("needs strace")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # each fsync of a disk takes milliseconds
    wanted = [s for s in SCENARIOS if not arguments.scenario or s.name in arguments.scenario]
    with tempfile.TemporaryDirectory(dir=memory, prefix="ckzd-crash-") as trained:
        print(machine(trained), flush=True)
        train(Path(trained))
        well = [go(scenario, Path(trained), arguments) for scenario in wanted]
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
