"""Words to the service manager: one datagram each, no library."""

import contextlib
import socket

from ckzd.config import Systemd
from ckzd.daemon.clock import Clock


class Notifier:
    """Tells systemd what the service does. Without systemd every call is nothing."""

    def __init__(self, systemd: Systemd, clock: Clock) -> None:
        self._address = systemd.notify_socket
        self._every = None if systemd.watchdog_seconds is None else systemd.watchdog_seconds / 3
        self._clock = clock
        self._last_sign = float("-inf")
        self._last_status = ""

    def ready(self) -> None:
        """The first scan is done, the work begins."""
        self._send("READY=1")

    def alive(self) -> None:
        """The main loop has come round; sent as often as the watchdog needs it. Never call it from a timer thread."""
        now = self._clock.monotonic()
        if self._every is not None and now - self._last_sign >= self._every:
            self._last_sign = now
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        if text != self._last_status:
            self._last_status = text
            self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
        ):
            out.sendto(message.encode(), address)
