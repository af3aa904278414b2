"""Ask the user's own command whether a restored checkpoint is good, before its archive counts.

    archive ── restored by a child to STORE/tmp/ID.accept/NAME ── COMMAND STORE/tmp/ID.accept/NAME ── exit 0: accepted

The command sees the path as its last argument and as CKZD_RESTORED, and where the original stands as CKZD_ORIGINAL.
What was restored goes with the end of the command, whatever that is; after a SIGKILL the store's next sweep removes it.
`python -m ckzd.operations.accept ARCHIVE TARGET [REFERENCE]` is the child that restores; it never loads torch.
"""

import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ckzd import durable
from ckzd.archive import ArchiveReader
from ckzd.chains import ArchiveRecord
from ckzd.errors import CkzdError, ConfigError, NotAccepted
from ckzd.operations.child import error_line, run_module
from ckzd.operations.command import Outcome, command_words, require_program, run
from ckzd.operations.reconstruct import OpenCheckpoint, decode_archive, reconstruction_or_none, scratch_file, store_of
from ckzd.operations.restore import write_files
from ckzd.store import Store


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What has to take a restored checkpoint, and within which time."""

    command: tuple[str, ...]
    seconds: float

    @classmethod
    def of(cls, command: str | Sequence[str], seconds: float) -> Self:
        """Raises ConfigError unless this can be run here, and ends."""
        try:
            words = command_words(command)
        except ValueError as error:
            raise ConfigError("accept_command", str(error), hint="quote it as for a shell") from None
        require_program(words)
        if not 0 < seconds < math.inf:
            raise ConfigError("accept_seconds", f"expected a time limit, got {seconds}")
        return cls(words, seconds)


def require_accepted(
    acceptance: Acceptance, archive: ArchiveRecord, reference: Path | None, *, original: Path, store: Store, hint: str
) -> None:
    """Restore `archive` (a delta against `reference`) into the store's tmp/ and run the command on that.

    Raises NotAccepted unless it exits with 0 in time.
    """
    if archive.manifest.kind == "files":
        original = original.with_name(archive.manifest.name)  # the model, whichever file was named
    with _restored(archive, reference, store) as path:
        variables = {"CKZD_RESTORED": str(path), "CKZD_ORIGINAL": str(original)}
        outcome = run([*acceptance.command, str(path)], variables, acceptance.seconds)
    if outcome.status != 0:
        raise NotAccepted(original, _refusal(outcome, acceptance.seconds), hint=hint)


def _refusal(outcome: Outcome, seconds: float) -> str:
    if outcome.status is None:
        how = f"took longer than {seconds:g} s"
    elif outcome.status < 0:
        how = f"was ended by signal {-outcome.status} ({signal.strsignal(-outcome.status)})"
    else:
        how = f"ended with exit code {outcome.status}"
    said = f", having said: {' | '.join(outcome.last_lines)}" if outcome.last_lines else ", and said nothing"
    return f"not accepted: the accept command {how}{said}"


@contextmanager
def _restored(archive: ArchiveRecord, reference: Path | None, store: Store) -> Iterator[Path]:
    """What the archive restores to, under its own name, in a directory that nobody else may enter.

    Of several files the first, beside the others.
    """
    durable.require_space(store.tmp, archive.manifest.original_bytes)
    place = store.new_temp(".accept")
    target = place / archive.manifest.name
    try:
        place.mkdir(mode=0o700)
        paths = [str(path) for path in (archive.path, target, reference) if path is not None]
        run_module("ckzd.operations.accept", paths, subject=archive.path)
        yield target / target.name if archive.manifest.kind == "files" else target
    finally:
        if target.is_dir():
            target.chmod(0o700)  # it has the original's mode, which may forbid to delete in it
        durable.remove_tree(place)


def _main(arguments: list[str]) -> int:
    archive, target, *references = map(Path, arguments)
    reference = references[0] if references else None
    try:
        with (
            ArchiveReader(archive) as reader,
            reconstruction_or_none(reference) as before,
            scratch_file(store_of(target)) as file,
            durable.as_no_space(target.parent),
        ):
            checkpoint = OpenCheckpoint(reader, decode_archive(reader, before, file))
            write_files(checkpoint, reader.manifest, target)
    except CkzdError as error:
        print(error_line(error), file=sys.stderr)  # noqa: T201  # the parent reads it
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
