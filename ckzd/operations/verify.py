"""Prove that an archive decodes: read back every byte, decode every tensor, compare every file's sha256.

`verify_each` takes many archives and decodes each link of their chains once; what it says rests on the archives alone,
never on a cached reconstruction.

The encoder never verifies its own work in its own process: a `verifier` is a fresh one, on the CPU, with another number
of threads, that reads the archive from disk. `python -m ckzd.operations.verify` is that process, and never loads torch.
While the encoder works it reads on stdin what that announces, and restores it ahead (`codec/ahead.py`), up to an empty
line; another says that the archive is finished. Only then does it look at the archive, and at all of it.
"""

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from ckzd import durable
from ckzd.archive import ArchiveReader, Manifest
from ckzd.chains import ArchiveRecord, chain, decodable, records_in, references_in
from ckzd.codec.ahead import Ahead
from ckzd.codec.decode import MALFORMED
from ckzd.codec.records.reconstruction import Reconstruction
from ckzd.errors import CkzdError, CorruptArchive, NoSpace, SourceChanged, VerificationFailed
from ckzd.operations.child import Waiting, another_number_of_threads, error_line, waiting_module
from ckzd.operations.pointer import archives_meant, resolve
from ckzd.operations.reconstruct import (
    OpenCheckpoint,
    decode_archive,
    foreseen,
    malformed_as_corrupt,
    reconstruction_or_none,
    scratch_file,
    store_of,
)
from ckzd.page_cache import forget_file
from ckzd.store import Store

OnProgress = Callable[[float], None]
OnArchive = Callable[[Path], None]

_FINISHED = "finished"  # the last line that a verifier is told, after an empty one
_HINT = "nothing was published; the original is untouched"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """An archive that decodes to exactly what it says; of one that gives weights alone no file is counted."""

    archive: str
    files: int
    seconds: float
    ok: bool = True

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def verify(path: Path | str, *, on_progress: OnProgress = lambda _: None) -> VerifyReport:
    """Check an archive (or the pointer or checkpoint path that names one) down to its last byte.

    Its chain is decoded from the archives; nothing that is cached is believed. Raises CorruptArchive, MissingReference,
    or VerificationFailed where all bytes are whole and decode to others.
    """
    (outcome,) = _outcomes([resolve(Path(path)).path], lambda _: None, on_progress)
    if isinstance(outcome, CkzdError):
        raise outcome
    return outcome


def verify_each(
    paths: Iterable[Path], *, on_archive: OnArchive = lambda _: None, on_progress: OnProgress = lambda _: None
) -> Iterator[VerifyReport | CkzdError]:
    """Check many archives, decoding each link once: `paths` name archives, runs, folders of archives, whole stores.

    Of every archive its report, or the error; in the order of chains, not of `paths`. `on_archive` is told of each that
    is begun. Raises only what would stop all of them, as a full disk does.
    """
    together: dict[Path, list[Path]] = {}  # archives by the directory that their chains lie in
    for meant in dict.fromkeys(found for path in paths for found in archives_meant(path)):
        if isinstance(meant, CkzdError):
            yield meant
        else:
            together.setdefault(meant.parent, []).append(meant)
    for archives in together.values():
        yield from _outcomes(archives, on_archive, on_progress)


def _outcomes(
    archives: Sequence[Path], on_archive: OnArchive, on_progress: OnProgress
) -> Iterator[VerifyReport | CkzdError]:
    """Of archives of one directory: those that have no whole chain first, then what decodes, from the bases up."""
    planned, dependents, unreachable = _forest(archives)
    for archive in unreachable:
        try:
            chain(ArchiveRecord.read(archive))
        except (CkzdError, OSError) as error:
            yield _as_error(archive, error)
    again: list[Path] = []  # something took a name meanwhile: what the plan says of the chain is not so any more
    walk = _Walk(set(archives), planned, dependents, store_of(archives[0]), on_archive, on_progress)
    for base in dependents.get(None, ()):
        for outcome in walk.branch(base, None, ExitStack()):
            if isinstance(outcome, _OtherwiseThanPlanned):
                again.append(Path(outcome.subject))
            else:
                yield outcome
    if again:
        yield from _outcomes(again, on_archive, on_progress)


