r"""What a dependent archive needs of its reference, in one canonical stream of bytes whose hash is its id.

Layout: `CKZREC1\n`, the arrays back to back, a JSON table of them, its length as u64. Arrays are named by a tensor's
path and a field ("weights": decoded values in their stored dtype; "levels": i8 symbols used as context; "rows",
"columns": i16 scale codes), blobs by a field alone ("lstm", "skeleton", "layout").
"""

import hashlib
import io
import json
import struct
from threading import Lock
from typing import BinaryIO

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec.parsing import read_json

_MAGIC = b"CKZREC1\n"
_LENGTH = struct.Struct("<Q")
_MAX_TABLE_BYTES = 1 << 30

Key = tuple[str, ...]
Place = tuple[str, list[int], int]  # dtype, shape, start
Table = dict[str, Place]  # by name


def _name(key: Key, field: str) -> str:
    """One name for a path and a field; a NUL inside a part is escaped."""
    return "\0".join(part.replace("\\", "\\\\").replace("\0", "\\0") for part in (*key, field))


class ArrayFile:
    """Arrays appended to a file open for reading and writing, and read back by name; any thread may."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._lock = file, Lock()
        self._table: Table = {}
        self._end = 0

    def _append(self, data: bytes) -> None:
        self._file.seek(self._end)
        self._file.write(data)
        self._end += len(data)

    def put(self, key: Key, field: str, array: RawArray) -> None:
        """Store an array under (key, field)."""
        with self._lock:
            start = self._end
            self._append(np.ascontiguousarray(array).tobytes())
            self._table[_name(key, field)] = (array.dtype.str, list(array.shape), start)

    def place(self, key: Key, field: str) -> Place | None:
        """Where the file holds an array, for whoever else has it open; None if it holds none."""
        with self._lock:
            self._file.flush()
            return self._table.get(_name(key, field))

    def clear(self) -> None:
        """Start anew."""
        self._file.truncate(0)
        self._table, self._end = {}, 0

    def get(self, key: Key, field: str) -> RawArray | None:
        """An array stored before, or None."""
        with self._lock:
            return _read(self._file, self._table, key, field)


class HeldArrays:
    """Arrays in memory by name: a part of a reconstruction, before it is written."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[Key, str], RawArray] = {}

    def put(self, key: Key, field: str, array: RawArray) -> None:
        """Hold an array under (key, field); it is not copied."""
        self._arrays[key, field] = array

    def get(self, key: Key, field: str) -> RawArray | None:
        """An array put before, or None."""
        return self._arrays.get((key, field))


class ReconstructionWriter(ArrayFile):
    """Writes a reconstruction; `finish` seals it and gives its id."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._hash = hashlib.sha256()
        self._append(_MAGIC)

    def _append(self, data: bytes) -> None:
        super()._append(data)
        self._hash.update(data)

    def clear(self) -> None:
        """Start anew."""
        super().clear()
        self._hash = hashlib.sha256()
        self._append(_MAGIC)

    def put_blob(self, field: str, data: bytes) -> None:
        """Store bytes under a field alone."""
        self.put((), field, np.frombuffer(data, np.uint8))

    def finish(self) -> str:
        """Write the table; the reconstruction id is the sha256 of the whole stream, in hex."""
        table = json.dumps(self._table, separators=(",", ":")).encode()
        self._append(table)
        self._append(_LENGTH.pack(len(table)))
        self._file.flush()
        return self._hash.hexdigest()


class ReconstructionHash(ReconstructionWriter):
    """Gives the id of a reconstruction that is written nowhere: what is put cannot be read back."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())

    def _append(self, data: bytes) -> None:
        self._end += len(data)
        self._hash.update(data)


class Reconstruction:
    """A sealed reconstruction, read array by array; any thread may."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._lock = file, Lock()
        size = file.seek(0, 2)
        file.seek(size - _LENGTH.size)
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > min(_MAX_TABLE_BYTES, size - _LENGTH.size - len(_MAGIC)):
            raise ValueError(f"a reconstruction of {size} bytes cannot hold a table of {length}")
        file.seek(size - _LENGTH.size - length)
        self._table: Table = read_json(file.read(length), length)

    def get(self, key: Key, field: str) -> RawArray | None:
        """The array under (key, field), or None."""
        with self._lock:
            return _read(self._file, self._table, key, field)

    def form(self, key: Key, field: str) -> tuple[np.dtype[np.generic], tuple[int, ...]] | None:
        """Dtype and shape of an array, without reading it."""
        entry = self._table.get(_name(key, field))
        return None if entry is None else (np.dtype(entry[0]), tuple(entry[1]))

    def blob(self, field: str) -> bytes:
        """The bytes stored under a field alone; empty if there are none."""
        found = self.get((), field)
        return b"" if found is None else found.tobytes()


def _read(file: BinaryIO, table: Table, key: Key, field: str) -> RawArray | None:
    entry = table.get(_name(key, field))
    if entry is None:
        return None
    dtype, shape, start = np.dtype(entry[0]), entry[1], entry[2]
    file.seek(start)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    data = file.read(nbytes)
    if len(data) != nbytes:
        raise ValueError(f"array {key} {field}: expected {nbytes} bytes, got {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


Arrays = Reconstruction | ArrayFile | HeldArrays  # where fields of tensors are found by name
