"""All metrics of ckzd, in a registry of our own. The only home of prometheus_client.

Base units, few labels, never a path. Workers send what they measured through their pipe; nothing here is shared between
processes. Timestamps, not ages: Prometheus has a clock.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from ckzd.defaults import Effort
from ckzd.formats import KINDS as LEFT_ALONE

OUTCOMES: Final = (
    *("archived", "already", "replaced", "failed", "quarantined", "skipped", "rotated", "dropped", "pruned"),
    "moments dropped",
)
KINDS: Final = ("compress", "replace", "clean", "prune", "check")
STAGES: Final = (
    "start",
    "read",
    "encode",
    "verify",
    "accept",
    "publish",
    "replace",
    "clean",
    "prune",
    "check",
    "other",
)
EFFORTS: Final = tuple(effort.value for effort in Effort)
QUEUE_STATES: Final = ("seen", "settled", "encoding", "written", "failed", "skipped")
STORE_PARTS: Final = ("archives", "cache", "trash")
RESTART_REASONS: Final = ("signal", "exit", "time limit", "not started")
CHECKED: Final = ("whole", "healed", "damaged", "missing", "unreadable")
VERIFY_REASONS: Final = ("mismatch", "corrupt archive", "missing reference")
FAILURES: Final = (
    *("BadCheckpoint", "SourceChanged", "VerificationFailed", "ConfigError", "CorruptArchive", "MissingReference"),
    *(
        "MissingBaseModel",
        "NotAccepted",
        "StoreLocked",
        "NoSpace",
        "unexpected",
        "signal",
        "exit",
        "time limit",
        "not started",
    ),
)
SECONDS_BUCKETS: Final = (0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 7200)
PRESETS: Final = ("resume", "archive", "paper", "lossless")
ERROR_BUCKETS: Final = (1e-5, 3e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 4e-3, 0.01, 0.03, 0.1, 0.3, 1)
FACTOR_BUCKETS: Final = (1, 1.02, 1.05, 1.1, 1.15, 1.2, 1.25, 1.5, 2, 5, 10, 100)
RATIO_BUCKETS: Final = (1, 1.2, 1.5, 2, 5, 10, 20, 40, 70, 100, 150, 200, 300, 500, 1000)


class Metrics:
    """One attribute a metric; the service sets them, HTTP threads read them."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no annotation there
        self.registry = CollectorRegistry()
        self._add_work()
        self._add_queue()
        self._add_health()
        Info("ckzd_build", "version of ckzd", registry=self.registry).info({"version": version})

    def _add_work(self) -> None:
        self.checkpoints = self._counter("ckzd_checkpoints", "checkpoints by what became of them", outcome=OUTCOMES)
        self.started = self._counter("ckzd_jobs_started", "jobs given to a worker", kind=KINDS)
        self.failures = self._counter("ckzd_jobs_failed", "jobs that did not end well, by why", reason=FAILURES)
        self.verify_failures = self._counter(
            "ckzd_verify_failures", "archives that did not decode to what was recorded", reason=VERIFY_REASONS
        )
        self.bytes_read = self._counter("ckzd_bytes_read", "bytes of the checkpoints that were archived")
        self.bytes_written = self._counter("ckzd_bytes_written", "bytes of their archives")
        self.reclaimed_bytes = self._counter("ckzd_reclaimed_bytes", "bytes of the originals that were replaced")
        self.store_bytes = self._gauge("ckzd_store_bytes", "bytes on disk in the stores", kind=STORE_PARTS)
        self.net_freed_bytes = self._gauge(
            "ckzd_net_freed_bytes", "replaced originals that have left the disk, less archives and cache"
        )
        self.freed_bytes = self._counter("ckzd_trash_freed_bytes", "bytes of replaced originals deleted from the trash")
        self.pruned_bytes = self._counter("ckzd_pruned_bytes", "bytes of archives, and their cache, that were pruned")
        self.over_quota = self._gauge(
            "ckzd_over_quota_bytes", "bytes that what is kept in the stores takes beyond their quotas"
        )
        self.ratio = Histogram(
            "ckzd_compression_ratio", "size of a checkpoint over size of its archive",
            buckets=RATIO_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.archives = self._counter("ckzd_archives", "archives made, by how much work went into them", effort=EFFORTS)
        self.tightened = self._counter(
            "ckzd_archives_tightened", "archives that took more bits to keep to their preset's budget", preset=PRESETS
        )
        self.ruined = self._counter(
            "ckzd_ruined_checkpoints", "archived ones of which half of the numbers or more became NaN or infinite",
            watch=(),
        )  # fmt: skip
        self.proxies = {
            name: self._by_preset(f"ckzd_{name}", text, buckets)
            for name, text, buckets in (
                ("weight_error", "error of an archive's weights over their energy", ERROR_BUCKETS),
                ("worst_tensor_error", "the same of its worst tensor", ERROR_BUCKETS),
                ("second_moment_ratio", "worst factor of the sum of a restored second moment", FACTOR_BUCKETS),
                ("update_length_ratio", "worst factor of how long updates by a first moment are", FACTOR_BUCKETS),
            )
        }
        self.stage_seconds = Histogram(
            "ckzd_stage_duration_seconds", "time in one stage of a job", ["stage"],
            buckets=SECONDS_BUCKETS, registry=self.registry,
        )  # fmt: skip
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        self.last_success = self._gauge("ckzd_last_success_timestamp_seconds", "when a checkpoint was last archived")

    def _add_queue(self) -> None:
        self.queue = self._gauge("ckzd_queue_checkpoints", "checkpoints that are not archived yet", state=QUEUE_STATES)
        self.queue_bytes = self._gauge("ckzd_queue_bytes", "their bytes")
        self.queue_oldest = self._gauge(
            "ckzd_queue_oldest_timestamp_seconds", "when the longest waiting one was seen; 0 when none waits"
        )
        self.falling_behind = self._gauge(
            "ckzd_runs_falling_behind", "runs that save faster than they are archived: their archives take less effort"
        )
        self.quarantined = self._gauge("ckzd_quarantined_checkpoints", "checkpoints that are no longer tried")
        self.left_alone = self._gauge(
            "ckzd_left_alone_checkpoints", "checkpoints and files of kinds that are not read", kind=LEFT_ALONE
        )
        self.paused = self._gauge("ckzd_queue_paused", "1 while the file system is too full to go on")
        self.disk_busy = self._gauge("ckzd_disk_busy", "1 while no job begins because others wait for the disk")
        self.damaged_archives = self._gauge(
            "ckzd_damaged_archives", "archives that cannot be restored from: they, or what they need, are damaged"
        )
        self.checked = self._counter(
            "ckzd_checked_archives", "archives that were read back in turn, by what was found", outcome=CHECKED
        )
        self.check_pass = self._gauge(
            "ckzd_check_pass_ratio", "share of the archives that were read back in this pass over all of them"
        )
        self.check_completed = self._gauge(
            "ckzd_check_last_complete_pass_timestamp_seconds", "when all archives had been read back; 0: not yet"
        )
        self.replacing_stopped = self._gauge(
            "ckzd_replacing_stopped", "1 after a verification failure, until a person acknowledges it"
        )

    def _add_health(self) -> None:
        self.worker_up = self._gauge("ckzd_worker_up", "1 if the worker runs or can be started", labels=("worker",))
        self.restarts = self._counter(
            "ckzd_worker_restarts", "worker processes that ended unasked", reason=RESTART_REASONS
        )
        self.overflows = self._counter("ckzd_watch_overflows", "times the kernel dropped file events; a scan follows")
        self.watching = self._gauge("ckzd_watch_healthy", "1 while file events come for every watched directory")
        self.scan_seconds = Histogram(
            "ckzd_scan_duration_seconds", "time of one scan of the watched directories",
            buckets=SECONDS_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.last_scan = self._gauge("ckzd_scan_last_success_timestamp_seconds", "when a scan last saw every directory")
        self.free_bytes = self._gauge("ckzd_filesystem_free_bytes", "free space under a watch", labels=("watch",))

    def set_checks(self, stores: Sequence[Mapping[str, Any]]) -> None:
        """How far the stores have been read back; complete is what is complete in all of them."""
        known = [store["check"] for store in stores if store["check"]["archives"]]
        total = sum(check["archives"] for check in known)
        read = sum(check["archives"] * check["pass_ratio"] for check in known)
        self.check_pass.set(read / total if total else 1.0)
        self.check_completed.set(min((check["pass_completed"] or 0.0 for check in known), default=0.0))

    def failed(self, reason: str) -> None:
        """Count a job that did not end well; an unknown reason is "unexpected"."""
        self.failures.labels(reason if reason in FAILURES else "unexpected").inc()

    def stage(self, stage: str, seconds: float) -> None:
        """A job has left a stage."""
        self.stage_seconds.labels(stage if stage in STAGES else "other").observe(seconds)

    def proxy(self, preset: str, report: Mapping[str, Any]) -> None:
        """What an encoder saw of the loss of one archive, from the report of its compression."""
        for name, histogram in self.proxies.items():
            histogram.labels(preset).observe(report[name])
        self.tightened.labels(preset).inc(report["tightened"])

    def set_queue(self, counts: Mapping[str, int], nbytes: int, oldest: float) -> None:
        """What waits, by state."""
        for state in QUEUE_STATES:
            self.queue.labels(state).set(counts.get(state, 0))
        self.queue_bytes.set(nbytes)
        self.queue_oldest.set(oldest)

    def set_left_alone(self, watches: Collection[Mapping[str, int]]) -> None:
        """What is not read, by kind, in all watches."""
        for kind in LEFT_ALONE:
            self.left_alone.labels(kind).set(sum(watch.get(kind, 0) for watch in watches))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition that the client asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _by_preset(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        found = Histogram(name, text, ["preset"], buckets=buckets, registry=self.registry)
        for preset in PRESETS:
            found.labels(preset)
        return found

    def _counter(self, name: str, text: str, **labels: Collection[str]) -> Counter:
        counter = Counter(name, text, list(labels), registry=self.registry)
        for values in labels.values():
            for value in values:
                counter.labels(value)  # known from the start as 0: a rate() needs a first point
        return counter

    def _gauge(self, name: str, text: str, labels: Collection[str] = (), **known: Collection[str]) -> Gauge:
        gauge = Gauge(name, text, [*labels, *known], registry=self.registry)
        for values in known.values():
            for value in values:
                gauge.labels(value)
        return gauge
