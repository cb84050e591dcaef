"""A folder over HTTP on loopback: delays each response and counts the requests."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Traffic:
    """Requests and bytes between a client and a server.

    Parameters
    ----------
    requests
        Number of requests, those for absent keys included.
    nbytes
        Bytes of the bodies of responses.
    """

    requests: int = 0
    nbytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.requests + other.requests, self.nbytes + other.nbytes)

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.requests - other.requests, self.nbytes - other.nbytes)


class _Handler(SimpleHTTPRequestHandler):
    """Serves GET and HEAD of whole files; ignores ranges, as RFC 9110, 14.2 allows."""

    server: _Server
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes. Nagle's algorithm would delay the second by up to 40 ms, and
    # the latency would not be the stated one.
    disable_nagle_algorithm = True

    def send_head(self) -> Any:
        self.server.sleep(self.server.latency_seconds)
        return super().send_head()

    def send_header(self, keyword: str, value: str) -> None:
        # Once in each response, and before it is sent: a client that has it finds it counted.
        if keyword == "Content-Length":
            self.server.count(Traffic(1, int(value) if self.command == "GET" else 0))
        super().send_header(keyword, value)

    def send_error(self, code: int, *_: object) -> None:
        """Send no page about the error, and keep the connection open."""
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def list_directory(self, path: object) -> None:  # noqa: ARG002 - as in the base class
        """Serve files only."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, *_: object) -> None:
        """Log nothing: the demo prints the counts."""


class _Server(ThreadingHTTPServer):
    # The client opens as many connections as zarr reads chunks at once.
    request_queue_size = 128

    def __init__(
        self, root: Path, *, latency_seconds: float, sleep: Callable[[float], None]
    ) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(root)))
        self.latency_seconds = latency_seconds
        self.sleep = sleep
        self.traffic = Traffic()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        # Otherwise threads would keep serving the connections that clients hold open.
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def count(self, traffic: Traffic) -> None:
        with self._lock:
            self.traffic += traffic

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that closed its connection, for example at Ctrl-C, is no error of the server.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class DemoServer(contextlib.AbstractContextManager["DemoServer"]):
    """Serves a folder on a free port of 127.0.0.1 for as long as the block runs.

    Serves GET and HEAD of whole files, over persistent connections.

    Parameters
    ----------
    root
        The folder.
    latency_seconds
        Delay of each response.
    sleep
        Called with `latency_seconds` before each response.
    """

    def __init__(
        self,
        root: Path,
        *,
        latency_seconds: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._server = _Server(root, latency_seconds=latency_seconds, sleep=sleep)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            # Leaving the block waits up to this long; the default is 0.5 s.
            kwargs={"poll_interval": 0.02},
            name="zarr-cache-demo-server",
            daemon=True,
        )

    @property
    def url(self) -> str:
        """URL of the folder, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def traffic(self) -> Traffic:
        """Requests and bytes since the server started."""
        return self._server.traffic

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
