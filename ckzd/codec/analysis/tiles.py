"""Large tensors in tiles of rows, and stacks of matrices in these, each coded as a tensor of its own.

So memory and the work of one thread have a bound, and each of the experts, heads or layers that are fused into one
tensor has a basis and scales of its own.
What looks at whole tensors (pairing, CRC-32s, tiles without moments of their own) asks which tiles lie in one storage;
all else takes tiles for tensors. The first tile keeps the tensor's path; those after it have their number behind it.
Where a tensor is cut follows from its shape alone, so that a weight and its moments, and one checkpoint and the next,
are cut alike.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise

from ckzd.checkpoint import CODED_FLOATS, Checkpoint, FileLayout, Hole, TensorSpec
from ckzd.codec.kernels.plain import MAX_DIRECTIONS
from ckzd.codec.records.layout import plane_shape
from ckzd.codec.transform.adaptive_basis import MIN_SIDE

MAX_ELEMENTS = 1 << 22  # of a tile of more than 256 rows: some 90 bytes each while it is worked on
MIN_STACKED = 1 << 14  # elements of a stack's matrix that is a tile: of 2048 names and scales took 0.2 bits each


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
    files = tuple(_cut(file, tiles, firsts) for file in checkpoint.files)
    tiled = {firsts[number]: len(tiles[number]) for number in checkpoint.in_parts if len(tiles[number]) > 1}
    return replace(checkpoint, files=files, tensors=tensors, tiled=tiled)


def _cut(file: FileLayout, tiles: Sequence[Sequence[TensorSpec]], firsts: Sequence[int]) -> FileLayout:
    """A file with a hole for each tile, or part of one; `firsts` are the numbers of each tensor's first one."""
    holes: list[Hole] = []
    for hole in file.holes:
        cut = _rows if hole.part is None else _parts_of_rows
        holes += cut(hole, tiles[hole.tensor], firsts[hole.tensor])
        holes[-1] = replace(holes[-1], crc_offsets=hole.crc_offsets, fingerprint=hole.fingerprint)
    return replace(file, holes=tuple(holes))


def _rows(hole: Hole, tiles: Sequence[TensorSpec], first: int) -> Iterator[Hole]:
    """A hole for each tile of a tensor that fills one."""
    offset = hole.offset
    for number, tile in enumerate(tiles, first):
        yield Hole(number, offset, tile.nbytes, continues=number > first, joins=number == first and hole.joins)
        offset += tile.nbytes


def _parts_of_rows(hole: Hole, tiles: Sequence[TensorSpec], first: int) -> Iterator[Hole]:
    """What a hole has of each tile of a tensor that lies in parts."""
    assert hole.part is not None, "else it is all of a tensor"
    offset, begin = hole.offset, 0
    for number, tile in enumerate(tiles, first):
        for part in hole.part.between(begin, begin + tile.nbytes):
            is_whole = (part.count, part.run) == (1, tile.nbytes)
            joins = hole.joins or offset > hole.offset
            yield Hole(number, offset, part.nbytes, joins=joins, part=None if is_whole else part)
            offset += part.nbytes
        begin += tile.nbytes


def _tiles(tensor: TensorSpec) -> Iterator[TensorSpec]:
    """A tensor's matrices, each with its rows in parts; small ones are parts of one matrix."""
    depth = _stack_depth(tensor.shape) if tensor.dtype in CODED_FLOATS and tensor.elements else 0
    stack, shape = tensor.shape[:depth], tensor.shape[depth:]
    matrices = math.prod(stack)
    if depth and math.prod(shape) < MIN_STACKED:
        shape, matrices = (matrices * shape[0], *shape[1:]), 1
    rows, columns = plane_shape(shape)
    counts = list(_parts(rows, columns)) * matrices
    if not depth and len(counts) == 1:
        yield tensor
        return
    row_bytes = tensor.nbytes // (matrices * rows)
    for number, count in enumerate(counts):
        path = (*tensor.path, f"[{number}]") if number else tensor.path
        yield replace(tensor, path=path, shape=(count, *shape[1:]), nbytes=row_bytes * count, stack=stack)


def _stack_depth(shape: Sequence[int]) -> int:
    """How many dimensions number the matrices of a stack: so many that these have the longest shorter side.

    None where first dimension by all others is a matrix with a longer one, as of convolutions: a kernel's sides, which
    come last, are no matrix.
    """
    best, depth = min(plane_shape(shape)), 0
    for cut in range(2, len(shape)):
        columns = math.prod(shape[cut:])
        if min(shape[cut - 1], columns, shape[-1]) >= MIN_SIDE and min(math.prod(shape[:cut]), columns) >= best:
            best, depth = min(math.prod(shape[:cut]), columns), cut - 1
    return depth


def _parts(rows: int, columns: int) -> Iterator[int]:
    """A matrix in as many rows as whole blocks of a basis allow, evenly: fewer than 256 would lose their basis."""
    blocks = -(-rows // MAX_DIRECTIONS)
    count = max(1, -(-blocks // max(1, MAX_ELEMENTS // (MAX_DIRECTIONS * max(columns, 1)))))
    cuts = [min(rows, blocks * number // count * MAX_DIRECTIONS) for number in range(count + 1)]
    return (stop - start for start, stop in pairwise(cuts))
