"""Prove that an archive decodes: read back every byte, decode every tensor, compare every file's sha256.

The encoder never verifies its own work in its own process: a `verifier` is a fresh one, on the CPU, with another number
of threads, that reads the archive from disk. `python -m ckzd.operations.verify` is that process; it reads the paths of
the archive and its reference as JSON on stdin, and never loads torch.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckzd.archive import ArchiveReader
from ckzd.chains import reference_of
from ckzd.errors import CkzdError, CorruptArchive, VerificationFailed
from ckzd.operations.child import another_number_of_threads, error_line, waiting_module
from ckzd.operations.pointer import resolve
from ckzd.operations.reconstruct import OpenCheckpoint, decode_link, reconstruction_or_none, scratch_file, store_of

_HINT = "nothing was published; the original is untouched"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """An archive that decodes to exactly what it says."""

    archive: str
    files: int
    seconds: float
    ok: bool = True

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def verify(path: Path, *, on_progress: Callable[[float], None] = lambda _: None) -> VerifyReport:
    """Check an archive (or the pointer or checkpoint path that names one) down to its last byte.

    Raises CorruptArchive, MissingReference, or VerificationFailed where all bytes are whole and decode to others.
    """
    started = time.monotonic()
    archive = resolve(path)
    reference = reference_of(archive)
    files = check_archive(archive, reference, on_progress)
    return VerifyReport(str(archive), files, time.monotonic() - started)


def check_archive(archive: Path, reference: Path | None, on_progress: Callable[[float], None]) -> int:
    """Decode `archive` against `reference`'s reconstruction; the number of files that it restores."""
    store = store_of(reference) if reference is not None else store_of(archive)
    with ArchiveReader(archive) as reader, reconstruction_or_none(reference) as before, scratch_file(store) as file:
        reader.check()
        own = decode_link(reader, before, file)
        opened = OpenCheckpoint(reader, own)
        models = reader.manifest.files
        for position, model in enumerate(models):
            digest = hashlib.sha256()
            for piece in opened.file(position):
                digest.update(piece)
            if digest.hexdigest() != model.sha256:
                problem = f"file {model.name}: decodes to sha256 {digest.hexdigest()}, expected {model.sha256}"
                raise VerificationFailed(archive, problem, hint="keep the original; report this with both archives")
            on_progress((position + 1) / len(models))
        return len(models)


@contextmanager
def verifier() -> Iterator[Callable[[Path, Path | None], None]]:
    """Another process with another number of threads that runs `check_archive` once: loaded by the time it is asked to.

    The call raises VerificationFailed with what it said of the archive; other errors (a full disk, a killed process) as
    such.
    """
    with waiting_module("ckzd.operations.verify", count=another_number_of_threads()) as ask:

        def check(archive: Path, reference: Path | None) -> None:
            try:
                ask(json.dumps([str(path) for path in (archive, reference) if path is not None]), archive)
            except CorruptArchive as error:
                raise VerificationFailed(error.subject, error.problem, hint=_HINT) from error

        yield check


def _main() -> int:
    archive, *references = map(Path, json.loads(sys.stdin.readline()))
    try:
        check_archive(archive, references[0] if references else None, lambda _: None)
    except CkzdError as error:
        print(error_line(error), file=sys.stderr)  # noqa: T201  # the parent reads it
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main())
