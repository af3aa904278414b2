"""What a reader of one file hands back, and the rules that all readers share."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ckzd.checkpoint import Hole, Optimizer, TensorSpec
from ckzd.errors import BadCheckpoint
from ckzd.fingerprints import Fingerprint

SMALL_STORAGE_BYTES = 256  # below it a storage stays in the skeleton: naming it costs more than compressing it saves
OPAQUE_HOLE_BYTES = 64 << 20  # longer opaque bytes are several holes, so that none has to be in memory whole
MAX_VERBATIM_BYTES = 1 << 30  # of one file; it is held in memory


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """The tensors of one file. Its holes are in file order and number its own tensors."""

    tensors: tuple[TensorSpec, ...]
    holes: tuple[Hole, ...]
    optimizers: tuple[Optimizer, ...] = ()
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor and the place of its bytes; where its storage begins if it is one of several in it.

    Those fill their storage without a gap, and what repeats or follows from its CRC-32 stands with the last one.
    """

    tensor: TensorSpec
    offset: int
    crc_offsets: tuple[int, ...] = ()
    shared: int | None = None
    fingerprint: Fingerprint | None = None  # that follows from its storage's CRC-32

    @property
    def joins(self) -> bool:
        """Whether it lies behind another one of its storage."""
        return self.shared is not None and self.offset > self.shared


def collect(
    found: Iterable[Found],
    subject: str,
    size: int,
    optimizers: tuple[Optimizer, ...] = (),
    step: int | None = None,
    *,
    least: int = SMALL_STORAGE_BYTES,
) -> ParsedFile:
    """Number the tensors of at least so many bytes as they come, sort their holes, make every path unique."""
    kept = [one for one in found if one.shared is not None or one.tensor.nbytes >= least]
    verbatim = size - sum(one.tensor.nbytes for one in kept)
    if verbatim > MAX_VERBATIM_BYTES:
        raise BadCheckpoint(subject, f"{verbatim} bytes besides its tensors, at most {MAX_VERBATIM_BYTES} are read")
    tensors = tuple(unique_paths(one.tensor for one in kept))
    holes = (
        Hole(n, one.offset, one.tensor.nbytes, one.crc_offsets, joins=one.joins, fingerprint=one.fingerprint)
        for n, one in enumerate(kept)
    )
    return ParsedFile(tensors, tuple(sorted(holes, key=lambda hole: hole.offset)), optimizers, step)


def unique_paths(tensors: Iterable[TensorSpec]) -> Iterator[TensorSpec]:
    """The second tensor of a path gets "#2" behind its last key, and so on."""
    taken: set[tuple[str, ...]] = set()
    times: dict[tuple[str, ...], int] = {}
    for tensor in tensors:
        path = first = tensor.path or ("tensor",)
        while path in taken:
            times[first] = times.get(first, 1) + 1
            path = (*first[:-1], f"{first[-1]}#{times[first]}")
        taken.add(path)
        yield tensor if path is tensor.path else replace(tensor, path=path)


def opaque(path: tuple[str, ...], offset: int, nbytes: int) -> Iterator[Found]:
    """Bytes of unknown meaning, in pieces."""
    for number, start in enumerate(range(0, nbytes, OPAQUE_HOLE_BYTES)):
        length = min(OPAQUE_HOLE_BYTES, nbytes - start)
        piece = path if nbytes <= OPAQUE_HOLE_BYTES else (*path, str(number))
        yield Found(TensorSpec(piece, "uint8", (length,), length), offset + start)
