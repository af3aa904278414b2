"""Reference tensors are restored by who proves an archive, while the encoder still chooses how later ones are coded.

What bases learn is most of a decoder's work. It follows from levels, which the encoder knows long before there are
tables to code them with. So it announces each tensor once it is chosen: a line, which says where in the encoder's own
files (reconstruction, scratch) its arrays lie. An announcement proves nothing: what was restored from it counts only if
the streams of the finished archive, decoded, say the same of every tensor (`TensorCoding.fingerprint`). An empty line
ends each turn (`records/index.in_turn`): those of the second follow from values of the first.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile, zip_longest
from typing import Any, Protocol

import numpy as np

from ckzd.checkpoint import RawArray, TensorSpec
from ckzd.codec.methods.coding import (
    ByUlps,
    CastOf,
    CopyOf,
    Exactly,
    Predicted,
    TensorCoding,
    Way,
    WithLoss,
    following,
    restored_together,
)
from ckzd.codec.methods.method import Coded
from ckzd.codec.parallel import in_batches
from ckzd.codec.records.index import LinearPrediction, Method
from ckzd.codec.records.reconstruction import ArrayFile, Key, Place, Reconstruction, ReconstructionHash
from ckzd.codec.records.reference_tensors import ReferenceTensor, put_reference_tensor
from ckzd.codec.scales import Scales
from ckzd.codec.transform.adaptive_basis import SLACK

_KEPT = {"rows": "rows", "columns": "columns", "values": "weights"}  # what the reconstruction has anyway, by its field


class Listener(Protocol):
    """Who is told of tensors by an encoder."""

    def tell(self, line: str) -> None:
        """One more is chosen; if the line is empty, all of its turn are. This waits for nobody."""
        ...

    def begin_again(self) -> None:
        """All that was told is void; after this nobody looks at the encoder's files until it tells more."""
        ...


class Announcer:
    """The encoder's side: tells a listener of tensors whose arrays lie in these files."""

    def __init__(self, listener: Listener, reconstruction: ArrayFile, scratch: ArrayFile) -> None:
        self._listener, self._reconstruction, self._scratch = listener, reconstruction, scratch

    def announce(self, coding: TensorCoding) -> None:
        """Tell of a tensor that has been stored in the reconstruction, its levels in scratch."""
        places = {name: self._place(coding.tensor, name, array) for name, array in coding.arrays().items()}
        self._listener.tell(json.dumps([coding.words(), places], separators=(",", ":")))

    def end_turn(self) -> None:
        """All of a turn have been announced: there is nothing to wait for that they could be restored together with."""
        self._listener.tell("")

    def begin_again(self) -> None:
        """The files are about to be written anew."""
        self._listener.begin_again()

    def _place(self, tensor: TensorSpec, name: str, array: RawArray) -> tuple[int, Place]:
        """Which of the files it is in, and where; what is in neither goes to scratch."""
        number, file, field = (0, self._reconstruction, _KEPT[name]) if name in _KEPT else (1, self._scratch, name)
        if file is self._scratch and file.place(tensor.path, field) is None:
            file.put(tensor.path, field, array)
        place = file.place(tensor.path, field)
        assert place is not None, "it was stored before it is announced"
        return number, place