def _forest(
    archives: Sequence[Path],
) -> tuple[dict[Path, Manifest], dict[Path | None, list[Path]], list[Path]]:
    """What archives say of themselves, and who is a delta against whom, of these and all they need; None for bases.

    The largest branch is last. And whose chain has no base.
    """
    records = records_in(archives[0].parent)
    there = decodable(records)
    references = {path: record.path if record is not None else None for path, record in references_in(records).items()}
    needed: set[Path] = set()
    for archive in archives:
        link: Path | None = archive
        while link is not None and link in there and link not in needed:
            needed.add(link)
            link = references[link]
    sizes: Counter[Path] = Counter()
    dependents: dict[Path | None, list[Path]] = {}
    for record in sorted(records, key=lambda record: record.manifest.depth, reverse=True):
        if record.path in needed:
            sizes[record.path] += 1
            dependents.setdefault(reference := references[record.path], []).append(record.path)
            if reference is not None:
                sizes[reference] += sizes[record.path]
    for branches in dependents.values():
        branches.sort(key=sizes.__getitem__)
    planned = {record.path: record.manifest for record in records if record.path in needed}
    return planned, dependents, [archive for archive in archives if archive not in needed]


class _OtherwiseThanPlanned(SourceChanged):
    """An archive is gone, or another took its name, which is a delta against something else."""


@dataclass(frozen=True, slots=True)
class _Walk:
    """Decodes archives and all they need, each once, against the one before.

    A reconstruction is kept until the last that needs it is decoded, and the largest branch is taken last: of a chain
    two are on disk at a time, of n archives that branch some log2(n) more.
    """

    wanted: set[Path]
    planned: Mapping[Path, Manifest]
    dependents: Mapping[Path | None, Sequence[Path]]
    store: Store | None  # that they lie in
    on_archive: OnArchive
    on_progress: OnProgress

    def branch(
        self, link: Path, reference: Reconstruction | None, held: ExitStack
    ) -> Iterator[VerifyReport | CkzdError]:
        """`link` and all that hangs on it. `held` keeps its reference, unless others need that too."""
        try:
            while True:
                with ExitStack() as following, held:
                    try:
                        own, outcome = self._decode(link, reference, following)
                    except NoSpace:
                        raise
                    except (CkzdError, OSError) as error:
                        is_gone = not os.path.lexists(link)  # merged into another, pruned
                        changed = _OtherwiseThanPlanned(link, "is gone")
                        yield from self._lost(link, changed if is_gone else _as_error(link, error))
                        return
                    decoded = following.pop_all()
                held = decoded
                if outcome is not None:
                    yield outcome
                *others, last = self.dependents.get(link) or (None,)
                for other in others:
                    yield from self.branch(other, own, ExitStack())
                if last is None:
                    return
                link, reference = last, own
        finally:
            held.close()

    def _decode(
        self, link: Path, reference: Reconstruction | None, stack: ExitStack
    ) -> tuple[Reconstruction, VerifyReport | CkzdError | None]:
        """Its reconstruction, and what is to be said of it; raises if what hangs on it cannot be decoded either."""
        started = time.monotonic()
        forget_file(link)
        with ArchiveReader(link) as reader, durable.as_no_space(link):
            if _needs(reader.manifest) != _needs(self.planned[link]):
                raise _OtherwiseThanPlanned(link, "is a delta against something else by now")
            file = stack.enter_context(scratch_file(self.store))
            if link not in self.wanted:
                return decode_archive(reader, reference, file), None
            self.on_archive(link)
            try:
                own, files = check_link(reader, reference, file, self.on_progress)
            except (
                CorruptArchive,
                VerificationFailed,
            ) as error:  # maybe in what no dependent needs
                return decode_archive(reader, reference, stack.enter_context(scratch_file(self.store))), error
        return own, VerifyReport(str(link), files, time.monotonic() - started)

    def _lost(self, link: Path, error: CkzdError) -> Iterator[CkzdError]:
        """It cannot be decoded, nor can what hangs on it."""
        pending = [link]
        while pending:
            lost = pending.pop()
            if lost == link and lost in self.wanted:
                yield error
            elif lost in self.wanted:
                yield type(error)(lost, f"needs {link.name}: {error.problem}", hint=error.hint)
            pending += self.dependents.get(lost, ())


def _needs(manifest: Manifest) -> tuple[str | None, int]:
    return manifest.reference, len(manifest.carried)


def _as_error(archive: Path, error: CkzdError | OSError) -> CkzdError:
    if isinstance(error, CkzdError):
        return error
    return CorruptArchive(archive, f"cannot be read: {error.strerror or error}")


def check_link(
    reader: ArchiveReader, reference: Reconstruction | None, file: BinaryIO, on_progress: OnProgress
) -> tuple[Reconstruction, int]:
    """Read every byte, decode every tensor and compare every file's sha256; its reconstruction, and how many files."""
    reader.check()
    own = decode_archive(reader, reference, file)
    if reader.manifest.moments_dropped is not None:  # what is left of it has the recorded reconstruction
        return own, 0
    _compare_files(reader, own, on_progress)
    return own, len(reader.manifest.files)


