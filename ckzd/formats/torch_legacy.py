"""Files of torch.save from before 1.6, or with its old format asked for: pickles, then the storages one by one.

    magic number | version | system | what was saved | keys of the storages | (u64 number of elements, bytes) a key

All but the last are pickles, each of which says itself where it ends. There are no checksums.
"""

import io
from collections.abc import Sequence

from ckzd.errors import BadCheckpoint
from ckzd.formats import inert_pickle
from ckzd.formats.parsed import ParsedFile, collect
from ckzd.formats.source import FileView, Window
from ckzd.formats.storages import Place, tensors_in
from ckzd.formats.survey import Survey, survey
from ckzd.formats.tree import Mapping, Node

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # its magic number, pickled
VERSION = 1001
MAX_STORAGES = 1_000_000
_COUNT_BYTES = 8


def parse(view: FileView) -> ParsedFile:
    """Read everything but the tensors' bytes. BadCheckpoint for what torch.save would not have written."""
    subject = view.subject
    stream = io.BufferedReader(_Start(view))
    if stream.read(len(MAGIC)) != MAGIC:
        raise BadCheckpoint(subject, "does not begin as torch.save's old format does")
    version, system, root, keys = (inert_pickle.load_next(stream, subject) for _ in range(4))
    if version != VERSION:
        raise BadCheckpoint(subject, f"version of torch.save's old format: expected {VERSION}, got another one")
    _require_little_endian(system, subject)
    facts = survey(root, subject)
    places = _places(view, stream.tell(), facts, _keys(keys, subject))
    found, optimizers = tensors_in(facts, places, view, subject)
    return collect(found, subject, view.size, optimizers, facts.step)


def _require_little_endian(system: Node, subject: str) -> None:
    if not isinstance(system, Mapping) or system.get("little_endian") is not True:
        hint = "load it and save it again on a little-endian machine"
        raise BadCheckpoint(subject, "byte order: expected a file that says it is little-endian", hint=hint)


def _keys(keys: Node, subject: str) -> list[str]:
    """In the order of their storages."""
    if not isinstance(keys, list) or len(keys) > MAX_STORAGES:
        raise BadCheckpoint(subject, f"expected a list of at most {MAX_STORAGES} keys of storages")
    texts = [key for key in keys if type(key) is str]
    if len(set(texts)) != len(keys):
        raise BadCheckpoint(subject, "a key of a storage is no text, or stands there twice")
    return texts


def _places(view: FileView, start: int, facts: Survey, keys: Sequence[str]) -> dict[str, Place]:
    """Where the storages lie, which fill the rest of the file."""
    if facts.uses.keys() != set(keys):
        raise BadCheckpoint(view.subject, "the storages that it holds are not those that its tensors refer to")
    window, places = Window(view), dict[str, Place]()
    for key in keys:
        ref = facts.uses[key].ref
        elements = int.from_bytes(window.read(start, _COUNT_BYTES), "little")
        if elements != ref.elements or not ref.element_bytes:
            problem = f"storage {key[:80]!a}: expected {ref.elements} elements of {ref.dtype[:80]}, got {elements}"
            raise BadCheckpoint(view.subject, problem)
        places[key] = Place(start + _COUNT_BYTES, elements * ref.element_bytes)
        start += _COUNT_BYTES + places[key].nbytes
    if start != view.size:
        problem = f"expected {start} bytes, got {view.size}: cut off, still being written, or followed by something"
        raise BadCheckpoint(view.subject, problem)
    return places


class _Start(io.RawIOBase):
    """As much of a file as its pickles may take, read as they are."""

    def __init__(self, view: FileView) -> None:
        self._view, self._at = view, 0
        self._end = min(view.size, inert_pickle.MAX_PICKLE_BYTES)

    def readable(self) -> bool:
        """For `io.BufferedReader`."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._at

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]  # typeshed's is wider than what comes
        """Some of what is next; 0 at the end."""
        data = self._view.read(self._at, min(len(into), self._end - self._at))
        into[: len(data)] = data
        self._at += len(data)
        return len(data)
