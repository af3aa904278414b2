"""Checkpoints of DeepSpeed: the states of the model by tensor-parallel rank, with ZeRO those of the optimizer by rank.

There is no marker inside. Which one is the latest stands in `latest` beside it, which waits for no other rank: all
files that the model's states ask for must be there.
"""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ckzd.errors import BadCheckpoint, CkzdError, Unfinished
from ckzd.formats import inert_pickle, sniff, torch_zip
from ckzd.formats.frameworks.framework import Framework, ParsedDirectory, parse_file, require_ends, together
from ckzd.formats.frameworks.zero_joined import joined
from ckzd.formats.frameworks.zero_partitions import Shapes, Shares, named, shapes_of, shares_in
from ckzd.formats.listing import Listing
from ckzd.formats.parsed import ParsedFile
from ckzd.formats.source import FileView
from ckzd.formats.survey import is_step
from ckzd.formats.tree import Mapping, Node

MAX_RANKS = 100_000
_STATES = re.compile(r"(?:bf16_)?(?:zero_pp_rank_(\d{1,6})_)?mp_rank_(\d{1,6})_(model|optim)_states\.pt", re.ASCII)
_OF_EXPERTS = re.compile(r".*(expp_rank|expert)_\d+.*")


@dataclass(frozen=True, slots=True)
class _Name:
    """What a file's name says of it."""

    rank: int | None  # data-parallel
    model_rank: int
    is_optimizer: bool


def _name(name: str) -> _Name | None:
    match = _STATES.fullmatch(name)
    return _Name(None if match[1] is None else int(match[1]), int(match[2]), match[3] == "optim") if match else None


def recognises(path: Path, names: AbstractSet[str], folders: AbstractSet[str]) -> bool:
    """By files of states. With experts, in DeepSpeed's universal format or in Lightning's x.ckpt it is left alone."""
    is_plain = not folders and not any(map(_OF_EXPERTS.fullmatch, names)) and path.parent.suffix != ".ckpt"
    return is_plain and any(map(_name, names))


def require_complete(listing: Listing, views: Sequence[FileView]) -> None:
    """The states of every rank are there and have their ends."""
    files = {found for view in views if (found := _name(view.name)) is not None}
    models = [view for view in views if (found := _name(view.name)) is not None and not found.is_optimizer]
    if not models:
        raise Unfinished(listing.path, "model states missing")
    require_ends(views)
    states = _load(models[0])
    if states is None:
        hint = "save it with torch 1.6 or newer: which optimizer states belong to it stands in them"
        raise CkzdError(listing.path, f"model states {models[0].name} are not in torch.save's zip format", hint=hint)
    ranks, model_ranks = _count(states, "dp_world_size"), max(file.model_rank for file in files) + 1
    there = {(file.rank, file.model_rank) for file in files if file.is_optimizer}
    is_cut = any(rank is not None for rank, _ in there) or _has_partitions(states)
    wanted = [(rank, model_rank) for rank in range(ranks if is_cut else 0) for model_rank in range(model_ranks)]
    if missing := [place for place in wanted if place not in there]:
        problem = f"optimizer states of rank {missing[0][0]} (model-parallel rank {missing[0][1]}) missing"
        raise Unfinished(listing.path, problem)
    of_models = {file.model_rank for file in files if not file.is_optimizer}
    if absent := set(range(model_ranks)) - of_models:
        raise Unfinished(listing.path, f"model states of model-parallel rank {min(absent)} missing")


def read(views: Sequence[FileView]) -> ParsedDirectory:
    """Each file on its own, the flat partitions of an optimizer's as the weights that lie in them; then these together.

    The optimizers' come first: fp32 weights are there, which moments belong to, and not to their copies in the model.
    """
    order = sorted(views, key=lambda view: not _is_optimizer(view))
    shapes: dict[int, tuple[Shapes | None, int]] = {}
    step = None
    for view in views:
        found = _name(view.name)
        if found is not None and not found.is_optimizer:
            states = _load(view)
            shapes[found.model_rank] = shapes_of(states), _count(states, "dp_world_size")
            steps = states.get("global_steps") if isinstance(states, Mapping) else None
            step = steps if is_step(steps) else step
    parsed = together([view.name for view in order], [_parse(view, shapes) for view in order])
    parsed = joined(parsed, _ranks(parsed, order, shapes))
    holes = dict(zip((view.name for view in order), parsed.holes, strict=True))
    return replace(parsed, holes=tuple(holes[view.name] for view in views), step=step)


def _has_partitions(states: Node) -> bool:
    """Whether ranks keep their parts of the optimizer's states: it is not in the model's, and there is one.

    Without an optimizer the shapes of its weights are None; older versions do not have them at all.
    """
    if not isinstance(states, Mapping) or states.get("optimizer") is not None:
        return False
    return states.get("param_shapes") is not None or all(key != "param_shapes" for key, _ in states.pairs)


def _ranks(
    parsed: ParsedDirectory, views: Sequence[FileView], shapes: dict[int, tuple[Shapes | None, int]]
) -> dict[str, tuple[str, Shares]]:
    """What of which weights the files of ranks hold, and what is called alike in all that hold parts of the same."""
    names: dict[str, set[str]] = {view.name: set() for view in views}
    for tensor in parsed.tensors:
        names[tensor.path[0]].update(tensor.path[1:])
    found: dict[str, tuple[str, Shares]] = {}
    for view in views:
        file = _name(view.name)
        known, _ = shapes.get(file.model_rank, (None, 0)) if file is not None else (None, 0)
        if file is not None and file.is_optimizer and file.rank is not None and known is not None:
            common = f"mp_rank_{file.model_rank:02}_optim_states.pt"
            found[view.name] = common, shares_in(names[view.name], known, _suffix(file.model_rank))
    return found


def _suffix(model_rank: int) -> str:
    return f"@{model_rank}" if model_rank else ""


def _is_optimizer(view: FileView) -> bool:
    found = _name(view.name)
    return found is not None and found.is_optimizer


def _parse(view: FileView, shapes: dict[int, tuple[Shapes | None, int]]) -> ParsedFile:
    found = _name(view.name)
    if found is None or sniff.parser_of(view) is not torch_zip.parse:
        return parse_file(view)
    known, ranks = shapes.get(found.model_rank, (None, 0))
    if not found.is_optimizer or found.rank is None or known is None or not found.rank < ranks:
        return parse_file(view)
    suffix = _suffix(found.model_rank)
    return torch_zip.parse(view, partial(_named, shapes=known, rank=found.rank, ranks=ranks, suffix=suffix))


def _named(data: bytes, subject: str, *, shapes: Shapes, rank: int, ranks: int, suffix: str) -> Node:
    return named(inert_pickle.load(data, subject), shapes, rank, ranks, suffix)


def _load(view: FileView) -> Node:
    """What is in a file, without its tensors' bytes; None where it is not of torch.save's zip format."""
    with suppress(BadCheckpoint):
        return torch_zip.load(view)
    return None


def _count(states: Node, key: str) -> int:
    value = states.get(key) if isinstance(states, Mapping) else None
    return value if type(value) is int and 0 < value <= MAX_RANKS else 0


DEEPSPEED = Framework("deepspeed", recognises, require_complete, read)