def _compare_files(reader: ArchiveReader, own: Reconstruction, on_progress: OnProgress) -> None:
    opened, models = OpenCheckpoint(reader, own), reader.manifest.files
    digests, done = [hashlib.sha256() for _ in models], 0
    for file, piece in opened.files(range(len(models))):
        digests[file].update(piece)
        done += len(piece)
        on_progress(done / max(reader.manifest.original_bytes, 1))
    for model, digest in zip(models, digests, strict=True):
        if digest.hexdigest() != model.sha256:
            problem = f"file {model.name}: decodes to sha256 {digest.hexdigest()}, expected {model.sha256}"
            hint = "keep the original; report this with both archives"
            raise VerificationFailed(reader.path, problem, hint=hint)


@dataclass(frozen=True, slots=True)
class Task:
    """What a verifier knows from the start."""

    archive: Path  # that is being written
    reference: Path | None  # what it will be a delta against
    store: Path  # whose disk has room, if the archive is decoded like any other
    files: tuple[int, int]  # descriptors of the encoder's reconstruction and of its scratch

    def to_arguments(self) -> list[str]:
        """For the command line of the process."""
        return [str(self.archive), str(self.reference or ""), str(self.store), *map(str, self.files)]

    @classmethod
    def from_arguments(cls, archive: str, reference: str, store: str, written: str, scratch: str) -> Self:
        """The inverse of `to_arguments`."""
        return cls(Path(archive), Path(reference) if reference else None, Path(store), (int(written), int(scratch)))


class Verifier:
    """Another process with another number of threads that proves one archive; a listener of its encoder."""

    def __init__(self, task: Task, held: ExitStack) -> None:
        self._task, self._held = task, held
        self._process = self._started()

    def tell(self, line: str) -> None:
        """Have a tensor restored ahead. Raises as `finish` does if the process has ended."""
        with _as_failed():
            self._process.tell(line)

    def begin_again(self) -> None:
        """Another process takes over, that knows nothing of what was told."""
        self._held.close()
        self._process = self._started()

    def finish(self) -> None:
        """The archive is on disk: check it. Raises VerificationFailed with what the process said of the archive.

        Other errors (a full disk, a killed process) as such.
        """
        with _as_failed():
            self._process.finish(f"\n{_FINISHED}")

    def _started(self) -> Waiting:
        task, count = self._task, another_number_of_threads()
        waiting = waiting_module(
            "ckzd.operations.verify", task.to_arguments(), count=count, subject=task.archive, pass_fds=task.files
        )
        return self._held.enter_context(waiting)


@contextmanager
def _as_failed() -> Iterator[None]:
    try:
        yield
    except CorruptArchive as error:
        raise VerificationFailed(error.subject, error.problem, hint=_HINT) from error


@contextmanager
def verifier(task: Task) -> Iterator[Verifier]:
    """It is loaded by the time that something is announced, and killed at the end."""
    with ExitStack() as held:
        yield Verifier(task, held)


def prove(task: Task, lines: Iterator[str]) -> None:
    """Restore ahead what `lines` announce, and when they say that the archive is finished check all of it."""
    with reconstruction_or_none(task.reference) as reference:
        ahead = Ahead(reference, task.files)
        with malformed_as_corrupt(task.archive), suppress(*MALFORMED):  # what cannot be restored was not foreseen
            ahead.restore(lines)
        if _FINISHED not in map(str.strip, lines):
            raise CkzdError(task.archive, "its encoder ended before it was finished")
        with ArchiveReader(task.archive) as reader, _written(task) as written, ExitStack() as held:
            reader.check()
            own = foreseen(reader, reference, ahead, written)
            if own is None:
                own = decode_archive(reader, reference, held.enter_context(scratch_file(Store.open(task.store))))
            if reader.manifest.moments_dropped is None:
                _compare_files(reader, own, lambda _: None)


@contextmanager
def _written(task: Task) -> Iterator[BinaryIO]:
    """The reconstruction that the encoder has written, now that it does so no more; its scratch takes no more room."""
    written, scratch = task.files
    os.close(scratch)
    with os.fdopen(written, "rb") as file:
        yield file


def _main() -> int:
    try:
        prove(Task.from_arguments(*sys.argv[1:]), sys.stdin)
    except CkzdError as error:
        print(error_line(error), file=sys.stderr)  # noqa: T201  # the parent reads it
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main())
