"""Small files that others leave beside checkpoints (markers, states in JSON): read whole, or taken for nothing.

Anything may stand under such a name. Nothing here raises, waits for a pipe, opens a device or follows a link, and what
is read is bounded: one odd file stops nothing but itself.
"""

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from ckzd.formats.source import OPEN_FLAGS, read_exactly

MAX_MARKER_BYTES = 64 << 10  # a name or a number (`latest` of DeepSpeed), or best.json with a history
MAX_JSON_BYTES = 64 << 20  # trainer_state.json grows with the log history
MAX_JSON_VALUES = 4_000_000  # one for about 16 bytes; at worst 0.5 GB (objects of one member) and a second


def read_small(path: Path, at_most: int) -> bytes | None:
    """All bytes of a regular file of at most so many; None for everything else, and for what cannot be read."""
    with suppress(OSError, ValueError):  # ValueError: a NUL in the name
        if not stat.S_ISREG(os.lstat(path).st_mode):  # to open a device may do something already
            return None
        descriptor = os.open(path, OPEN_FLAGS)
        try:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_size <= at_most:
                return read_exactly(descriptor, 0, found.st_size)
        finally:
            os.close(descriptor)
    return None


def marker_text(path: Path) -> str:
    """What a marker file says, "" if it is none: `last.pt` may be a small checkpoint, whose bytes say anything.

    A name in it that is not UTF-8 reads as `os.listdir` gives it.
    """
    data = read_small(path, MAX_MARKER_BYTES) or b""
    return "" if b"\0" in data else data.decode("utf-8", "surrogateescape")


def json_file(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none."""
    data = read_small(path, MAX_JSON_BYTES)
    with suppress(ValueError):
        return None if data is None else json_object(data)
    return None


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that these bytes spell; ValueError, saying why, for all else. Bounded in size and depth."""
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"{len(data)} bytes, at most {MAX_JSON_BYTES} are read")
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise ValueError(f"more than {MAX_JSON_VALUES} values")
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError as error:  # some hundred levels, by what the stack holds already
        raise ValueError("nested too deeply") from error
    except MemoryError as error:
        raise ValueError("asks for too much memory") from error
    if not isinstance(value, dict):
        raise ValueError("no object")  # noqa: TRY004  # of bad bytes
    return value
