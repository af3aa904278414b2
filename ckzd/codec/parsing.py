"""Small pieces that streams are made of: LEB128 integers, JSON objects. Reading raises ValueError or IndexError.

A LEB128 integer has seven bits a byte, lowest first, and the top bit set on all but the last.
"""

import json
from typing import Any

_MAX_LEB_BYTES = 9  # 63 bits


def write_leb(value: int) -> bytes:
    """The shortest spelling."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def read_leb(data: bytes, start: int) -> tuple[int, int]:
    """The integer at `start`, and where it ends."""
    value = 0
    for position in range(_MAX_LEB_BYTES):
        byte = data[start + position]
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value, start + position + 1
    raise ValueError(f"an integer of more than {_MAX_LEB_BYTES} bytes")


def read_json(data: bytes, at_most_values: int) -> dict[str, Any]:
    """A JSON object, and nothing else: a value takes some 70 bytes of memory, and three of its text."""
    values = sum(map(data.count, (b",", b"[", b"{")))
    if values > at_most_values:
        raise ValueError(f"JSON of {values} values, at most {at_most_values} are possible")
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, got {type(document).__name__}")  # noqa: TRY004  # of bad bytes
    return document
