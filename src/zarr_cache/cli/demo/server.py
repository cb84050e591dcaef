"""A folder over HTTP on loopback: delays each response and counts the requests."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

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


class RangeNotSatisfiableError(Exception):
    """The requested range has no byte in common with the file (RFC 9110, 15.5.17)."""


def byte_span(header: str | None, size: int) -> tuple[int, int] | None:
    """Half-open span ``[start, stop)`` that a ``Range`` header selects of `size` bytes.

    None stands for the whole file: there is no header, or it is one that a server may ignore
    (RFC 9110, 14.2), such as several ranges.

    Raises
    ------
    RangeNotSatisfiableError
        The range is well-formed and selects nothing.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "", re.ASCII)
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= stop:
        raise RangeNotSatisfiableError(header)
    return start, stop


class _Handler(BaseHTTPRequestHandler):
    """Serves GET and HEAD for the files under the root of a `DemoServer`."""

    server: _Server
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes. Nagle's algorithm would delay the second by up to 40 ms, and
    # the latency would not be the stated one.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def _respond(self, *, with_body: bool) -> None:
        self.server.sleep(self.server.latency_seconds)
        status, headers, body = self._find()
        sent = body if with_body else b""
        # Before it is sent: a client that has the response finds it counted.
        self.server.count(Traffic(requests=1, nbytes=len(sent)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(sent)

    def _find(self) -> tuple[HTTPStatus, dict[str, str], bytes]:
        path = self.server.file_of(self.path)
        if path is None:
            return HTTPStatus.NOT_FOUND, {}, b""
        data = path.read_bytes()
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        try:
            span = byte_span(self.headers["Range"], len(data))
        except RangeNotSatisfiableError:
            return (
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                {"Content-Range": f"bytes */{len(data)}"},
                b"",
            )
        if span is None:
            return HTTPStatus.OK, headers, data
        start, stop = span
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return HTTPStatus.PARTIAL_CONTENT, headers, data[start:stop]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Log nothing: the demo prints the counts."""


class _Server(ThreadingHTTPServer):
    # The client opens as many connections as zarr reads chunks at once.
    request_queue_size = 128

    def __init__(
        self, root: Path, *, latency_seconds: float, sleep: Callable[[float], None]
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root.resolve()
        self.latency_seconds = latency_seconds
        self.sleep = sleep
        self._traffic = Traffic()
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
            self._traffic += traffic

    def traffic(self) -> Traffic:
        with self._lock:
            return self._traffic

    def file_of(self, target: str) -> Path | None:
        """The file that a request's target names, or None if there is none under the root."""
        name = unquote(urlsplit(target).path).lstrip("/")
        if "\0" in name:
            return None
        # Resolved before the comparison: "..", also percent-encoded, and links may leave the root.
        path = (self.root / name).resolve()
        return path if path.is_relative_to(self.root) and path.is_file() else None

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that closed its connection, for example at Ctrl-C, is no error of the server.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type] # of any type


class DemoServer(contextlib.AbstractContextManager["DemoServer"]):
    """Serves a folder on a free port of 127.0.0.1 for as long as the block runs.

    Serves GET and HEAD, of a whole file or one byte range, over persistent connections. Files
    outside the folder are not found.

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
        return self._server.traffic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
