"""Every error that ckzd raises on purpose, and the exit code each one means.

CkzdError                    1   anything below; catch it to catch them all
├── BadCheckpoint            1   the input is damaged, half-written, hostile, or no checkpoint at all
├── Unfinished               1   a checkpoint that its framework has not written whole, or not yet
├── SourceChanged            1   the input moved or changed while it was read; retryable
├── NotAccepted              1   the user's own command refused a restored checkpoint: nothing may be replaced
├── VerificationFailed       1   an archive did not decode to what the encoder recorded: nothing may be replaced
├── ConfigError              2   a setting or an argument is wrong; names the field
├── CorruptArchive           4   an archive, pointer or cache entry has bytes that cannot be right
│   └── UnknownFormat        4   a newer ckzd wrote it: nothing says that it is damaged
├── MissingReference         5   an archive that this one depends on is not there
│   └── MissingBaseModel     5   a model that it depends on is not there, or another one: no archive is damaged
├── StoreLocked              6   another process holds the store
└── NoSpace                  7   the file system is, or would become, full

Messages are lower case and say what, expected and got; `hint` says what to do.
Exit code 0 is done, 2 is also every usage error of the command line, 3 is "some of several failed".
"""

from pathlib import Path
from typing import ClassVar

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3


class CkzdError(Exception):
    """Base of all errors of ckzd: `subject` (path or name), `problem`, and a `hint` that says what to do."""

    exit_code: ClassVar[int] = EXIT_FAILED
    retryable: ClassVar[bool] = False
    advice: ClassVar[str] = ""  # the hint of those that bring none

    def __init__(self, subject: Path | str, problem: str, *, hint: str = "") -> None:
        super().__init__(subject, problem, hint)
        self.subject = encodable(str(subject))
        self.problem = encodable(problem)
        self.hint = hint or self.advice

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process boundary whole, keyword argument included."""
        return (_rebuild, (type(self), self.subject, self.problem, self.hint))

    def __str__(self) -> str:
        text = f"{self.subject}: {self.problem}"
        return f"{text} (hint: {self.hint})" if self.hint else text


def encodable(text: str) -> str:
    """As UTF-8 can spell it: a name that is none shows its odd bytes, and can be printed, stored and sent."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _rebuild(kind: type[CkzdError], subject: str, problem: str, hint: str) -> CkzdError:
    return kind(subject, problem, hint=hint)


class BadCheckpoint(CkzdError):
    """The checkpoint is damaged, incomplete, hostile or of no known format."""

    advice = "it stays as it is; name a whole file of torch.save or safetensors, or a directory of a known framework"


class Unfinished(CkzdError):
    """By its framework's rule something of the checkpoint is missing."""

    advice = "it stays as it is; wait until it is saved whole, or fetch what is missing"


class SourceChanged(CkzdError):
    """The checkpoint moved or changed while ckzd worked on it."""

    retryable = True
    advice = "check the path, and run it again when nobody writes there"


class NotAccepted(CkzdError):
    """The user's accept command did not take what an archive restores to."""


class VerificationFailed(CkzdError):
    """An archive read back from disk did not decode to what the encoder recorded."""


class ConfigError(CkzdError):
    """A setting or an argument is wrong."""

    exit_code = EXIT_USAGE


class CorruptArchive(CkzdError):
    """Bytes of an archive, a pointer or the store cannot be right."""

    exit_code = 4
    advice = "`ckzd check` heals what can be healed, and tells what else is damaged"


class UnknownFormat(CorruptArchive):
    """An archive of a format that this version does not read."""

    advice = "update ckzd on this machine"


class MissingReference(CkzdError):
    """An archive that is needed to decode this one is not there."""

    exit_code = 5


class MissingBaseModel(MissingReference):
    """The model that an archive is a delta against is not where it was, as it was; the archives are whole."""


class StoreLocked(CkzdError):
    """Another process holds the store's lock."""

    exit_code = 6
    retryable = True


class NoSpace(CkzdError):
    """The file system is full, or would be."""

    exit_code = 7
    retryable = True
