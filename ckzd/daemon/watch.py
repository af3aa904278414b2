"""Hints that something changed under the watched directories. Hints only: the scan is the truth.

watchdog loses events silently in four ways (queue overflow, watch limit, a deleted root, a handler that raised), and
network file systems give none. So `Watcher` says when a scan may be worth while, and `healthy()` whether hints still
come; the service scans periodically anyway.
"""

import logging
import os
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from ckzd.daemon import filesystems

log = logging.getLogger(__name__)

OVERFLOW_LOGGER = "watchdog.observers.inotify_c"  # the only place where watchdog tells of an overflow
OURS = (".ckzd", ".ckz")  # our directory and temporary names begin with the one, our pointers end with the other
_EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileMovedEvent,
    FileClosedEvent,
    FileDeletedEvent,
    DirCreatedEvent,
    DirMovedEvent,
    DirDeletedEvent,
]


class Watcher:
    """Watches directories and remembers that there was a hint. What cannot be watched is left to the scan."""

    def __init__(self, roots: Iterable[Path]) -> None:
        roots = list(roots)
        self.polled = frozenset(root for root in roots if filesystems.gives_no_events(filesystems.kind(root)))
        self.overflows = 0  # owner: watchdog's reader thread
        self._roots = [root for root in roots if root not in self.polled]
        self._hint = threading.Event()
        self._observer: BaseObserver | None = None
        self._watched: dict[Path, int] = {}  # root -> inode that is watched
        self._on_overflow = _OverflowHook(self)

    def start(self) -> None:
        """Watch every root that exists; call it before the first scan."""
        logger = logging.getLogger(OVERFLOW_LOGGER)
        logger.addHandler(self._on_overflow)
        if not logger.isEnabledFor(logging.WARNING):
            logger.setLevel(logging.WARNING)
        # said of a directory that is made and filled at once; harmless, but an error to whoever made warnings errors
        warnings.filterwarnings("ignore", message="Callback with id .* already exists", category=RuntimeWarning)
        self._arm()

    def stop(self) -> None:
        """End the threads."""
        logging.getLogger(OVERFLOW_LOGGER).removeHandler(self._on_overflow)
        self._disarm()

    def take_hint(self) -> bool:
        """Whether something happened since the last call."""
        happened = self._hint.is_set()
        self._hint.clear()
        return happened

    def healthy(self) -> bool:
        """Whether all is watched: observer and emitters alive, on the directories that are there now."""
        return self._is_alive() and self._watched == self._present()

    def repair(self) -> bool:
        """Watch again what is not watched (any more). True if there was something to repair: then a scan is due."""
        if self.healthy():
            return False
        log.warning("watching begins anew", extra={"roots": [str(root) for root in self._roots]})
        self._disarm()
        self._arm()
        return True

    def hint(self) -> None:
        """Something may have changed; any thread."""
        self._hint.set()

    def _is_alive(self) -> bool:
        if self._observer is None:
            return not self._present()
        reader = getattr(self._observer, "_inotify_fd", None)  # when this thread dies, nothing else shows it
        threads = [self._observer, *self._observer.emitters, *([reader] if reader is not None else [])]
        return all(thread.is_alive() for thread in threads)

    def _present(self) -> dict[Path, int]:
        found = {}
        for root in self._roots:
            try:
                found[root] = os.stat(root).st_ino  # noqa: PTH116  # one call, and it must not raise
            except OSError:
                continue
        return found

    def _arm(self) -> None:
        self._watched = self._present()
        if not self._watched:
            return
        try:
            self._observer = Observer()
            for root in self._watched:
                self._observer.schedule(_Handler(self), str(root), recursive=True, event_filter=_EVENTS)
            self._observer.start()
        except OSError:  # watch or instance limit, or the root has just gone: the periodic scan goes on
            log.exception("cannot watch for changes: relying on the periodic scan")
            self._disarm()

    def _disarm(self) -> None:
        observer, self._observer, self._watched = self._observer, None, {}
        if observer is None:
            return
        was_started = observer.ident is not None
        observer.stop()  # also one that could not start: its reader thread runs from the constructor on
        if was_started:
            observer.join()


class _Handler(FileSystemEventHandler):
    """Turns events into hints. It must never raise: that would end the observer's thread."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def on_any_event(self, event: FileSystemEvent) -> None:
        try:
            if not _is_ours(event.src_path) or (event.dest_path and not _is_ours(event.dest_path)):
                self._watcher.hint()
        except Exception:  # the service must hear of it and go on
            log.exception("watch handler failed")
            self._watcher.hint()


class _OverflowHook(logging.Handler):
    """Hears watchdog say that the kernel's queue ran over: events are lost, only a scan helps."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(level=logging.WARNING)
        self._watcher = watcher

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().lower()
        if "overflow" in message:
            self._watcher.overflows += "reconcil" not in message  # it says so once more when it watches anew
            self._watcher.hint()


def _is_ours(path: bytes | str) -> bool:
    """Our own writing must not keep us busy: stores, temporary files and pointers are no news."""
    prefix, suffix = OURS
    parts = Path(os.fsdecode(path)).parts
    return any(part.startswith(prefix) for part in parts) or parts[-1].endswith(suffix)
