"""Checkpoints of Accelerate's save_state: each file on its own, a random_states_N.pkl of each rank written last.

There is no marker. Objects that were registered come behind the random states of their rank, numbered too.
"""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from ckzd.errors import Unfinished
from ckzd.formats.frameworks import hugging_face
from ckzd.formats.frameworks.framework import Framework, require_ends
from ckzd.formats.listing import Listing
from ckzd.formats.names import RANDOM_STATES, TRAINER_STATE, labelled_step
from ckzd.formats.source import FileView

_NUMBERED = (RANDOM_STATES, re.compile(r"(custom_checkpoint)_(\d{1,6})\.pkl"))


def recognises(_path: Path, names: AbstractSet[str], folders: AbstractSet[str]) -> bool:
    """By random states under Accelerate's name. FSDP and DeepSpeed add directories to it, none named after a step."""
    is_one = any(map(RANDOM_STATES.fullmatch, names)) and TRAINER_STATE not in names
    return is_one and all(labelled_step(folder) is None for folder in folders)


def require_complete(listing: Listing, views: Sequence[FileView]) -> None:
    """Every file has its end, every part that is named or numbered is there; that no other comes, time has to tell."""
    for pattern in _NUMBERED:
        found = {int(match[2]) for match in map(pattern.fullmatch, listing.names) if match}
        if missing := set(range(max(found, default=-1))) - found:
            name = next(match[1] for match in map(pattern.fullmatch, listing.names) if match)
            raise Unfinished(listing.path, f"{name}_{min(missing)}.pkl missing")
    hugging_face.require_parts(views)
    require_ends(views)


ACCELERATE = Framework("accelerate", recognises, require_complete, hugging_face.read)