class Ahead:
    """The other side, in another process: restores what is announced to lie in these files (descriptors).

    What it restores it hashes, and keeps nothing: it is what the encoder has written, or the archive is no good.
    """

    def __init__(self, reference: Reconstruction | None, files: Sequence[int]) -> None:
        self._reference, self._files = reference, files
        self._fingerprints: list[bytes] = []
        self._read: set[tuple[Key, bytes]] = set()  # what others followed, sha256 of its values; threads add to it
        self.own = ReconstructionHash()

    def restore(self, lines: Iterator[str]) -> None:
        """Restore tensors as they are announced, in their order, which is the decoder's, until a turn has none."""
        while self._restore_turn(takewhile(str.strip, lines)):
            pass

    def _restore_turn(self, lines: Iterable[str]) -> int:
        """How many there were."""
        count, codings = 0, (announced(line, self._files) for line in lines)
        for coding, found, fingerprint in in_batches(self._batch, codings, lambda coding: coding.tensor.elements):
            tensor = found or following(coding, self._reference, self._written)
            put_reference_tensor(self.own, coding.tensor, tensor, coding.scales)
            self._fingerprints.append(fingerprint)
            count += 1
        return count

    def foresaw(self, fingerprints: Iterable[bytes]) -> bool:
        """Whether an archive's streams say of all its tensors what was announced (`Decoder.fingerprints`)."""
        if not self._fingerprints:  # of a preset that loses nothing
            return False
        return all(told == said for told, said in zip_longest(self._fingerprints, fingerprints))

    def followed_what_is_in(self, reconstruction: Reconstruction) -> bool:
        """Whether values there are those that others followed, which were read before anybody had hashed the file."""
        return all(_digest(reconstruction.get(path, "weights")) == digest for path, digest in self._read)

    def _batch(self, codings: Sequence[TensorCoding]) -> list[tuple[TensorCoding, ReferenceTensor | None, bytes]]:
        restored = restored_together(codings, self._reference, self._written, SLACK)
        return [(coding, tensor, coding.fingerprint(SLACK)) for coding, tensor in zip(codings, restored, strict=True)]

    def _written(self, path: Key) -> RawArray | None:
        """The values that the encoder has written of a tensor: it writes what is restored here, at the same places."""
        place = self.own.place(path, "weights")
        if place is None:
            return None
        found = _array(self._files[0], *place)
        self._read.add((path, _digest(found)))
        return found


def announced(line: str, files: Sequence[int]) -> TensorCoding:
    """What a line announces, read from the encoder's files (descriptors). The encoder goes on writing to them."""
    (tensor, reach, way), places = json.loads(line)
    arrays = {name: _array(files[number], *place) for name, (number, place) in places.items()}
    scales = Scales(arrays["rows"], arrays["columns"], reach) if "rows" in arrays else None  # type: ignore[arg-type]
    return TensorCoding(_spec(*tensor), scales, _way(way, arrays))


def _spec(path: list[str], dtype: str, shape: list[int], nbytes: int, stack: list[int]) -> TensorSpec:
    return TensorSpec(tuple(path), dtype, tuple(shape), nbytes, tuple(stack))


def _way(words: Sequence[Any], arrays: dict[str, RawArray]) -> Way:
    match words:
        case ["exactly"]:
            return Exactly(arrays["values"])
        case ["copy of", list(path)]:
            return CopyOf(tuple(path))
        case ["cast of", list(path), str(dtype)]:
            return CastOf(tuple(path), dtype)
        case ["by ulps", float(step)]:
            return ByUlps(_coded(arrays), step)
        case ["with loss", str(method), float(step), prediction]:
            zeros = arrays.get("zeros")
            mask = None if zeros is None else zeros.tobytes()
            return WithLoss(Method(method), _coded(arrays), step, mask, prediction and _predicted(*prediction))
    raise ValueError(f"a tensor announced as {words!r:.60}")


def _predicted(number: int, own: float, now: float, before: float, other: list[Any]) -> Predicted:
    return Predicted(LinearPrediction(number, own, now, before), _spec(*other))


def _coded(arrays: dict[str, RawArray]) -> Coded:
    levels = arrays.get("levels")
    return Coded(arrays["head"].tobytes(), None if levels is None else levels.astype(np.int16))


def _digest(values: RawArray | None) -> bytes:
    return b"" if values is None else hashlib.sha256(np.ascontiguousarray(values).data).digest()


def _array(file: int, dtype: str, shape: Sequence[int], start: int) -> RawArray:
    """Read by place, because the position of the file is the encoder's."""
    data = bytearray(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
    got = 0
    while got < len(data):
        count = os.preadv(file, [memoryview(data)[got:]], start + got)
        if not count:
            raise ValueError(f"an announced array of {len(data)} bytes ends after {got}")
        got += count
    return np.frombuffer(data, np.dtype(dtype)).reshape(shape)
