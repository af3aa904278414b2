"""What is in the regions of files that torch.distributed.checkpoint writes, and the tensors that they are together.

Each region is a file of torch.save: thousands of them, small and much alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod

from ckzd.checkpoint import STORED_AS, Hole, TensorSpec
from ckzd.formats import inert_pickle, torch_zip, zip_records
from ckzd.formats.alike import Alike
from ckzd.formats.frameworks.dcp_metadata import Metadata, Region
from ckzd.formats.parsed import SMALL_STORAGE_BYTES, ParsedFile, collect, opaque
from ckzd.formats.source import PAGE_BYTES, FileView
from ckzd.formats.tree import Node
from ckzd.parts import Part, box, cover

MAX_REMEMBERED, MAX_REMEMBERED_BYTES = 4096, 1024  # pickles of settings have 100 bytes
MAX_PARTS = 256  # of a chunk, where it is cut in several dimensions: it has one or few


@dataclass(frozen=True, slots=True)
class Chunk:
    """A region and what is in it."""

    region: Region
    parsed: ParsedFile

    def alone(self) -> "Chunk":
        """As it is by itself: without a tensor that is too small for a name of its own."""
        nbytes = [tensor.nbytes for tensor in self.parsed.tensors]
        is_small = len(nbytes) == 1 and nbytes[0] < SMALL_STORAGE_BYTES
        return replace(self, parsed=replace(self.parsed, tensors=(), holes=())) if is_small else self

    def holes(self) -> Iterator[Hole]:
        """Its holes, as they lie in the file."""
        start = self.region.offset
        for hole in self.parsed.holes:
            crc_offsets = tuple(offset + start for offset in hole.crc_offsets)
            fingerprint = None if hole.fingerprint is None else hole.fingerprint.moved(start)
            yield replace(hole, offset=hole.offset + start, crc_offsets=crc_offsets, fingerprint=fingerprint)


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor, yet without a name, and where its parts lie: names of files, and holes in these."""

    tensor: TensorSpec
    holes: list[tuple[str, Hole]]


def joined(shape: tuple[int, ...], chunks: Sequence[Chunk]) -> Whole | None:
    """The tensor of this shape that several chunks are; None where they are not just all of it, or of other forms."""
    filled = [chunk for chunk in chunks if chunk.region.sizes is None or 0 not in chunk.region.sizes]
    dtypes = {chunk.parsed.tensors[0].dtype for chunk in filled if _is_array(chunk, len(shape))}
    if len(filled) < 2 or len(dtypes) != 1 or not all(_is_array(chunk, len(shape)) for chunk in filled):
        return None
    (dtype,) = dtypes
    element_bytes = STORED_AS[dtype].itemsize
    nbytes = element_bytes * prod(shape)
    sizes = [chunk.parsed.tensors[0].shape for chunk in filled]
    cut = max((axis for axis, size in enumerate(shape) if any(own[axis] < size for own in sizes)), default=0)
    holes: list[tuple[str, Hole]] = []
    for chunk, own in zip(filled, sizes, strict=True):
        parts = list(islice(box(shape, chunk.region.start, own, cut, element_bytes), MAX_PARTS + 1))
        if len(parts) > MAX_PARTS:
            return None
        holes += ((chunk.region.file, hole) for hole in _holes(chunk, parts))
    if nbytes < SMALL_STORAGE_BYTES or not cover([hole.part for _, hole in holes if hole.part is not None], nbytes):
        return None
    return Whole(TensorSpec((), dtype, shape, nbytes), holes)


def _is_array(chunk: Chunk, dimensions: int) -> bool:
    """Whether it is one array of floats of the sizes that it is said to have, its checksums behind it."""
    if not len(chunk.parsed.tensors) == len(chunk.parsed.holes) == 1 or len(chunk.region.start) != dimensions:
        return False
    (tensor,), (hole,) = chunk.parsed.tensors, chunk.parsed.holes
    is_behind = all(offset > hole.offset for offset in hole.crc_offsets)
    is_said = tensor.shape == chunk.region.sizes and len(tensor.shape) == dimensions
    return tensor.dtype in STORED_AS and is_said and is_behind


def _holes(chunk: Chunk, parts: Sequence[Part]) -> Iterator[Hole]:
    """A hole for each part, one behind the other; checksums are of all, and stand with the last."""
    (hole,) = chunk.holes()
    offset = hole.offset
    for part in parts:
        further = (hole.crc_offsets, hole.fingerprint) if part is parts[-1] else ((), None)
        yield Hole(0, offset, part.nbytes, further[0], joins=part is not parts[0], part=part, fingerprint=further[1])
        offset += part.nbytes


class Regions:
    """Reads what is in regions, in the order of files."""

    def __init__(self, files: Mapping[str, FileView]) -> None:
        self._files, self._paged = files, {name: view.paged() for name, view in files.items()}
        self._alike = Alike()
        self._unpickled: dict[bytes, Node] = {}

    def parse_all(self, metadata: Metadata) -> list[ParsedFile]:
        """What is in each region; in chunks tensors of any size, else those that are worth a name."""
        several = {item for item in metadata.items if metadata.items[item] is not None}
        found: list[ParsedFile] = [ParsedFile((), ())] * len(metadata.regions)
        order = sorted(range(len(found)), key=lambda n: (metadata.regions[n].file, metadata.regions[n].offset))
        for number in order:
            region = metadata.regions[number]
            found[number] = self._parse(region, is_tensor=region.item in several)
        return found

    def _parse(self, region: Region, *, is_tensor: bool) -> ParsedFile:
        """The tensors in it; opaque bytes where torch.save did not write it."""
        view = self._view(region)
        if not _is_zip(view):
            return collect(opaque(("<bytes>",), 0, view.size), view.subject, view.size)
        return self._alike.parse(view) if is_tensor else torch_zip.parse(view, self._load)

    def value(self, region: Region) -> Node:
        """An object that was saved, as far as it is plain."""
        view = self._view(region)
        return torch_zip.load(view, self._load) if _is_zip(view) else None

    def number(self, region: Region) -> int | None:
        """A count that was saved."""
        view = self._view(region)
        return torch_zip.number(view, self._load) if _is_zip(view) else None

    def _view(self, region: Region) -> FileView:
        """Of a long one two places are read, which are far apart."""
        files = self._files if region.nbytes > 2 * PAGE_BYTES else self._paged
        return files[region.file].part(region.offset, region.nbytes)

    def _load(self, data: bytes, subject: str) -> Node:
        """Settings of groups are much alike."""
        if data in self._unpickled:
            return self._unpickled[data]
        found = inert_pickle.load(data, subject)
        if len(data) <= MAX_REMEMBERED_BYTES and len(self._unpickled) < MAX_REMEMBERED:
            self._unpickled[data] = found
        return found


def _is_zip(view: FileView) -> bool:
    return view.read(0, min(len(zip_records.MAGIC), view.size)) == zip_records.MAGIC
