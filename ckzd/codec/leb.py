"""Unsigned LEB128 integers: seven bits a byte, lowest first, the top bit set on all but the last."""

_MAX_BYTES = 9  # 63 bits


def write_leb(value: int) -> bytes:
    """The shortest spelling."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def read_leb(data: bytes, start: int) -> tuple[int, int]:
    """The integer at `start`, and where it ends; IndexError or ValueError if there is none."""
    value = 0
    for position in range(_MAX_BYTES):
        byte = data[start + position]
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value, start + position + 1
    raise ValueError(f"an integer of more than {_MAX_BYTES} bytes")
