"""Megatron's older checkpoints: `iter_0001000/mp_rank_00_001/model_optim_rng.pt`, a directory for each model rank.

There is no marker inside. `latest_checkpointed_iteration.txt` beside them says up to which iteration all is written.
"""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from ckzd.errors import Unfinished
from ckzd.formats.foreign import marker_text
from ckzd.formats.frameworks import hugging_face
from ckzd.formats.frameworks.framework import Framework, require_ends
from ckzd.formats.listing import Listing
from ckzd.formats.names import TRACKER, step_in_name
from ckzd.formats.source import FileView

_RELEASE = "release"  # written once, of weights from elsewhere
_RANK = re.compile(r"mp_rank_(\d{2,6}(?:_\d{3,6}){0,2})", re.ASCII)


def recognises(path: Path, names: AbstractSet[str], folders: AbstractSet[str]) -> bool:
    """By a directory for each rank and nothing else, in one named after an iteration."""
    named = path.name == _RELEASE or step_in_name(path.name) is not None
    return named and bool(folders) and names == folders and all(map(_RANK.fullmatch, folders))


def require_complete(listing: Listing, views: Sequence[FileView]) -> None:
    """The tracker has come to it, and all combinations of the ranks that there are are there."""
    require_ends(views)
    said = marker_text(listing.path.parent / TRACKER).strip()
    step = step_in_name(listing.path.name)
    reached = said == _RELEASE or (step is not None and said.isdecimal() and int(said[:18]) >= step)
    if listing.path.name != _RELEASE and not reached:
        raise Unfinished(listing.path, f"{TRACKER} beside it does not say that it is finished: {said[:20]!a}")
    ranks = [tuple(match[1].split("_")) for folder in listing.folders if (match := _RANK.fullmatch(folder))]
    counts = [len(set(of_one)) for of_one in zip(*ranks, strict=False)]
    wanted = 1
    for count in counts:
        wanted *= count
    if len(ranks) != wanted:
        raise Unfinished(listing.path, f"expected directories of {wanted} model ranks, got {len(ranks)}")


MEGATRON = Framework("megatron", recognises, require_complete, hugging_face.read)
