"""Weights of DeepSpeed's ZeRO, and what the optimizer keeps of them, put together from the partitions of all ranks.

Each rank's file was read on its own: it has what it holds of a weight under that weight's name and place. What a
tensor is called here names no rank, so that another number of ranks goes on with the same tensors.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from ckzd.checkpoint import STORED_AS, Hole, Optimizer, ParamGroup, TensorSpec
from ckzd.formats.frameworks.framework import ParsedDirectory
from ckzd.formats.frameworks.zero_partitions import Share, Shares
from ckzd.formats.parsed import unique_paths
from ckzd.parts import Part, cover

Path = tuple[str, ...]
Ranks = Mapping[str, tuple[str, Shares]]  # by name of a rank's file: what stands for all of them, and its shares


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor of a rank's file that is a share of a weight, or of what is kept of one; `path` is that of the whole."""

    number: int
    share: Share
    path: Path


def joined(parsed: ParsedDirectory, ranks: Ranks) -> ParsedDirectory:
    """The tensors of ranks' files as those of one; shares that are not all of a weight keep names of their own."""
    pieces = {piece.number: piece for piece in _pieces(parsed.tensors, ranks)}
    of_whole: dict[Path, list[_Piece]] = defaultdict(list)
    for piece in pieces.values():
        of_whole[piece.path].append(piece)
    left = {(p[0].path[0], p[0].share.weight) for p in of_whole.values() if not _is_whole(parsed.tensors, p)}
    tensors: list[TensorSpec] = []
    numbers: dict[Path, int] = {}
    places: dict[int, tuple[int, Part | None]] = {}  # of each tensor: which it is a part of
    for number, tensor in enumerate(parsed.tensors):
        own = pieces.get(number)
        if own is None or (own.path[0], own.share.weight) in left:
            places[number] = len(tensors), None
            path = tensor.path if own is None else (own.path[0], *tensor.path[1:])
            tensors.append(replace(tensor, path=path))
            continue
        if own.path not in numbers:
            numbers[own.path] = len(tensors)
            tensors.append(_whole(tensor, own))
        places[number] = numbers[own.path], _part(tensor, own)
    holes = tuple(tuple(_placed(hole, *places[hole.tensor]) for hole in some) for some in parsed.holes)
    optimizers = tuple(_optimizers(parsed.optimizers, ranks, left))
    return replace(parsed, tensors=tuple(unique_paths(tensors)), holes=holes, optimizers=optimizers)


def _pieces(tensors: Sequence[TensorSpec], ranks: Ranks) -> Iterable[_Piece]:
    for number, tensor in enumerate(tensors):
        common, shares = ranks.get(tensor.path[0], ("", {}))
        for place, name in enumerate(tensor.path[1:], 1):
            share = shares.get(name)
            if share is not None and tensor.dtype in STORED_AS and tensor.elements == share.elements:
                yield _Piece(number, share, (common, *tensor.path[1:place], share.weight, *tensor.path[place + 1 :]))
                break


def _is_whole(tensors: Sequence[TensorSpec], pieces: Sequence[_Piece]) -> bool:
    """Whether they are just all of one tensor."""
    dtypes = {tensors[piece.number].dtype for piece in pieces}
    own = [tensors[piece.number] for piece in pieces]
    parts = [Part(piece.share.begin * _bytes(tensor), tensor.nbytes) for piece, tensor in zip(pieces, own, strict=True)]
    return len(dtypes) == 1 and cover(parts, prod(pieces[0].share.shape) * _bytes(own[0]))


def _bytes(tensor: TensorSpec) -> int:
    return STORED_AS[tensor.dtype].itemsize


def _whole(tensor: TensorSpec, piece: _Piece) -> TensorSpec:
    nbytes = prod(piece.share.shape) * _bytes(tensor)
    return replace(tensor, path=piece.path, shape=piece.share.shape, nbytes=nbytes)


def _part(tensor: TensorSpec, piece: _Piece) -> Part | None:
    is_all = tensor.elements == prod(piece.share.shape)
    return None if is_all else Part(piece.share.begin * _bytes(tensor), tensor.nbytes)


def _placed(hole: Hole, number: int, part: Part | None) -> Hole:
    return replace(hole, tensor=number, part=part)


def _optimizers(optimizers: Sequence[Optimizer], ranks: Ranks, left: set[tuple[str, str]]) -> Iterable[Optimizer]:
    """One for all ranks; each rank's is left without parameters, for what else lies in it."""
    together: dict[Path, list[list[ParamGroup]]] = {}
    for optimizer in optimizers:
        if optimizer.path[0] not in ranks:
            yield optimizer
            continue
        common, shares = ranks[optimizer.path[0]]
        yield replace(optimizer, groups=())
        groups = together.setdefault((common, *optimizer.path[1:]), [[] for _ in optimizer.groups])
        for same, group in zip(groups, optimizer.groups, strict=False):
            found = ((shares.get(name), name) for name in group.ids)
            is_left = ((share is None or (common, share.weight) in left, share, name) for share, name in found)
            ids = (name if alone or share is None else share.weight for alone, share, name in is_left)
            same.append(replace(group, ids=tuple(ids), names=None))
    for path, groups in together.items():
        yield Optimizer(path, tuple(_merged(same) for same in groups if same))


def _merged(groups: Sequence[ParamGroup]) -> ParamGroup:
    """The parameters of one group of all ranks, each once."""
    return replace(groups[0], ids=tuple(dict.fromkeys(name for group in groups for name in group.ids)))
