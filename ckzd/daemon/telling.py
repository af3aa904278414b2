"""What the service shows to the outside: metrics, the status snapshot, the web server and where it listens."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ckzd import __version__, durable
from ckzd.config import Settings
from ckzd.daemon import page, status
from ckzd.daemon.clock import Clock
from ckzd.daemon.http import Board, HttpServer
from ckzd.daemon.metrics import Metrics
from ckzd.daemon.states import Row, State

STALE_SECONDS = 120.0  # the loop comes round twice a second; a scan of a slow file system may take a while
_QUEUED = frozenset({State.SEEN, State.SETTLED, State.ENCODING, State.WRITTEN, State.FAILED, State.SKIPPED})


class Teller:
    """Holds the last snapshot; the server's threads read it, the service's thread replaces it."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.metrics = Metrics(__version__)
        for name in settings.watch_names:
            self.metrics.ruined.labels(name)  # from the start as 0
        self._settings = settings
        self._clock = clock
        self._came_round = clock.monotonic()
        self._status: dict[str, Any] = status.build([], status.Live("starting"), settings, clock.time())
        self._server: HttpServer | None = None

    def listen(self) -> None:
        """Open the port and write down where it is; ConfigError if it is taken."""
        daemon = self._settings.daemon
        board = Board(self.metrics.render, lambda: self._status, page.render, self._why_dead)
        self._server = HttpServer(daemon.host, daemon.port, board)
        self._server.start()
        host = "127.0.0.1" if daemon.host in {"0.0.0.0", ""} else daemon.host  # noqa: S104  # compared, not bound
        place = {"host": host, "port": self._server.port, "url": self.url, "pid": self._status["pid"]}
        with durable.write_atomically(daemon.state_dir / status.ENDPOINT) as file:
            file.write(json.dumps(place).encode() + b"\n")

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{self._settings.daemon.host}:{self._server.port}" if self._server else ""

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            with suppress(OSError):
                durable.remove(self._settings.daemon.state_dir / status.ENDPOINT)
            self._server.stop()
            self._server = None

    def came_round(self) -> None:
        """The loop is alive."""
        self._came_round = self._clock.monotonic()

    def tell(self, rows: Sequence[Row], live: status.Live) -> dict[str, Any]:
        """Replace the snapshot and set the gauges."""
        snapshot = status.build(rows, live, self._settings, self._clock.time())
        self._status = snapshot
        waiting = [row for row in rows if row.state in _QUEUED]
        counts = Counter(row.state.value for row in waiting)
        oldest = min((row.first_seen for row in waiting), default=0.0)
        self.metrics.set_queue(counts, sum(row.original_bytes for row in waiting), oldest)
        self.metrics.falling_behind.set(len(live.behind))
        self.metrics.quarantined.set(sum(row.state is State.QUARANTINED for row in rows))
        self.metrics.set_left_alone(live.left_alone.values())
        self.metrics.paused.set(live.paused is not None)
        self.metrics.replacing_stopped.set(snapshot["replacing_stopped"] is not None)
        self.metrics.set_checks(live.stores)
        space = snapshot["space"]
        self.metrics.net_freed_bytes.set(space["freed_bytes"])
        for kind, name in (("archives", "archive_bytes"), ("cache", "cache_bytes"), ("trash", "trash_bytes")):
            self.metrics.store_bytes.labels(kind).set(space[name])
        self.metrics.over_quota.set(sum(store.get("over_quota_bytes", 0) for store in live.stores))
        for worker in live.workers:
            self.metrics.worker_up.labels(worker["worker"]).set(worker["up"])
        for name, watch in zip(self._settings.watch_names, self._settings.watch, strict=True):
            with suppress(OSError):
                self.metrics.free_bytes.labels(name).set(durable.free_bytes(watch.path))
        return snapshot

    def _why_dead(self) -> str | None:
        silent = self._clock.monotonic() - self._came_round
        return f"the service has not come round for {silent:.0f} s" if silent > STALE_SECONDS else None
