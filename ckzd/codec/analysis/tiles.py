"""Large tensors in tiles of rows, each coded as a tensor of its own: memory and the work of one thread have a bound.

What looks at whole tensors (pairing, CRC-32s, tiles without moments of their own) asks which tiles lie in one storage;
all else takes tiles for tensors. The first tile keeps the tensor's path; those after it have their number behind it.
Where a tensor is cut follows from its shape alone, so that a weight and its moments, and one checkpoint and the next,
are cut alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise

from ckzd.checkpoint import Checkpoint, FileLayout, Hole, TensorSpec
from ckzd.codec.kernels.plain import MAX_DIRECTIONS
from ckzd.codec.records.layout import plane_shape

MAX_ELEMENTS = 1 << 22  # of a tile of more than 256 rows: some 90 bytes each while it is worked on


def in_tiles(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint with its large tensors cut.

    It is left as it is if a file gives a CRC-32 before the bytes it is of, or a tile would have another tensor's path.
    """
    if any(offset < hole.offset for file in checkpoint.files for hole in file.holes for offset in hole.crc_offsets):
        return checkpoint
    tiles = [tuple(_tiles(tensor)) for tensor in checkpoint.tensors]
    firsts = list(accumulate(map(len, tiles), initial=0))
    tensors = tuple(chain.from_iterable(tiles))
    if len({tensor.path for tensor in tensors}) < len(tensors):
        return checkpoint
    return replace(checkpoint, files=tuple(_cut(file, tiles, firsts) for file in checkpoint.files), tensors=tensors)


def _cut(file: FileLayout, tiles: Sequence[Sequence[TensorSpec]], firsts: Sequence[int]) -> FileLayout:
    """A file with a hole for each tile; `firsts` are the numbers of each tensor's first one."""
    holes: list[Hole] = []
    for hole in file.holes:
        offset = hole.offset
        for number, tile in enumerate(tiles[hole.tensor], firsts[hole.tensor]):
            is_first = number == firsts[hole.tensor]
            holes.append(Hole(number, offset, tile.nbytes, continues=not is_first, joins=is_first and hole.joins))
            offset += tile.nbytes
        holes[-1] = replace(holes[-1], crc_offsets=hole.crc_offsets)
    return replace(file, holes=tuple(holes))


def _tiles(tensor: TensorSpec) -> Iterator[TensorSpec]:
    """A tensor's rows in tiles as even as whole blocks of a basis allow: fewer than 256 rows would lose their basis."""
    rows, columns = plane_shape(tensor.shape)
    blocks = -(-rows // MAX_DIRECTIONS)
    count = -(-blocks // max(1, MAX_ELEMENTS // (MAX_DIRECTIONS * max(columns, 1))))
    if count <= 1:
        yield tensor
        return
    cuts = [min(rows, blocks * number // count * MAX_DIRECTIONS) for number in range(count + 1)]
    for number, (start, stop) in enumerate(pairwise(cuts)):
        path = (*tensor.path, f"[{number}]") if number else tensor.path
        shape, nbytes = (stop - start, *tensor.shape[1:]), tensor.nbytes // rows * (stop - start)
        yield replace(tensor, path=path, shape=shape, nbytes=nbytes)
