"""Directories of torch.distributed.checkpoint: `__R_N.distcp` a rank and writer, `.metadata` says what lies where.

FSDP2, torchtitan and Lightning's sharded strategies write them. Each chunk of a sharded tensor is a tensor of its own
here, paired with the same chunk of its moments; its bytes stay in the file where they are. `.metadata` is written last
and renamed into place, over an older one if there is one: while a checkpoint is saved over another it is older than
the files that it names.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

from ckzd.checkpoint import Hole, Optimizer, TensorSpec
from ckzd.errors import BadCheckpoint, CkzdError
from ckzd.formats import inert_pickle, torch_zip, zip_records
from ckzd.formats.frameworks.dcp_metadata import Metadata, Region, read_metadata
from ckzd.formats.frameworks.flat_names import is_master, optimizers_of, path_of, places_of
from ckzd.formats.frameworks.framework import Framework, ParsedDirectory, parse_file, require_ends, together
from ckzd.formats.listing import Listing
from ckzd.formats.names import METADATA, SHARD_SUFFIX, labelled_step
from ckzd.formats.parsed import ParsedFile, collect, opaque, unique_paths
from ckzd.formats.source import FileView, as_ckzd_errors
from ckzd.formats.survey import COUNTER, STEP_KEYS, is_step
from ckzd.formats.tree import Node

LIGHTNING_META = "meta.pt"  # in a directory x.ckpt: Lightning writes it behind `.metadata`
MAX_REMEMBERED, MAX_REMEMBERED_BYTES = 4096, 1024  # pickles of tensors have 200 bytes
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
        raise CkzdError(listing.path, f"{METADATA} missing")
    with as_ckzd_errors(listing.path):
        written = {name: os.lstat(listing.path / name).st_mtime_ns for name in listing.names}
    if listing.path.name.endswith(".ckpt") and LIGHTNING_META not in written:
        raise CkzdError(listing.path, f"{LIGHTNING_META} missing")
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


def _read_state(metadata: Metadata, files: Mapping[str, FileView]) -> _State:
    places, regions = places_of(metadata.items), _Regions(files)
    state = _State({region.file: [] for region in metadata.regions})
    chunks: dict[str, list[str]] = defaultdict(list)
    inside: list[Optimizer] = []  # of objects
    for region in sorted(metadata.regions, key=lambda region: not is_master(places[region.item])):
        path, parsed = path_of(places[region.item], region.chunk), regions.parse(region)
        state.holes[region.file] += (
            replace(
                hole,
                tensor=hole.tensor + len(state.tensors),
                offset=hole.offset + region.offset,
                crc_offsets=tuple(offset + region.offset for offset in hole.crc_offsets),
            )
            for hole in parsed.holes
        )
        is_tensor = metadata.items[region.item] and len(parsed.tensors) == 1
        state.tensors += (replace(t, path=path if is_tensor else (*path, *t.path)) for t in parsed.tensors)
        inside += (replace(optimizer, path=(*path, *optimizer.path)) for optimizer in parsed.optimizers)
        if parsed.tensors:
            chunks[region.item].append(region.chunk)
    objects = {region.item: region for region in metadata.regions if not metadata.items[region.item]}
    counters = {region.item: region for region in metadata.regions if places[region.item].key == COUNTER}

    @cache
    def value_of(name: str) -> Node:
        if name in counters:
            return regions.number(counters[name])
        return regions.value(objects[name]) if name in objects else None

    state.optimizers = (*optimizers_of(places, chunks, value_of), *inside)
    state.step = next(filter(is_step, map(value_of, STEP_KEYS)), None)
    return state


class _Regions:
    """Reads what is in regions: files of torch.save, thousands of them, small and much alike."""

    def __init__(self, files: Mapping[str, FileView]) -> None:
        self._files = {name: view.paged() for name, view in files.items()}
        self._unpickled: dict[bytes, Node] = {}

    def parse(self, region: Region) -> ParsedFile:
        """The tensors in it; opaque bytes where torch.save did not write it."""
        view = self._view(region)
        if _is_zip(view):
            return torch_zip.parse(view, self._load)
        return collect(opaque(("<bytes>",), 0, view.size), view.subject, view.size)

    def value(self, region: Region) -> Node:
        """An object that was saved, as far as it is plain."""
        view = self._view(region)
        return torch_zip.load(view, self._load) if _is_zip(view) else None

    def number(self, region: Region) -> int | None:
        """A count that was saved."""
        view = self._view(region)
        return torch_zip.number(view, self._load) if _is_zip(view) else None

    def _view(self, region: Region) -> FileView:
        return self._files[region.file].part(region.offset, region.nbytes)

    def _load(self, data: bytes, subject: str) -> Node:
        """Chunks of one shape have one pickle."""
        if data in self._unpickled:
            return self._unpickled[data]
        found = inert_pickle.load(data, subject)
        if len(data) <= MAX_REMEMBERED_BYTES and len(self._unpickled) < MAX_REMEMBERED:
            self._unpickled[data] = found
        return found


def _is_zip(view: FileView) -> bool:
    return view.read(0, min(len(zip_records.MAGIC), view.size)) == zip_records.MAGIC


DCP = Framework("dcp", recognises, require_complete, read)
