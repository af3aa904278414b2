"""A daemon without workers: jobs are done at once, by hand-made archives and the real replacement."""

import json
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from making import sha256, store_archive

from ckzd.archive import NamedFile, NamedModel
from ckzd.base_models import note
from ckzd.chains import ArchiveRecord, is_ruined, is_sound, read_manifest
from ckzd.config import DaemonSettings, Settings, WatchSettings
from ckzd.daemon.jobs import Cancelled, Done, Event, Failed, Job, Progress, WorkerStatus
from ckzd.daemon.perform import _prune as prune_job
from ckzd.daemon.perform import check_share
from ckzd.daemon.service import Service
from ckzd.errors import CkzdError
from ckzd.file_marks import Mark
from ckzd.operations.replace import empty_trash, recover, replace, require_replaceable, rescue
from ckzd.operations.room import keep_free
from ckzd.store import Store


def write_checkpoint(path: Path, content: str = "", elements: int = 2048) -> Path:
    """A safetensors file that parses; different `content` gives different bytes."""
    data = (content or path.name).encode().ljust(4 * elements, b".")[: 4 * elements]
    header = json.dumps({"weight": {"dtype": "F32", "shape": [elements], "data_offsets": [0, len(data)]}}).encode()
    header += b" " * (-len(header) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def settings_for(place: Path, *, daemon: dict[str, Any] | None = None, **watch: Any) -> Settings:
    """Settings that watch `place/runs` and keep their state in `place/state`."""
    (place / "runs").mkdir(exist_ok=True)
    plain = {"path": place / "runs", "replace": True, "keep_raw": 1, "settle_seconds": 1, "scan_seconds": 5}
    own = {"state_dir": place / "state", "port": 0, "devices": ("cpu",), **(daemon or {})}
    return Settings(watch=(WatchSettings(**(plain | watch)),), daemon=DaemonSettings(**own))


def archive_by_hand(job: Job) -> dict[str, Any]:
    """The report of a compression, and an archive on disk that `replace` believes."""
    store, run = Store.open_or_create(job.store), job.checkpoint.parent
    places = _together(job.checkpoint)
    hashes = {place.name: sha256(place.read_bytes()) for place in places if place.is_file()}
    for record in store.archives(run):
        is_same = hashes and {file.name: file.sha256 for file in record.manifest.files} == hashes
        if is_same and is_sound(record.path):
            return _report(job, places, record.path, None, already=True)
    step = int("".join(filter(str.isdigit, job.checkpoint.stem)) or 0)
    reference = store.references_for(run, step, job.checkpoint.name, job.stride, job.max_depth).own
    changes: dict[str, Any] = {
        "step": step,
        "reconstruction": sha256(f"{places[0].name}{''.join(hashes.values())}".encode()),
    }
    if job.checkpoint.is_file() and b"ruined" in job.checkpoint.read_bytes():
        changes["quality"] = {"ruined": 1.0}
    if reference is not None:
        changes |= {"reference": reference.manifest.reconstruction, "depth": reference.manifest.depth + 1}
    elif job.base_model is not None and job.base_model.is_file() and job.base_model != job.checkpoint:
        changes |= {"reference": sha256(b"model"), "depth": 1, "base_model": named(job.base_model, store)}
    archive = store_archive(store, *places, **changes)
    return _report(job, places, archive, reference.path if reference else None, already=False)


def named(model: Path, store: Store) -> NamedModel:
    """A file as base model of archives in a store, which notes it."""
    file = NamedFile(name=model.name, size=model.stat().st_size, sha256=sha256(model.read_bytes()))
    found = NamedModel(path=str(model.resolve()), kind="file", files=[file])
    note(store.root, found, [Mark.of(model.stat())])
    return found


def _together(checkpoint: Path) -> list[Path]:
    """model_1.pt with optimizer_1.pt, if that is there; all else is a checkpoint of its own."""
    kind, _, rest = checkpoint.name.partition("_")
    if kind not in {"model", "optimizer"}:
        return [checkpoint]
    return [place for kind in ("model", "optimizer") if (place := checkpoint.with_name(f"{kind}_{rest}")).exists()]


def _report(job: Job, places: list[Path], archive: Path, reference: Path | None, *, already: bool) -> dict[str, Any]:
    size = archive.stat().st_size
    return {
        "checkpoint": str(job.checkpoint), "members": [str(place) for place in places],
        "archive": str(archive), "reference": str(reference) if reference else None,
        "preset": job.preset, "effort": job.effort.value,
        "original_bytes": job.nbytes, "archive_bytes": size, "ratio": job.nbytes / size,
        "weight_error": 0.08, "worst_tensor_error": 0.4, "tightened": job.number == 2, "kept_exact": False,
        "ruined": is_ruined(ArchiveRecord(archive, read_manifest(archive))),
        "second_moment_ratio": 1.01, "update_length_ratio": 1.1,
        "seconds": 1.0, "verified": True, "already": already, "replaced": False,
        "damaged": [str(path) for path in Store.open(job.store).damaged(job.checkpoint.parent)],
        "waiting": [str(path) for path in Store.open(job.store).waiting(job.checkpoint.parent)],
        "without_base_model": None,
    }  # fmt: skip


def perform(job: Job, _device: str, on_stage: Callable[[str, float], None]) -> dict[str, Any]:
    """What a worker does, without a codec."""
    if job.kind == "compress":
        for stage in ("read", "encode", "written", "verified", *(("accept", "accepted") if job.accept_command else ())):
            on_stage(stage, 0.5)
        return archive_by_hand(job)
    store = Store.open(job.store)
    if job.kind == "replace":
        for checkpoint, archive in job.beside:
            require_replaceable(checkpoint, archive, store)
        return {"reclaimed_bytes": replace(job.checkpoint, job.archive, store)}
    if job.kind == "prune":
        return prune_job(job)
    recover(store)
    rescued = [str(path) for path in rescue(store)]
    freed = empty_trash(store, job.trash_seconds, now=job.trash_seconds + 4e9) + keep_free(store, job.min_free)
    return {"freed_bytes": freed, "rescued": rescued}


class FakeWatcher:
    """Gives hints when it is told to."""

    def __init__(self) -> None:
        self.overflows = 0
        self.hinted = False
        self.followed: set[Path] = set()

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def follow(self, directories) -> bool:
        before, self.followed = self.followed, set(directories)
        return bool(self.followed - before)

    def take_hint(self) -> bool:
        hinted, self.hinted = self.hinted, False
        return hinted

    def healthy(self) -> bool:
        return True


class FakeExecutor:
    """Does jobs in `events`, one a call, unless `behave` answers for them; waiting is only a step of the clock."""

    def __init__(self, clock, slots: int = 1) -> None:
        self.clock = clock
        self.slots = slots
        self.held = False  # jobs stay running
        self.behave: Callable[[Job], Event | Exception | None] = lambda _: None
        self.began: list[Job] = []
        self._running: deque[Job] = deque()

    def free(self) -> int:
        return self.slots - len(self._running)

    def submit(self, job: Job) -> None:
        assert self.free()
        self.began.append(job)
        self._running.append(job)

    def events(self, timeout_seconds: float) -> list[Event]:
        self.clock.sleep(timeout_seconds)
        if self.held or not self._running:
            return []
        job, told = self._running.popleft(), []
        answer = self.behave(job)
        if isinstance(answer, CkzdError):
            answer = Failed(job, answer)
        if answer is None:
            try:
                answer = Done(job, self._perform(job, told))
            except CkzdError as error:
                answer = Failed(job, error)
        return [*told, answer]

    def _perform(self, job: Job, told: list[Event]) -> dict[str, Any]:
        def tell(stage: str, fraction: float) -> None:
            told.append(Progress(job, stage, fraction))

        if job.kind == "check":
            return check_share(job, tell, self.clock.time)
        return perform(job, "cpu", tell)

    def workers(self) -> list[WorkerStatus]:
        return [WorkerStatus("fake-0", True, self._running[0] if self._running else None, 0)]

    def close(self) -> list[Event]:
        cancelled = [Cancelled(job) for job in self._running]
        self._running.clear()
        return cancelled

    def names(self, kind: str) -> list[str]:
        return [job.checkpoint.name for job in self.began if job.kind == kind]


class Daemon:
    """A service and its surroundings."""

    def __init__(
        self, place: Path, clock, *, once=False, rule=None, slots=1, daemon=None, watcher=None, **watch
    ) -> None:
        self.place, self.clock = place, clock
        self.run = place / "runs" / "gpt"
        self.settings = settings_for(place, daemon=daemon, **watch)
        self.executor = FakeExecutor(clock, slots)
        self.watcher = watcher or FakeWatcher()
        self.service = Service(self.settings, self.executor, clock, once=once, rule=rule, watcher=self.watcher)

    def write(self, *steps: int, content: str = "") -> list[Path]:
        return [write_checkpoint(self.run / f"step_{step}.safetensors", content) for step in steps]

    def go(self, steps: int = 60) -> None:
        for _ in range(steps):
            self.service.step()

    def states(self) -> dict[str, str]:
        return {row.path.stem: row.state.value for row in self.service.journal.rows()}

    def row(self, name: str):
        (row,) = [row for row in self.service.journal.rows() if row.path.stem == name and row.state != "rotated"]
        return row

    def status(self) -> dict:
        self.service._next_tell = 0.0
        self.service._tell()
        return self.service.teller._status

    def why(self, name: str) -> str:
        return next(c["why"] for c in self.status()["checkpoints"] if Path(c["checkpoint"]).stem == name)

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels)

    def raw(self) -> list[str]:
        return sorted(path.stem for path in self.run.glob("*.safetensors"))

    def pointers(self) -> list[str]:
        return sorted(path.name.split(".")[0] for path in self.run.glob("*.ckz"))


def crash(daemon) -> None:
    """What SIGKILL leaves: no goodbye, only the kernel gives the locks back."""
    daemon.service._watcher.stop()
    daemon.service.teller.close()
    daemon.service._open.close()
    daemon.service.__exit__ = lambda *_: None


class Gone:
    """What stands where a service was that has ended."""

    def __exit__(self, *_):
        return None
