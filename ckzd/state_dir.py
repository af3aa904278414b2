"""Where ckzd keeps what is of no single store: the daemon's journal, and notes of models that archives need."""

import os
from contextlib import suppress
from pathlib import Path

OF_THE_SYSTEM = Path("/var/lib/ckzd")  # systemd's StateDirectory=ckzd, and the container's


def default_state_dir() -> Path:
    """$STATE_DIRECTORY of systemd (the first, if it lists several), else the XDG state directory."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(given) if given else _of_the_user()


def state_dirs() -> tuple[Path, ...]:
    """Where other processes on this machine may keep theirs: a daemon of the system, and commands of this user.

    This process's own comes first, if it has one.
    """
    places = []
    for place in (default_state_dir, _of_the_user):
        with suppress(RuntimeError):  # a user without a home
            places.append(place())
    return tuple(dict.fromkeys((*places, *(place for place in (OF_THE_SYSTEM,) if place.is_dir()))))


def _of_the_user() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "ckzd"
