"""Hints that something changed in the watched directories. Hints only: the scan is the truth.

watchdog loses events silently in four ways (queue overflow, watch limit, a deleted root, a handler that raised), and
network file systems give none. So `Watcher` says when a scan may be worth while, and `healthy()` whether hints still
come; the service scans periodically anyway.

Directories are watched one by one, never as a tree: watchdog 7.1 loses track of a tree in which two directories are
exchanged (KeyError in InotifyWatchGroup), which is how we replace them; and what happens in a checkpoint is no news.
"""

import contextlib
import logging
import os
import threading
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
from watchdog.observers.api import BaseObserver, ObservedWatch

from ckzd.daemon import filesystems
from ckzd.formats.names import POINTER_SUFFIX
from ckzd.store import STORE_NAME

log = logging.getLogger(__name__)

OVERFLOW_LOGGER = "watchdog.observers.inotify_c"  # the only place where watchdog tells of an overflow
MAX_WATCHED = 256  # directories; the scan sees the others
OURS = (
    STORE_NAME,
    POINTER_SUFFIX,
)  # our directory and temporary names begin with the one, our pointers end with the other
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

    def __init__(self) -> None:
        self.overflows = 0  # owner: watchdog's reader thread
        self._hint = threading.Event()
        self._observer: BaseObserver | None = None
        self._watches: dict[Path, tuple[int, ObservedWatch]] = {}  # directory -> inode and watch
        self._wanted: list[Path] = []
        self._silent: dict[Path, bool] = {}  # directory -> its file system gives no events
        self._handler = _Handler(self)
        self._on_overflow = _OverflowHook(self)

    def start(self) -> None:
        """Be ready for `follow`."""
        logger = logging.getLogger(OVERFLOW_LOGGER)
        logger.addHandler(self._on_overflow)
        if not logger.isEnabledFor(logging.WARNING):
            logger.setLevel(logging.WARNING)
        logging.getLogger("watchdog.observers.inotify").setLevel(logging.CRITICAL)  # an error whenever it is stopped

    def stop(self) -> None:
        """End the threads."""
        logging.getLogger(OVERFLOW_LOGGER).removeHandler(self._on_overflow)
        self._disarm()

    def follow(self, directories: Iterable[Path]) -> bool:
        """Watch exactly these. True if one of them was not watched before: what happened there meanwhile is unseen."""
        self._wanted = _newest([path for path in directories if self._gives_events(path)])
        self._leave_what_is_gone()
        if not self._is_alive():
            if self._observer is not None:
                log.warning("watching begins anew")
            self._disarm()
            self._arm()
        present = self._present()
        new = [path for path in present if path not in self._watches]
        return sum(self._watch(path, present[path]) for path in new) > 0

    def _leave_what_is_gone(self) -> None:
        """The thread of a directory that was deleted has ended: no reason to watch everything anew."""
        present = self._present()
        ended = (
            {emitter.watch for emitter in self._observer.emitters if not emitter.is_alive()} if self._observer else ()
        )
        for path, (inode, watch) in list(self._watches.items()):
            if present.get(path) != inode or watch in ended:
                self._unwatch(path)

    def take_hint(self) -> bool:
        """Whether something happened since the last call."""
        happened = self._hint.is_set()
        self._hint.clear()
        return happened

    def healthy(self) -> bool:
        """Whether hints come from all that should be watched and is there."""
        return self._is_alive() and {path: inode for path, (inode, _) in self._watches.items()} == self._present()

    def hint(self) -> None:
        """Something may have changed; any thread."""
        self._hint.set()

    def _gives_events(self, path: Path) -> bool:
        if path not in self._silent:
            self._silent[path] = filesystems.gives_no_events(filesystems.kind(path))
        return not self._silent[path]

    def _is_alive(self) -> bool:
        if self._observer is None:
            return not self._present()
        reader = getattr(self._observer, "_inotify_fd", None)  # when this thread dies, nothing else shows it
        threads = [self._observer, *self._observer.emitters, *([reader] if reader is not None else [])]
        return all(thread.is_alive() for thread in threads)

    def _present(self) -> dict[Path, int]:
        """The wanted directories that are there, and their inodes."""
        found = {}
        for path in self._wanted:
            with contextlib.suppress(OSError):
                found[path] = os.stat(path).st_ino  # noqa: PTH116  # one call, and it must not raise
        return found

    def _arm(self) -> None:
        if not self._present():
            return
        try:
            self._observer = Observer()
            self._observer.start()
        except OSError:  # too many inotify instances: the periodic scan goes on
            log.exception("cannot watch for changes: relying on the periodic scan")
            self._disarm()

    def _disarm(self) -> None:
        observer, self._observer, self._watches = self._observer, None, {}
        if observer is None:
            return
        was_started = observer.ident is not None
        observer.stop()  # also one that could not start: its reader thread runs from the constructor on
        if was_started:
            observer.join()

    def _watch(self, path: Path, inode: int) -> bool:
        if self._observer is None:
            return False
        try:
            watch = self._observer.schedule(self._handler, str(path), recursive=False, event_filter=_EVENTS)
        except OSError as error:  # too many watches, or it has just gone
            log.warning("cannot be watched: left to the periodic scan", extra={"path": str(path), "error": str(error)})
            return False
        self._watches[path] = inode, watch
        return True

    def _unwatch(self, path: Path) -> None:
        _, watch = self._watches.pop(path)
        if self._observer is not None:
            self._observer.unschedule(watch)


def _newest(directories: list[Path]) -> list[Path]:
    """At most MAX_WATCHED of them, where something happened last: each costs a thread."""

    def changed(path: Path) -> float:
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
        return 0.0

    return sorted(sorted(directories, key=changed, reverse=True)[:MAX_WATCHED])


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
