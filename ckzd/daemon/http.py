"""The daemon's small web server: /metrics for Prometheus, /healthz and /readyz for probes, /status.json, and a page.

Reading only. It listens on the loopback interface unless configured otherwise: pages and JSON show paths.
"""

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from ckzd.errors import ConfigError

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0  # a connection is closed then, whether its client says nothing, too little, or does not read
MAX_CONNECTIONS = 32  # each costs a thread; one more closes the oldest
_JSON, _TEXT, _HTML = "application/json", "text/plain; charset=utf-8", "text/html; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Board:
    """What the server shows. The functions are called by its threads and must not wait for anything."""

    metrics: Callable[[str], tuple[bytes, str]]  # Accept header -> body, content type
    status: Callable[[], dict[str, Any]]
    page: Callable[[dict[str, Any]], str]
    alive: Callable[[], str | None]  # None, or why the service should be restarted


class HttpServer:
    """Listens from construction on, serves between `start` and `stop`."""

    def __init__(self, host: str, port: int, board: Board) -> None:
        handler = type("Handler", (_Handler,), {"board": board})
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            problem = f"cannot listen on {host}:{port}: {error.strerror}"
            raise ConfigError("daemon.port", problem, hint="port = 0 takes any free one") from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="ckzd-http", kwargs={"poll_interval": 0.05}
        )

    @property
    def port(self) -> int:
        """The port it got."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Serve, in threads of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and close the port."""
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Bounds what clients cost: so many connections, so much time for each from its first to its last byte."""

    daemon_threads = True
    block_on_close = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._opened: dict[socket.socket, float] = {}  # connection -> monotonic; oldest first
        self._lock = threading.Lock()  # of the above
        super().__init__(address, handler)

    def process_request(self, request: socket.socket, client_address: Any) -> None:  # type: ignore[override]
        """Answer in a thread of its own."""
        with self._lock:
            oldest = next(iter(self._opened), None) if len(self._opened) >= MAX_CONNECTIONS else None
            self._opened[request] = time.monotonic()
        if oldest is not None:
            self._cut(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """The connection is done with."""
        with self._lock:
            self._opened.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called between requests, several times a second."""
        limit = time.monotonic() - REQUEST_SECONDS
        with self._lock:
            late = [request for request, since in self._opened.items() if since < limit]
        for request in late:
            self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        """Its thread finds the connection at its end, wherever it waits."""
        with self._lock:
            self._opened.pop(request, None)
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        del request
        log.debug("request failed", extra={"client": str(client_address), "error": repr(sys.exception())})


class _Handler(BaseHTTPRequestHandler):
    board: Board
    timeout = REQUEST_SECONDS
    server_version = "ckzd"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a GET."""
        routes = {
            "/": self._page,
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/status.json": self._status,
        }
        route = routes.get(urlsplit(self.path).path)
        if route is None:
            self._send(HTTPStatus.NOT_FOUND, f"not found; there is {', '.join(routes)}\n".encode(), _TEXT)
            return
        route()

    def do_HEAD(self) -> None:
        """Answer a HEAD: as a GET, without the body."""
        self.do_GET()

    def _page(self) -> None:
        self._send(HTTPStatus.OK, self.board.page(self.board.status()).encode(errors="replace"), _HTML)

    def _metrics(self) -> None:
        body, content_type = self.board.metrics(self.headers.get("Accept", ""))
        self._send(HTTPStatus.OK, body, content_type)

    def _healthz(self) -> None:
        problem = self.board.alive()
        if problem is None:
            self._send(HTTPStatus.OK, b"ok\n", _TEXT)
        else:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, f"{problem}\n".encode(errors="replace"), _TEXT)

    def _readyz(self) -> None:
        status = self.board.status()
        if status["ready"]:
            self._send(HTTPStatus.OK, b"ready\n", _TEXT)
        else:
            self._send(
                HTTPStatus.SERVICE_UNAVAILABLE, ("\n".join(status["reasons"]) + "\n").encode(errors="replace"), _TEXT
            )

    def _status(self) -> None:
        self._send(HTTPStatus.OK, json.dumps(self.board.status()).encode() + b"\n", _JSON)

    def _send(self, code: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        """Requests are no news."""
        log.debug(format, *args)
