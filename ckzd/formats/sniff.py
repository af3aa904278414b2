"""Which reader a file belongs to, by its first bytes."""

from collections.abc import Callable

from ckzd.errors import BadCheckpoint
from ckzd.formats import safetensors, torch_legacy, torch_zip, zip_records
from ckzd.formats.parsed import ParsedFile
from ckzd.formats.source import FileView

_TAR_MARK_AT = 257
_OTHERS = (  # what is no checkpoint that ckzd reads, by where its mark lies
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"version https://git-lfs", "what git-lfs leaves in place of a file that it has not fetched"),
    (_TAR_MARK_AT, b"ustar", "a tarball"),
    *((0, bytes((0x80, protocol)), "a pickle that torch.save did not write") for protocol in (2, 3, 4, 5)),
)

START_BYTES = len(torch_legacy.MAGIC)  # what it takes to tell the formats apart


def parser_by(name: str, start: bytes) -> Callable[[FileView], ParsedFile] | None:
    """The reader of a file that starts so; None if its format is not known. Intact or not is for the reader to find."""
    if start.startswith(zip_records.MAGIC):
        return torch_zip.parse
    if start.startswith(torch_legacy.MAGIC):
        return torch_legacy.parse
    if name.endswith(".safetensors") or safetensors.looks_like(start):
        return safetensors.parse
    return None


def parser_of(view: FileView) -> Callable[[FileView], ParsedFile] | None:
    """`parser_by` of a file that is at rest."""
    return parser_by(view.name, view.read(0, min(START_BYTES, view.size)))


def parse(view: FileView) -> ParsedFile:
    """Read a file of a known format; BadCheckpoint for any other."""
    parser = parser_of(view)
    if parser is not None:
        return parser(view)
    raise _unknown(view)


def require_end(view: FileView) -> None:
    """The cheap test that a writer has finished: the zip's end, or a length that fits what the file begins with."""
    parser = parser_of(view)
    if parser is torch_zip.parse:
        zip_records.find_directory(view)
    elif parser is not None:
        parser(view)
    else:
        raise _unknown(view)


def _unknown(view: FileView) -> BadCheckpoint:
    """Says what the file is, as far as its first bytes tell."""
    if not view.size:
        return BadCheckpoint(view.subject, "empty")
    start = view.read(0, min(_TAR_MARK_AT + 5, view.size))
    told = (what for at, mark, what in _OTHERS if start.startswith(mark, at))
    return BadCheckpoint(view.subject, f"of no known format: {next(told, f'it begins with {start[:8]!r}')}")
