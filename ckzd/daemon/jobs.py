"""What the service and an executor say to each other. Everything here can be pickled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from ckzd.defaults import MAX_DEPTH, Effort
from ckzd.errors import CkzdError
from ckzd.operations.command import DEFAULT_SECONDS
from ckzd.operations.prune import Run
from ckzd.retention import NO_QUOTA, Quota


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work on one store."""

    kind: ClassVar[Literal["compress", "replace", "clean", "prune", "check"]]
    store: Path
    checkpoint: Path = Path()  # none to clean, prune or check
    number: int = 0  # of its journal row
    nbytes: int = 0  # of the checkpoint: sets the time limit


@dataclass(frozen=True, slots=True)
class Compress(Job):
    """Archive and verify `checkpoint`."""

    kind = "compress"
    preset: str = "resume"
    effort: Effort = Effort.BEST
    stride: int = 1
    max_depth: int = MAX_DEPTH
    base_model: Path | None = None
    accept_command: tuple[str, ...] | None = None
    accept_seconds: float = DEFAULT_SECONDS
    min_free: int = 0  # bytes that should stay free


@dataclass(frozen=True, slots=True)
class Replace(Job):
    """Put a pointer to `archive` in the checkpoint's place, if what is `beside` it can be replaced too."""

    kind = "replace"
    archive: Path = Path()
    beside: tuple[tuple[Path, Path], ...] = ()  # the other files of its step and their archives: all go, or none


@dataclass(frozen=True, slots=True)
class Clean(Job):
    """Finish or undo what a crash left, then empty the trash of what is older, and of more until so much is free."""

    kind = "clean"
    trash_seconds: float = 0.0
    min_free: int = 0  # bytes


@dataclass(frozen=True, slots=True)
class Prune(Job):
    """Delete the archives that the rules of these runs and the store's quota let go."""

    kind = "prune"
    runs: tuple[Run, ...] = ()
    roots: tuple[Path, ...] = ()  # where pointers are looked for
    quota: Quota = NO_QUOTA


@dataclass(frozen=True, slots=True)
class Check(Job):
    """Read a share of the archives back, and heal what is damaged."""

    kind = "check"
    percent: float = 0.0  # and those that are known to be damaged
    seconds: float = 0.0  # no other archive is begun after so long
    runs: tuple[Path, ...] = ()  # whose archives lie there, as far as they are known


@dataclass(frozen=True, slots=True)
class Progress:
    """A running job has come to a stage."""

    job: Job
    stage: str  # a `stages.Stage` of a compression; of a replacement its step
    fraction: float


Tell = Callable[[str, float], None]  # how a running job tells its stage and fraction


@dataclass(frozen=True, slots=True)
class Done:
    """The job is done; `report` is that of the operation (compress), or what `perform` says of the others."""

    job: Job
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The operation raised `error`; `detail` is a traceback when the error was none of ours."""

    job: Job
    error: CkzdError
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Died:
    """The process under the job ended; `reason` is one of a few words, `detail` says more."""

    job: Job
    reason: Literal["signal", "exit", "time limit"]
    detail: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """We ended the job ourselves; it is not to blame."""

    job: Job


@dataclass(frozen=True, slots=True)
class NotStarted:
    """No process could be got ready for the job; it is not to blame."""

    job: Job
    detail: str


Event = Progress | Done | Failed | Died | Cancelled | NotStarted


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One slot of an executor."""

    name: str  # "cpu-0", "cuda:1": few and stable, so that it can be a metric label
    up: bool  # running, or able to start when there is work
    job: Job | None
    restarts: int  # processes that ended without being asked to


class Executor(Protocol):
    """Runs jobs somewhere. At-least-once: a job may be begun again after a crash."""

    def free(self) -> int:
        """How many jobs `submit` would take now."""
        ...

    def submit(self, job: Job) -> None:
        """Begin a job; call it only while `free()` is not 0."""
        ...

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        """What has happened since, waiting for it at most so long."""
        ...

    def workers(self) -> Sequence[WorkerStatus]:
        """The slots as they stand."""
        ...

    def close(self) -> Sequence[Event]:
        """End everything that still runs, at once; what it was is told as Cancelled."""
        ...
