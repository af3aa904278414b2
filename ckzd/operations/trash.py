"""One replacement, or restore of a directory, on its way: what it intends and what it holds.

    STORE/trash/<id>/intent.json   written before anything moves; says all that undoing needs
    STORE/trash/<id>/held/<name>   the original once it moved, each of several files (before: what takes its place)
    STORE/trash/<id>/verified      the original was compared here and its archive stands for it: it may be deleted
    STORE/trash/<id>/kept          it could not be put back and is not archived: a person decides

Whoever calls holds the store's replace lock, so that nobody else moves the same things.
"""

import json
import logging
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from ckzd import durable
from ckzd.chains import ARCHIVE_SUFFIX
from ckzd.errors import CorruptArchive
from ckzd.file_marks import Mark
from ckzd.formats.foreign import MAX_JSON_BYTES, json_object, read_small
from ckzd.formats.names import POINTER_NAME
from ckzd.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be done. Paths are relative to the store's root, so that both can move together.

    method    "file": it moves to the trash. "exchange": a prepared directory trades places with it. "pieces": its
              large files move to the trash one by one, where the file system knows no exchange. "restore": the
              restored directory trades places with the one that holds the pointer.
    original  the marks of all that is in it ("" is itself) before anything moved
    beside    the other files that are one checkpoint with it and go with it, by name
    prepared  those of the prepared directory; empty until it is complete
    """

    method: Literal["file", "exchange", "pieces", "restore"]
    checkpoint: str
    archive: str
    pointer_text: str
    previous_pointer: str | None
    original: dict[str, Mark]
    prepared: dict[str, Mark]
    beside: dict[str, "Beside"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Beside:
    """Another file of the checkpoint, in the same directory."""

    pointer_text: str
    previous_pointer: str | None
    mark: Mark


@dataclass(frozen=True, slots=True)
class Piece:
    """One file of a checkpoint that is made of such: where it stood, where it comes to lie, and its pointer."""

    place: Path
    held: Path
    pointer_text: str
    previous_pointer: str | None
    mark: Mark

    @property
    def pointer(self) -> Path:
        """Where its pointer stands or will stand."""
        return self.place.with_name(self.place.name + ARCHIVE_SUFFIX)


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory in the trash."""

    store: Store
    root: Path
    intent: Intent

    @classmethod
    def begin(cls, store: Store, intent: Intent) -> Self:
        """Make the intention durable; nothing else has happened yet."""
        temp, root = store.new_temp(".entry"), store.trash / secrets.token_hex(8)
        try:
            (temp / "held").mkdir(parents=True)
            cls(store, temp, intent).write_intent()
            durable.rename(temp, root)
        except BaseException:
            durable.remove_tree(temp)
            raise
        return cls(store, root, intent)

    @classmethod
    def load(cls, store: Store, root: Path) -> Self:
        """Read back what `begin` wrote."""
        try:
            fields = json_object(read_small(root / "intent.json", MAX_JSON_BYTES) or b"")
            for key in ("original", "prepared"):
                fields[key] = {name: Mark(*mark) for name, mark in fields[key].items()}
            beside = fields.get("beside", {}).items()
            fields["beside"] = {name: Beside(**one | {"mark": Mark(*one["mark"])}) for name, one in beside}
            return cls(store, root, Intent(**fields))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptArchive(root, f"its intent.json cannot be read: {error}") from error

    @classmethod
    def all_of(cls, store: Store) -> list[Self]:
        """The entries of a store that can be read; `recover` tells of the others."""
        entries = []
        for root in sorted(store.trash.iterdir()):
            with suppress(CorruptArchive):
                entries.append(cls.load(store, root))
        return entries

    @property
    def checkpoint(self) -> Path:
        """Where the original stood."""
        return Path(os.path.normpath(self.store.root / self.intent.checkpoint))

    @property
    def archive(self) -> Path:
        """The archive that stands for the original."""
        return Path(os.path.normpath(self.store.root / self.intent.archive))

    @property
    def held(self) -> Path:
        """Where the original comes to lie."""
        return self.root / "held" / self.checkpoint.name

    @property
    def pointer(self) -> Path:
        """Where the pointer stands or will stand."""
        if self.intent.method == "file":
            return self.checkpoint.with_name(self.checkpoint.name + ARCHIVE_SUFFIX)
        return self.checkpoint / POINTER_NAME

    @property
    def pieces(self) -> list[Piece]:
        """The files that go together, in the order in which they go; its own is the only one of a lone file."""
        intent = self.intent
        own = Beside(intent.pointer_text, intent.previous_pointer, intent.original[""])
        return [
            Piece(
                self.checkpoint.with_name(name),
                self.held.with_name(name),
                one.pointer_text,
                one.previous_pointer,
                one.mark,
            )
            for name, one in {self.checkpoint.name: own, **intent.beside}.items()
        ]

    @property
    def is_verified(self) -> bool:
        """Whether the original may be deleted."""
        return (self.root / "verified").exists()

    @property
    def is_kept(self) -> bool:
        """Whether a person has to decide."""
        return (self.root / "kept").exists()

    def update(self, intent: Intent) -> "Entry":
        """Change the intention, durably."""
        entry = replace(self, intent=intent)
        entry.write_intent()
        return entry

    def set_verified(self) -> None:
        """From here on the original may be deleted."""
        with durable.write_atomically(self.root / "verified"):
            pass

    def set_unverified(self) -> None:
        """Its archive turned out not to stand for the original any more: it is as half-done as before."""
        durable.remove(self.root / "verified")

    def set_kept(self, reason: str) -> None:
        """The original stays here until a person decides."""
        with durable.write_atomically(self.root / "kept") as file:
            file.write(f"{reason}\n".encode())
        log.error("an original stays in the trash", extra={"path": str(self.held), "reason": reason})

    def discard(self) -> None:
        """Remove the entry: first what it holds, then the intention. An entry without both is nothing but rubbish."""
        durable.remove_tree(self.root / "held")
        durable.remove(self.root / "intent.json")
        durable.remove_tree(self.root)

    def write_intent(self) -> None:
        """Write intent.json."""
        with durable.write_atomically(self.root / "intent.json") as file:
            file.write(json.dumps(asdict(self.intent)).encode())


def archives_in_trash(store: Store) -> list[Path]:
    """The archives that originals in the trash hang on, proven or half-done. CorruptArchive if one cannot be read."""
    found = []
    for root in sorted(store.trash.iterdir()):
        with suppress(FileNotFoundError):
            if any(root.iterdir()):
                found.append(Entry.load(store, root).archive)
    return found
