"""The first reading of a checkpoint, in file order: whether its bytes are sound, and what they say of themselves."""

import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np

from ckzd.checkpoint import CODED_FLOATS, Bytes, Checkpoint, Hole, RawArray
from ckzd.codec.dtypes import SMALLEST, finite, is_negative, is_zero, stored_array
from ckzd.codec.parallel import in_order
from ckzd.errors import BadCheckpoint

_SAMPLE = 256  # elements; of so many of a bfloat16 weight five in six differ
_MOST_REPEATED = 0.5  # of a sample, in a tensor that does not repeat itself


@dataclass(frozen=True, slots=True)
class Content:
    """What the bytes of one tensor say; of dtypes that may not lose precision the first two alone."""

    digest: bytes  # sha256 of what dependents may refer to; empty of all others
    is_same: bool  # as the reference's
    is_finite: bool = False
    is_zero: bool = False  # all of it
    has_negative: bool = False  # a number below 0
    has_tiny: bool = False  # a number that float32 has not but 0: its square root, or what is divided by it, is none
    sample: RawArray | None = None  # some of the values, evenly spread, at the same places of all tensors of a shape
    ruined: int = 0  # elements that are finite in the reference, and are not any more

    @property
    def repeats(self) -> bool:
        """Whether it has few distinct numbers, as a mask or a table of whole ones."""
        return self.sample is not None and np.unique(self.sample).size < _MOST_REPEATED * self.sample.size


@dataclass(frozen=True, slots=True)
class Contents:
    """What one reading of everything gives."""

    sha256: tuple[str, ...]  # of each file, in hex
    tensors: tuple[Content, ...]


def read_contents(
    checkpoint: Checkpoint, reference_tensors: Container[int], before: Callable[[int], RawArray | None]
) -> Contents:
    """Read every byte once, and what lies in parts once more.

    `before` gives the reference's values of a reference tensor, by number, if it has some.

    Raises BadCheckpoint where a file's own CRC-32 says that its bytes have rotted.
    """
    sha256: list[str] = []
    tensors: dict[int, Content] = {}

    def content(number: int, payload: Bytes) -> Content:
        return _content(checkpoint, number, payload, before if number in reference_tensors else None)

    def read(piece: tuple[int, int, Hole]) -> tuple[Bytes, Bytes, Content | None, int]:
        """From `start` of a file to a hole's end; what is in the hole, what that says of its tensor, and its CRC-32."""
        file, start, hole = piece
        data = memoryview(checkpoint.source.read(file, start, hole.offset + hole.nbytes - start))
        payload = data[hole.offset - start :]
        is_storage = hole.crc_offsets and hole.begins_storage
        said = content(hole.tensor, payload) if hole.part is None else None
        return data, payload, said, zlib.crc32(payload) if is_storage else 0

    for file, layout in enumerate(checkpoint.files):
        digest, crc = hashlib.sha256(), _Crc(checkpoint, file)
        *starts, last = [start for start, _ in layout.verbatim_ranges()]
        pieces = [(file, start, hole) for start, hole in zip(starts, layout.holes, strict=True)]
        read_pieces = in_order(read, pieces, lambda piece: piece[2].nbytes)
        for (_, start, hole), (data, payload, said, own_crc) in zip(pieces, read_pieces, strict=True):
            if said is not None:
                tensors[hole.tensor] = said
            digest.update(data)
            crc.see(start, data)
            crc.take(hole, payload, own_crc)
        data = checkpoint.source.read(file, last, layout.size - last)
        digest.update(data)
        crc.see(last, data)
        crc.check()
        sha256.append(digest.hexdigest())
    parts = sorted(checkpoint.in_parts)
    gathered = in_order(lambda n: content(n, checkpoint.payload(n)), parts, lambda n: checkpoint.tensors[n].elements)
    tensors |= zip(parts, gathered, strict=True)
    return Contents(tuple(sha256), tuple(tensors[number] for number in range(len(checkpoint.tensors))))


def _content(
    checkpoint: Checkpoint, number: int, payload: Bytes, before: Callable[[int], RawArray | None] | None
) -> Content:
    tensor = checkpoint.tensors[number]
    known = before(number) if before is not None else None
    digest = hashlib.sha256(payload).digest() if before is not None else b""
    is_same = known is not None and known.tobytes() == payload
    if tensor.dtype not in CODED_FLOATS:
        return Content(digest, is_same)
    stored = stored_array(payload, tensor.dtype, tensor.shape)
    with np.errstate(invalid="ignore"):  # a signalling NaN is a value like others
        zero, negative = is_zero(stored), is_negative(stored)
    numbers = finite(stored, tensor.dtype)
    ruined = 0
    if known is not None and not numbers.all():
        ruined = int(np.count_nonzero(finite(known, tensor.dtype) & ~numbers))
    return Content(
        digest,
        is_same,
        is_finite=bool(numbers.all()),
        is_zero=bool(zero.all()),
        has_negative=bool((negative & ~zero).any()),
        has_tiny=tensor.dtype == "float64" and bool((~zero & (np.abs(stored) < SMALLEST["float64"])).any()),
        sample=stored.ravel()[:: max(1, -(-stored.size // _SAMPLE))].copy(),
        ruined=ruined,
    )


class _Crc:
    """Holds the storages of one file against the CRC-32s that it gives for them."""

    def __init__(self, checkpoint: Checkpoint, file: int) -> None:
        self._checkpoint, self._file = checkpoint, file
        self._fields = deque(sorted(offset for hole in checkpoint.files[file].holes for offset in hole.crc_offsets))
        self._given: dict[int, bytes] = {}  # what stands in each field
        self._found: list[tuple[int, tuple[int, ...], bytes]] = []  # a storage's first tensor, its fields, its CRC-32
        self._is_checked = bool(self._fields)
        self._crc = self._first = 0

    def see(self, start: int, data: Bytes) -> None:
        """The bytes from `start` on, up to and with a hole."""
        while self._fields and self._fields[0] < start + len(data):
            at = self._fields.popleft() - start
            self._given[start + at] = bytes(data[at : at + 4])

    def take(self, hole: Hole, payload: Bytes, own: int) -> None:
        """The bytes of the next hole; `own` is their CRC-32 if they are a whole storage."""
        if not self._is_checked:
            return
        self._first = hole.tensor if hole.begins_storage else self._first
        is_whole = hole.crc_offsets and hole.begins_storage
        self._crc = own if is_whole else zlib.crc32(payload, 0 if hole.begins_storage else self._crc)
        if hole.crc_offsets:
            self._found.append((self._first, hole.crc_offsets, self._crc.to_bytes(4, "little")))

    def check(self) -> None:
        """BadCheckpoint if a storage is not what the file says of it."""
        checkpoint, name = self._checkpoint, self._checkpoint.files[self._file].name
        for first, offsets, crc in self._found:
            if any(self._given[offset] != crc for offset in offsets):
                raise BadCheckpoint(
                    f"{checkpoint.name}/{name}" if checkpoint.is_directory else name,
                    f"tensor {'/'.join(checkpoint.tensors[first].path)}: its bytes do not match the CRC-32 that the "
                    "file gives for them",
                    hint="the file is damaged; restore it from another copy",
                )
