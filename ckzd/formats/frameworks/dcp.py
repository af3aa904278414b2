"""Directories of torch.distributed.checkpoint: `__R_N.distcp` a rank and writer, `.metadata` says what lies where.

FSDP2, torchtitan and Lightning's sharded strategies write them. A sharded tensor is one tensor, whose parts lie in many
files; where its chunks are not all of it each is a tensor of its own. `.metadata` is written last
and renamed into place, over an older one if there is one: while a checkpoint is saved over another it is older than
the files that it names.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

from ckzd.checkpoint import Hole, Optimizer, TensorSpec
from ckzd.errors import BadCheckpoint, CkzdError, Unfinished
from ckzd.formats.frameworks.dcp_metadata import Metadata, Region, read_metadata
from ckzd.formats.frameworks.dcp_regions import Chunk, Regions, joined
from ckzd.formats.frameworks.flat_names import is_master, optimizers_of, path_of, places_of
from ckzd.formats.frameworks.framework import Framework, ParsedDirectory, parse_file, require_ends, together
from ckzd.formats.listing import Listing
from ckzd.formats.names import METADATA, SHARD_SUFFIX, labelled_step
from ckzd.formats.parsed import unique_paths
from ckzd.formats.source import FileView, as_ckzd_errors
from ckzd.formats.survey import COUNTER, STEP_KEYS, is_step
from ckzd.formats.tree import Node

LIGHTNING_META = "meta.pt"  # in a directory x.ckpt: Lightning writes it behind `.metadata`
CLOCK_SKEW_SECONDS = 10.0  # hosts that write to one file system need not agree on the time
_SHARD = re.compile(r"__\d+_\d+\.distcp")
_OWN_METADATA = re.compile(r"__\d+(_\d+)*\.metadata")  # of each rank, where ranks do not talk to each other


def recognises(_path: Path, names: AbstractSet[str], folders: AbstractSet[str]) -> bool:
    """By `.metadata` or a file of a rank. With one `.metadata` for all ranks: others are left alone.

    Directories beside them, as those of a tokenizer's files, are none of steps.
    """
    is_one = METADATA in names or any(map(_SHARD.fullmatch, names))
    return (
        is_one
        and all(labelled_step(folder) is None for folder in folders)
        and not any(map(_OWN_METADATA.fullmatch, names))
    )


def require_complete(listing: Listing, views: Sequence[FileView]) -> None:
    """`.metadata` is there, and none of the files that it may name was written to since."""
    if METADATA not in listing.names:
        raise Unfinished(listing.path, f"{METADATA} missing")
    with as_ckzd_errors(listing.path):
        written = {name: os.lstat(listing.path / name).st_mtime_ns for name in listing.names}
    if listing.path.name.endswith(".ckpt") and LIGHTNING_META not in written:
        raise Unfinished(listing.path, f"{LIGHTNING_META} missing")
    newest = max((name for name in written if name.endswith(SHARD_SUFFIX)), key=lambda name: written[name], default="")
    if newest and written[newest] > written[METADATA] + CLOCK_SKEW_SECONDS * 1e9:
        problem = f"{newest} is younger than {METADATA}: it is being saved over, or was left so"
        raise CkzdError(listing.path, problem, hint=f"of a copy that lost its times: `touch {listing.path / METADATA}`")
    require_ends(views)


def read(views: Sequence[FileView]) -> ParsedDirectory:
    """Tensors in the order of `.metadata`, but what an optimizer keeps of weights first: of two by one name it counts.

    Those of files that it does not name come behind, file by file.
    """
    by_name = {view.name: view for view in views}
    if METADATA not in by_name:
        raise BadCheckpoint(views[0].subject if views else "", f"{METADATA} missing beside it")
    metadata = read_metadata(by_name[METADATA])
    _require_apart(metadata, by_name)
    state = _read_state(metadata, by_name)
    named = {region.file for region in metadata.regions}
    others = [view for view in views if view.name not in named]
    beside = together([view.name for view in others], [parse_file(view) for view in others])
    shift = len(state.tensors)
    holes = state.holes | {
        view.name: [replace(hole, tensor=hole.tensor + shift) for hole in found]
        for view, found in zip(others, beside.holes, strict=True)
    }
    return ParsedDirectory(
        tuple(unique_paths((*state.tensors, *beside.tensors))),
        tuple(tuple(sorted(holes[view.name], key=lambda hole: hole.offset)) for view in views),
        (*state.optimizers, *beside.optimizers),
        state.step,
    )


def _require_apart(metadata: Metadata, files: Mapping[str, FileView]) -> None:
    """Every file that is named is there, and no two regions share bytes."""
    by_file: dict[str, list[Region]] = defaultdict(list)
    for region in metadata.regions:
        by_file[region.file].append(region)
    for name, regions in by_file.items():
        if name not in files or not name.endswith(SHARD_SUFFIX):
            raise BadCheckpoint(files[METADATA].subject, f"names {name[:80]!a}, which is not there")
        for before, after in pairwise(sorted(regions, key=lambda region: (region.offset, region.nbytes))):
            if before.offset + before.nbytes > after.offset:
                raise BadCheckpoint(files[METADATA].subject, f"{after.item[:80]!a} shares bytes with another item")


@dataclass(slots=True)
class _State:
    """What `.metadata` describes; holes by file."""

    holes: dict[str, list[Hole]]
    tensors: list[TensorSpec] = field(default_factory=list)
    optimizers: tuple[Optimizer, ...] = ()
    step: int | None = None

    def add(self, tensor: TensorSpec, holes: Iterable[tuple[str, Hole]]) -> None:
        """A tensor, and the holes that it fills together, each with the name of its file."""
        for name, hole in holes:
            self.holes[name].append(replace(hole, tensor=len(self.tensors)))
        self.tensors.append(tensor)

    def add_file(self, chunk: Chunk, path: tuple[str, ...], *, is_tensor: bool) -> None:
        """The tensors of a region below a path; with that path if it is one tensor."""
        for hole in chunk.holes():
            self.holes[chunk.region.file].append(replace(hole, tensor=hole.tensor + len(self.tensors)))
        self.tensors += (replace(t, path=path if is_tensor else (*path, *t.path)) for t in chunk.parsed.tensors)


def _read_state(metadata: Metadata, files: Mapping[str, FileView]) -> _State:
    places, regions = places_of(metadata.items), Regions(files)
    state = _State({region.file: [] for region in metadata.regions})
    parsed: dict[str, list[Chunk]] = {name: [] for name in metadata.items}
    for region, one in zip(metadata.regions, regions.parse_all(metadata), strict=True):
        parsed[region.item].append(Chunk(region, one))
    kept: dict[str, list[str]] = {}  # of each item the chunks that it is tensors of
    inside: list[Optimizer] = []  # of objects
    for item in sorted(metadata.items, key=lambda item: not is_master(places[item])):
        place, shape, chunks = places[item], metadata.items[item], parsed[item]
        whole = None if shape is None else joined(shape, chunks)
        if whole is not None:
            kept[item] = [""]
            state.add(replace(whole.tensor, path=path_of(place, "")), whole.holes)
            continue
        chunks = [chunk.alone() for chunk in chunks]
        kept[item] = [chunk.region.chunk for chunk in chunks if chunk.parsed.tensors]
        for chunk in chunks:
            path = path_of(place, chunk.region.chunk)
            state.add_file(chunk, path, is_tensor=shape is not None and len(chunk.parsed.tensors) == 1)
            inside += (replace(optimizer, path=(*path, *optimizer.path)) for optimizer in chunk.parsed.optimizers)
    objects = {region.item: region for region in metadata.regions if metadata.items[region.item] is None}
    counters = {region.item: region for region in metadata.regions if places[region.item].key == COUNTER}

    @cache
    def value_of(name: str) -> Node:
        if name in counters:
            return regions.number(counters[name])
        return regions.value(objects[name]) if name in objects else None

    state.optimizers = (*optimizers_of(places, kept, value_of), *inside)
    state.step = next(filter(is_step, map(value_of, STEP_KEYS)), None)
    return state


DCP = Framework("dcp", recognises, require_complete, read)
