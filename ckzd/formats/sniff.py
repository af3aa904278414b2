"""Which reader a file belongs to, by its first bytes."""

from collections.abc import Callable

from ckzd.errors import BadCheckpoint
from ckzd.formats import safetensors, torch_zip, zip_records
from ckzd.formats.parsed import ParsedFile
from ckzd.formats.source import FileView

OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # its magic number, pickled: before torch 1.6


START_BYTES = 9  # what it takes to tell the formats apart


def parser_by(name: str, start: bytes) -> Callable[[FileView], ParsedFile] | None:
    """The reader of a file that starts so; None if its format is not known. Intact or not is for the reader to find."""
    if start.startswith(zip_records.MAGIC):
        return torch_zip.parse
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
    if view.read(0, min(len(OLD_TORCH), view.size)) == OLD_TORCH:
        hint = "load it and save it again with torch >= 1.6"
        raise BadCheckpoint(view.subject, "written by torch.save's old format, which is not supported", hint=hint)
    raise BadCheckpoint(view.subject, "of no known format" if view.size else "empty")


def require_end(view: FileView) -> None:
    """The cheap test that a writer has finished: the zip's end, or a length that fits the safetensors header."""
    parser = parser_of(view)
    if parser is torch_zip.parse:
        zip_records.find_directory(view)
    elif parser is not None:
        parser(view)
    else:
        raise BadCheckpoint(view.subject, "of no known format" if view.size else "empty")
