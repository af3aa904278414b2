"""Checkpoints of Hugging Face's Trainer: checkpoint-N, each file on its own, trainer_state.json written last."""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckzd.errors import BadCheckpoint, Unfinished
from ckzd.formats import foreign
from ckzd.formats.frameworks.framework import Framework, ParsedDirectory, Says, parse_file, require_ends, together
from ckzd.formats.frameworks.markers import folders_of, newest_first
from ckzd.formats.listing import Listing
from ckzd.formats.names import (
    CHECKPOINT_SUFFIXES,
    INCOMPLETE_MARKER,
    TRAINER_STATE,
    hugging_face_step,
    is_part,
    labelled_step,
)
from ckzd.formats.source import FileView

INDEX_SUFFIX = ".index.json"
_RNG_STATE = re.compile(r"rng_state_(\d{1,6})\.pth")


def recognises(path: Path, names: AbstractSet[str], folders: AbstractSet[str]) -> bool:
    """By its name, unless all tensors are in files of other names, or by trainer_state.json.

    Where only that says so, nothing else that may be a checkpoint stands in it: it may be a whole run's.
    """
    if hugging_face_step(path.name) is not None:
        tensors = [name for name in names if name.endswith(CHECKPOINT_SUFFIXES)]
        return not tensors or TRAINER_STATE in names or any(map(is_part, tensors))
    of_steps = (folder for folder in folders if labelled_step(folder) is not None)
    return TRAINER_STATE in names and not any(map(_is_of_a_run, names)) and not any(of_steps)


def _is_of_a_run(name: str) -> bool:
    return hugging_face_step(name) is not None or (name.endswith(CHECKPOINT_SUFFIXES) and not is_part(name))


def require_complete(listing: Listing, views: Sequence[FileView]) -> None:
    """trainer_state.json is written last and names the directory's step."""
    path = listing.path
    if INCOMPLETE_MARKER in listing.names:
        raise Unfinished(path, f"{INCOMPLETE_MARKER} is still there")
    if TRAINER_STATE not in listing.names:
        raise Unfinished(path, f"{TRAINER_STATE} missing")
    step, named = trainer_step(views), hugging_face_step(path.name)
    if named is not None and step != named:
        raise Unfinished(path, f"{TRAINER_STATE} says step {step}")
    require_parts(views)
    _require_random_states(listing)
    require_ends(views)


def _require_random_states(listing: Listing) -> None:
    """With several ranks each writes its own, and nobody waits for the others."""
    ranks = {int(match[1]) for match in map(_RNG_STATE.fullmatch, listing.names) if match}
    if missing := set(range(max(ranks, default=-1))) - ranks:
        raise Unfinished(listing.path, f"rng_state_{min(missing)}.pth missing")


def read(views: Sequence[FileView]) -> ParsedDirectory:
    """Each file on its own. The paths of its tensors begin with its name."""
    require_parts(views)
    step = trainer_step(views)
    return replace(together([view.name for view in views], [parse_file(view) for view in views]), step=step)


def trainer_step(views: Sequence[FileView]) -> int | None:
    """`global_step` of trainer_state.json; None if there is no such file."""
    for view in views:
        if view.name == TRAINER_STATE:
            step = read_json(view).get("global_step")
            if type(step) is not int or not 0 <= step < 1 << 62:
                raise BadCheckpoint(view.subject, f"global_step is {str(step)[:40]!a}")
            return step
    return None


def require_parts(views: Sequence[FileView]) -> None:
    """Every shard that an index names is there."""
    names = {view.name for view in views}
    for view in views:
        if view.name.endswith(INDEX_SUFFIX):
            parts = read_json(view).get("weight_map", {})
            parts = set(parts.values()) if isinstance(parts, dict) and all(map(_is_str, parts.values())) else {"?"}
            if missing := sorted(parts - names):
                raise BadCheckpoint(view.subject, f"names {missing[0][:80]!a}, which is not there")


def require_files(_listing: Listing, views: Sequence[FileView]) -> None:
    """Every file that an index names is there, and every file has its end: all that can be asked where nobody says."""
    require_parts(views)
    require_ends(views)


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


def read_json(view: FileView) -> dict[str, Any]:
    """A JSON object; BadCheckpoint if it is cut off, too long or something else."""
    if view.size > foreign.MAX_JSON_BYTES:
        raise BadCheckpoint(view.subject, f"JSON of {view.size} bytes, at most {foreign.MAX_JSON_BYTES} are read")
    try:
        return foreign.json_object(view.read(0, view.size))
    except ValueError as error:
        problem = f"no JSON object: cut off, or still being written ({str(error)[:80]})"
        raise BadCheckpoint(view.subject, problem) from error


def protected(run: Path, _checkpoints: Sequence[Path], _says: Says) -> dict[str, str]:
    """What the newest readable trainer_state.json of the run calls its best model: it is loaded at the end."""
    for state in newest_first(folder / TRAINER_STATE for folder in (run, *folders_of(run))):
        told = foreign.json_file(state)
        if told is not None:
            best = told.get("best_model_checkpoint")
            why = f"best_model_checkpoint in {TRAINER_STATE} names it"
            return {Path(best).name: why} if isinstance(best, str) else {}
    return {}


HUGGING_FACE = Framework("hugging_face", recognises, require_complete, read, protected)
