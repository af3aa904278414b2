"""safetensors files: the header is kept verbatim, each tensor is a hole."""

import json
from collections.abc import Iterator
from math import prod
from typing import Any

from ckzd.checkpoint import STORED_AS, TensorSpec
from ckzd.errors import BadCheckpoint
from ckzd.formats.parsed import Found, ParsedFile, collect
from ckzd.formats.source import FileView
from ckzd.formats.tree import MAX_PATH_CHARACTERS, label

MAX_HEADER_BYTES = 100_000_000  # the limit of the format itself
MAX_HEADER_VALUES = 2_000_000  # a tensor has 7, and the largest models some 100,000 tensors; 8 seconds
MAX_DIMENSIONS = 64
MAX_SIZE = 1 << 56

# The format's dtype -> torch's name, bits of an element.
DTYPES = {
    "F64": ("float64", 64),
    "F32": ("float32", 32),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I64": ("int64", 64),
    "I32": ("int32", 32),
    "I16": ("int16", 16),
    "I8": ("int8", 8),
    "U64": ("uint64", 64),
    "U32": ("uint32", 32),
    "U16": ("uint16", 16),
    "U8": ("uint8", 8),
    "BOOL": ("bool", 8),
    "C64": ("complex64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F6_E2M3": ("float6_e2m3", 6),
    "F6_E3M2": ("float6_e3m2", 6),
    "F4": ("float4_e2m1fn_x2", 4),
}


def parse(view: FileView) -> ParsedFile:
    """Read the header. BadCheckpoint unless its tensors cover the rest of the file exactly, without overlap."""
    start, header = _header(view)
    found = sorted(_tensors(view, header), key=lambda one: (one.offset, one.tensor.nbytes))
    position = 0
    for one in found:
        if one.offset != position:
            raise BadCheckpoint(view.subject, f"tensor {_name(one)}: expected at {position}, got {one.offset}")
        position += one.tensor.nbytes
    if start + position != view.size:
        raise BadCheckpoint(view.subject, f"expected {start + position} bytes by its header, got {view.size}")
    return collect((Found(one.tensor, start + one.offset) for one in found), view.subject, view.size)


def header_bytes(view: FileView) -> int:
    """Length of the header; BadCheckpoint if it cannot be one."""
    if view.size < 8:
        raise BadCheckpoint(view.subject, f"a safetensors file of {view.size} bytes: cut off, or still being written")
    length = int.from_bytes(view.read(0, 8), "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise BadCheckpoint(view.subject, f"header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    if 8 + length > view.size:
        raise BadCheckpoint(view.subject, f"header of {length} bytes in a file of {view.size}")
    return length


def looks_like(start: bytes) -> bool:
    """Whether a file that begins with these 9 bytes may be one: a header length that is allowed, then "{"."""
    return len(start) >= 9 and 2 <= int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES and start[8:9] == b"{"


def _header(view: FileView) -> tuple[int, dict[str, Any]]:
    """(where the tensors start, the header without its metadata)."""
    length = header_bytes(view)
    raw = view.read(8, length)
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_HEADER_VALUES:
        raise BadCheckpoint(view.subject, f"header of more than {MAX_HEADER_VALUES} values")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(view.subject, f"damaged safetensors header: {str(error)[:120]!a}") from error
    if not raw.startswith(b"{") or not isinstance(header, dict):
        raise BadCheckpoint(view.subject, "the safetensors header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadCheckpoint(view.subject, "__metadata__ of the safetensors header is no map of strings")
    return 8 + length, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _tensors(view: FileView, header: dict[str, Any]) -> Iterator[Found]:
    """The tensors that the header lists; offsets count from the end of the header."""
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise BadCheckpoint(view.subject, f"tensor {name[:80]!a}: expected dtype, shape and data_offsets")
        shape, offsets = _counts(entry["shape"]), _counts(entry["data_offsets"])
        dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if dtype is None or shape is None or offsets is None or len(offsets) != 2 or len(name) > MAX_PATH_CHARACTERS:
            raise BadCheckpoint(view.subject, f"tensor {name[:80]!a}: unknown dtype, or sizes that are no sizes")
        start, stop = offsets
        torch_name, bits = dtype
        if prod(shape) * bits != (stop - start) * 8:
            raise BadCheckpoint(
                view.subject, f"tensor {name[:80]!a}: {entry['dtype']} of shape {list(shape)} in {stop - start} bytes"
            )
        nbytes = stop - start
        known = shape if torch_name in STORED_AS else (nbytes,)
        yield Found(TensorSpec((label(name),), torch_name, known, nbytes), start)


def _counts(values: Any) -> tuple[int, ...] | None:
    if not isinstance(values, list) or len(values) > MAX_DIMENSIONS:
        return None
    return tuple(values) if all(type(value) is int and 0 <= value <= MAX_SIZE for value in values) else None


def _name(found: Found) -> str:
    return ascii(found.tensor.path[0][:80])
