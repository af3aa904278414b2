"""Checkpoints that are directories, as frameworks write them.

Each framework's reader finds the tensors; all else is kept verbatim, or as opaque holes where it is long.
"""

from pathlib import Path

from ckzd.checkpoint import Checkpoint, FileLayout
from ckzd.errors import BadCheckpoint, SourceChanged
from ckzd.file_marks import is_unchanged
from ckzd.formats.frameworks import whole
from ckzd.formats.frameworks.framework import ParsedDirectory
from ckzd.formats.listing import Listing, list_directory
from ckzd.formats.names import step_in_name, updates_in_name
from ckzd.formats.parsed import MAX_VERBATIM_BYTES
from ckzd.formats.source import FileSource, closed_on_error, file_stat


def read_directory(path: Path) -> Checkpoint:
    """Read a checkpoint directory by the rules of the framework that wrote it."""
    listing = list_directory(path)
    with closed_on_error(FileSource([path / name for name in listing.names])) as source:
        parsed = whole.read(listing, [source.view(number) for number in range(len(listing.names))])
        checkpoint = _assemble(listing, source, parsed)
        again = list_directory(path)
        if (again.names, again.folders.keys()) != (listing.names, listing.folders.keys()) or not all(
            is_unchanged(found, again.folders[name]) for name, found in listing.folders.items()
        ):
            raise SourceChanged(path, "files came or went while it was read")
        return checkpoint


def _assemble(listing: Listing, source: FileSource, parsed: ParsedDirectory) -> Checkpoint:
    files = tuple(
        FileLayout(name, found.st_size, file_stat(listing.path / name, found), holes)
        for name, found, holes in zip(listing.names, source.stats, parsed.holes, strict=True)
    )
    verbatim = sum(layout.size for layout in files) - sum(tensor.nbytes for tensor in parsed.tensors)
    if not parsed.tensors or verbatim > MAX_VERBATIM_BYTES:
        problem = f"{verbatim} bytes besides its tensors, at most {MAX_VERBATIM_BYTES} are read"
        raise BadCheckpoint(listing.path, problem if parsed.tensors else "holds no tensor file that ckzd can read")
    return Checkpoint(
        name=listing.path.name,
        is_directory=True,
        stat=file_stat(listing.path, listing.stat),
        step=step_in_name(listing.path.name) if parsed.step is None else parsed.step,
        files=files,
        tensors=parsed.tensors,
        optimizers=parsed.optimizers,
        source=source,
        updates=updates_in_name(listing.path.name) if parsed.step is None else parsed.step,
        folders=tuple((name, file_stat(listing.path / name, found)) for name, found in listing.folders.items() if name),
    )
