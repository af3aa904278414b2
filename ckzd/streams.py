"""Where the codec's streams lie in an archive: the one thing that both know."""

from typing import NamedTuple


class StreamRef(NamedTuple):
    """Bytes [offset, offset + nbytes) of an entry. The index of an archive stores the three in this order."""

    entry: str
    offset: int
    nbytes: int
