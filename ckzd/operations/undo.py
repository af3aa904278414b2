"""Put an original back: after an error, after a crash, or because it turned out to have changed; end a restore."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ckzd import durable
from ckzd.access import access_to, give
from ckzd.file_marks import Mark
from ckzd.formats.names import POINTER_NAME, order_of_leaving
from ckzd.operations.originals import marks_of
from ckzd.operations.trash import Entry
from ckzd.store import Store


def put_back(entry: Entry) -> str | None:
    """Undo whatever of the replacement has happened; None, or why the original has to stay in the trash.

    Each step may have been done already, by an earlier attempt that died.
    """
    undo = {"file": _put_back_files, "exchange": _put_back_directory, "pieces": _put_back_pieces}
    kept = undo[entry.intent.method](entry)
    if kept is None:
        entry.discard()
    else:
        entry.set_kept(kept)
    return kept


def end_restore(entry: Entry) -> None:
    """After the restored directory took its place, or did not: what made way may hold what came at the last moment."""
    if os.path.lexists(entry.held / POINTER_NAME):  # else it is the restored one, and the pointer still stands
        carry_over_what_came_later(entry.held, entry.intent.original, entry.checkpoint)
    entry.discard()


def holds_original(entry: Entry) -> bool:
    """Whether all of the original that was to leave has left its place, and lies in the trash."""
    if entry.intent.method == "exchange":
        return bool(entry.intent.prepared) and entry.held.is_dir() and not is_prepared(entry, entry.held)
    return all(os.path.lexists(piece.held) for piece in entry.pieces)


def is_prepared(entry: Entry, place: Path) -> bool:
    """Whether what stands at `place` is the directory that was prepared to take the original's place."""
    prepared = entry.intent.prepared.get("")
    if prepared is None or _inode(place) != prepared.inode:
        return False
    return _is_own_pointer(place / POINTER_NAME, entry.intent.pointer_text)


def forget_prepared(entry: Entry) -> Entry:
    """Before the prepared directory is taken apart: a half of one cannot be told from an original any more."""
    return entry.update(replace(entry.intent, prepared={}))


def _put_back_files(entry: Entry) -> str | None:
    """The optimizer comes before the model, the pointers of all go when the last one is back."""
    kept = [_move_back(piece.held, piece.place) for piece in reversed(entry.pieces)]
    for piece, why in zip(reversed(entry.pieces), kept, strict=True):
        if why or _inode(piece.place) == piece.mark.inode:  # else it is gone: the pointer alone leads to its archive
            _withdraw_pointer(entry.store, piece.pointer, piece.pointer_text, piece.previous_pointer)
    return next(filter(None, kept), None)


def _put_back_directory(entry: Entry) -> str | None:
    if holds_original(entry):
        if not is_prepared(entry, entry.checkpoint):
            return f"{entry.checkpoint} is gone, or taken by something else"
        durable.exchange(entry.held, entry.checkpoint)
    if entry.intent.prepared and entry.held.is_dir():
        carry_over_what_came_later(entry.held, entry.intent.prepared, entry.checkpoint)
        forget_prepared(entry)
    return None


def carry_over_what_came_later(left: Path, marks: Mapping[str, Mark], place: Path) -> None:
    """Of a directory that had to make way, move what was written into it since `marks` were taken to its successor."""
    for name, mark in marks_of(left).items():
        source, target = left / name, place / name
        if name in ("", POINTER_NAME) or mark == marks.get(name) or _is_newer(target, mark):
            continue
        if source.is_dir() and not source.is_symlink():
            target.mkdir(exist_ok=True)
        else:
            durable.overwrite(source, target)


def _is_newer(path: Path, mark: Mark) -> bool:
    """Whether it was written after that: the work may be done long after a crash."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return path.lstat().st_mtime_ns > mark.mtime_ns
    return False


def _put_back_pieces(entry: Entry) -> str | None:
    """In the order that keeps frameworks from loading it until it is whole."""
    kept = None
    names = marks_of(entry.held) if entry.held.is_dir() else {}
    for name in sorted(names, key=order_of_leaving, reverse=True):
        if not (entry.held / name).is_dir():
            if not stands(entry):
                return f"{entry.checkpoint} is gone, or another directory"
            kept = _move_back(entry.held / name, entry.checkpoint / name) or kept
    if stands(entry):
        if all(os.path.lexists(entry.checkpoint / name) for name in entry.intent.original):
            intent = entry.intent
            _withdraw_pointer(entry.store, entry.pointer, intent.pointer_text, intent.previous_pointer)
        set_directory_time(entry)
    return kept


def stands(entry: Entry) -> bool:
    """Whether the file, or the directory that is being replaced in pieces, stands in its place."""
    return _inode(entry.checkpoint) == entry.intent.original[""].inode


def _inode(place: Path) -> int | None:
    """Of what stands there, if anything does."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return place.lstat().st_ino
    return None


def set_directory_time(entry: Entry) -> None:
    """Give the checkpoint's directory, and those in it, the times that they had: rotation goes by its own."""
    for name, mark in entry.intent.original.items():
        place = entry.checkpoint / name
        if place.is_dir() and not place.is_symlink():
            os.utime(place, ns=(mark.mtime_ns,) * 2)
    durable.fsync_dir(entry.checkpoint)


def _move_back(held: Path, place: Path) -> str | None:
    if not os.path.lexists(held):
        return None
    try:
        durable.rename(held, place)
    except FileExistsError:
        if not held.samefile(place):
            return f"{place} was written anew"
        durable.remove(held)  # without flags a rename links first: an earlier attempt died in between
    except (FileNotFoundError, NotADirectoryError):
        return f"the directory of {place} is gone"
    return None


def _withdraw_pointer(store: Store, pointer: Path, text: str, previous: str | None) -> None:
    """Take our pointer away, or put the one back that it superseded; leave anybody else's."""
    if not _is_own_pointer(pointer, text):
        return
    if previous is None:
        durable.remove(pointer)
        return
    temp = store.new_temp(".pointer")
    with durable.write_atomically(temp, mode=0o600) as file:
        file.write(previous.encode())
    give(temp, access_to([pointer], place=pointer.parent))
    durable.overwrite(temp, pointer)


def _is_own_pointer(place: Path, text: str) -> bool:
    """Whether the pointer of this replacement stands at `place`, and not what somebody else has put there.

    What cannot be read raises: it may be read later, and what is decided here is final.
    """
    try:
        return place.read_text() == text
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UnicodeDecodeError):
        return False
